"""A Bradley-Terry reward model as judge, read by vLLM's pooling runner in this process."""

from __future__ import annotations

from typing import Any

import torch

from rlhf.config.choices import Engine, SpecialTokens
from rlhf.data.records import Message
from rlhf.errors import ConfigError, ModelError
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.context import judge_context
from rlhf.models.engine_folder import EngineFolder, import_classes
from rlhf.models.folder import engine_alive
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.heads import judge_config, require_one_logit, unnamed_labels
from rlhf.models.weight_files import saved_dtype
from rlhf.scoring.judge import Scored
from rlhf.scoring.token_rows import TokenIds, score_distinct

_CPU_MAX_SEQS = 512


class VllmJudge:
    """The same token ids as `ClassifierJudge` reads, the same raw logits from an fp32 head.

    The prompt that the candidates share is computed once. `batch_tokens` is what one forward pass may hold.
    """

    loaded_in = Engine.vllm

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        max_tokens: int = 4096,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        special_tokens: SpecialTokens = SpecialTokens.text,
        note: str = "",
    ) -> None:
        try:
            from vllm import LLM, PoolingParams
        # Of any type: a library of another build is an OSError, one of another version an AttributeError.
        except Exception as error:
            raise ConfigError(
                f"score.engine=vllm, but vLLM cannot be imported here ({error}). Install it "
                "(README, set-up), or use score.engine=transformers."
            ) from error
        self._tokenizer = load_tokenizer(path, trust_remote_code, special_tokens=special_tokens)
        self.note = note
        self._max_tokens = max_tokens
        config = judge_config(path, trust_remote_code)
        require_one_logit(path, config)
        self.context = judge_context(path, config, max_tokens)
        overrides: dict[str, Any] = {"head_dtype": "float32"}
        if unnamed_labels(path) is not None:
            # vLLM reads config.json by itself, and would take two.
            overrides["num_labels"] = 1
        # Kept for as long as the engine is: links into the judge's folder may end with it.
        self._folder = EngineFolder(path)
        import_classes(self._folder.path)
        on_gpu = torch.cuda.is_available()
        arguments: dict[str, Any] = {
            "model": self._folder.path,
            "runner": "pooling",
            "dtype": saved_dtype(path, dtype),
            "max_model_len": max_tokens,
            # Prefills are whole here, so one forward pass must have room for the longest conversation.
            "max_num_batched_tokens": max(forward_tokens(batch_tokens, on_gpu), max_tokens),
            "enable_chunked_prefill": False,
            "hf_overrides": overrides,
            # Never pickled weights, which can run code when loaded.
            "load_format": "safetensors",
            "trust_remote_code": trust_remote_code,
            "disable_log_stats": True,
        }
        if on_gpu:
            arguments["tensor_parallel_size"] = tensor_parallel_size
            arguments["gpu_memory_utilization"] = gpu_memory_utilization
        else:
            arguments["enforce_eager"] = True
            arguments["max_num_seqs"] = _CPU_MAX_SEQS
        self.engine = _loaded(LLM, path, arguments)
        # Without this vLLM puts a sigmoid over the only logit.
        self._raw_logits = PoolingParams(use_activation=False)

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Raw logits (see `rlhf.scoring.judge.Judge`)."""
        return score_distinct(self._tokenizer, items, self._max_tokens, self._score_rows, self.context)

    def _score_rows(self, rows: list[TokenIds]) -> list[float]:
        # A shard's scores must not depend, in their last digits, on the shards before it.
        self.engine.reset_prefix_cache()
        prompts: list[Any] = [{"prompt_token_ids": list(row)} for row in rows]
        with engine_alive():
            outputs = self.engine.classify(prompts, pooling_params=self._raw_logits, use_tqdm=False)
        scores = []
        for output in outputs:
            # vLLM calls them probabilities, whatever was asked for.
            logit = output.outputs.probs[0]
            scores.append(float(logit))
        return scores


def _loaded(llm: type, path: str, arguments: dict[str, Any]) -> Any:
    """vLLM's engine with a judge in it, which serves it as a classifier.

    Raises:
        ModelError: it cannot.
    """
    try:
        engine = llm(**arguments)
        tasks = engine.supported_tasks
    except Exception as error:
        # Of any type, for its loaders are many: a tensor that one does not know is a KeyError.
        problem = str(error) or type(error).__name__
        raise ModelError(
            f"{path}: vLLM cannot load it as a judge: {problem}. Lower "
            f"score.max_tokens={arguments['max_model_len']} if it is about length, or use "
            "score.engine=transformers."
        ) from error
    if "classify" not in tasks:
        raise ModelError(
            f"{path}: vLLM does not serve it as a classifier (it offers {', '.join(tasks)}). "
            "Use score.engine=transformers, or a judge whose architecture vLLM knows as a "
            "sequence classifier."
        )
    return engine
