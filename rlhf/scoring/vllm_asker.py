"""A language model in this process, asked for answers: vLLM's engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.config.stage_configs import GenerativeStage
from rlhf.data.judge_files import Unread
from rlhf.data.records import Message
from rlhf.errors import ConfigError, ModelError, TemplateRefuses
from rlhf.models.chat_template import load_tokenizer, render_prompt, stop_token_ids
from rlhf.models.comparison import require_causal_lm
from rlhf.models.engine_folder import EngineFolder, import_classes
from rlhf.models.folder import engine_alive, load_config
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.weight_files import saved_dtype
from rlhf.scoring.asking import Answer, Answered
from rlhf.scoring.kept import key_of

_CPU_MAX_SEQS = 256
_SEED_DIGITS = 7
"""Of a question's digest: a seed of 28 bits for its answer, where temperature makes one of use."""


class VllmAsker:
    """Every question is a request of its own; questions and answer have `score.max_tokens` together.

    Raises:
        ConfigError: vLLM cannot be imported.
        ModelError: it cannot load the model.
    """

    def __init__(self, config: GenerativeStage, path: str) -> None:
        try:
            from vllm import LLM
        # Of any type: a library of another build is an OSError, one of another version an AttributeError.
        except Exception as error:
            raise ConfigError(
                "reward_model.kind=generative without reward_model.url: vLLM cannot be "
                f"imported here ({error}). "
                "Install it (README, set-up), or have a server asked: reward_model.url."
            ) from error
        self._config = config
        trust = config.trust_remote_code
        require_causal_lm(path, load_config(path, trust))
        self._tokenizer = load_tokenizer(path, trust, special_tokens=config.special_tokens)
        self._stop_ids = stop_token_ids(self._tokenizer, path, trust_remote_code=trust)
        # Kept for as long as the engine is: links into the model's folder may end with it.
        self._folder = EngineFolder(path)
        import_classes(self._folder.path)
        on_gpu = torch.cuda.is_available()
        arguments: dict[str, Any] = {
            "model": self._folder.path,
            "dtype": saved_dtype(path, config.dtype),
            "max_model_len": config.max_tokens,
            # Never pickled weights, which can run code when loaded.
            "load_format": "safetensors",
            "trust_remote_code": trust,
            # Our sampling parameters, not the model's defaults.
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if on_gpu:
            arguments["tensor_parallel_size"] = config.tensor_parallel_size
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        else:
            # A per-request seed on a CPU dies when a prefill is chunked: keep every prefill whole.
            arguments["enforce_eager"] = True
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_seqs"] = _CPU_MAX_SEQS
            arguments["max_num_batched_tokens"] = max(
                forward_tokens(config.batch_tokens, on_gpu), config.max_tokens
            )
        try:
            self.engine = LLM(**arguments)
        except Exception as error:
            raise ModelError(
                f"{path}: vLLM cannot load it as a judge: {str(error) or type(error).__name__}. Lower "
                f"score.max_tokens={config.max_tokens} if it is about length, or serve it "
                "and name the server in "
                "reward_model.url."
            ) from error

    def ask(self, questions: Sequence[list[Message]], answered: Answered) -> None:
        """Each question once (see `rlhf.scoring.asking.Asker`); one without room for an "
        "answer is not asked.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        config = self._config
        # Answers must not depend, in any token, on what was asked before.
        self.engine.reset_prefix_cache()
        lengths = {}
        engine = self.engine.llm_engine
        for number, messages in enumerate(questions):
            try:
                ids = self._render(messages)
            except TemplateRefuses:
                answered(number, Answer("", problem=Unread.refused_by_template))
                continue
            if len(ids) + config.max_new_tokens > config.max_tokens:
                answered(number, Answer("", problem=Unread.too_long))
                continue
            parameters = SamplingParams(
                temperature=config.temperature,
                seed=int(key_of(messages)[:_SEED_DIGITS], 16) if config.temperature > 0 else None,
                max_tokens=config.max_new_tokens,
                stop_token_ids=self._stop_ids,
                # Our list of terminators is the whole list.
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            lengths[number] = len(ids)
            with engine_alive():
                engine.add_request(str(number), tokens_input(ids), parameters)
        while lengths:
            with engine_alive():
                outputs = engine.step()
            for output in outputs:
                number = int(output.request_id)
                completion = output.outputs[0]
                ids = list(completion.token_ids)
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                reason = "stop" if completion.finish_reason == "stop" else "length"
                answered(number, Answer(text, reason, lengths.pop(number), len(ids)))

    def _render(self, messages: list[Message]) -> list[int]:
        """Token ids of a question, its system turn in the user's where the template takes none."""
        try:
            return render_prompt(self._tokenizer, messages, break_up=True)
        except TemplateRefuses:
            if len(messages) == 1:
                raise
            text = "\n\n".join(message["content"] for message in messages)
            return render_prompt(self._tokenizer, [{"role": "user", "content": text}], break_up=True)
