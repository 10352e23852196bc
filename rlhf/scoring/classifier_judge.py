"""A reward model as judge: the raw logit of a one-label sequence classifier, or the score its own
code gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf.config.choices import Engine, SpecialTokens
from rlhf.data.records import Message
from rlhf.errors import ModelError
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.context import judge_context
from rlhf.models.folder import load_weights, own_classifier, require_trust
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.heads import judge_config, require_one_logit
from rlhf.models.weight_files import saved_dtype
from rlhf.scoring.judge import Scored
from rlhf.scoring.token_rows import TokenIds, padded_inputs, score_distinct, score_in_batches, sees_padding


class ClassifierJudge:
    """Reads conversations with its own tokenizer and template; the score head runs in fp32.

    Rows are padded on the right, so under causal attention padding is never seen, with or without a
    mask, and a score does not depend on its batch.

    A model whose class is Python code of its own (ArmoRM: several objectives and a gate) runs as it
    is, and the field `score` of what it gives back is read. Such code may look for padding
    anywhere, so its rows are never padded.
    """

    loaded_in = Engine.transformers

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        max_tokens: int = 4096,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        note: str = "",
        special_tokens: SpecialTokens = SpecialTokens.text,
    ) -> None:
        require_trust(path, trust_remote_code)
        self._tokenizer = load_tokenizer(path, trust_remote_code, special_tokens=special_tokens)
        self._path = path
        self.note = note
        self._max_tokens = max_tokens
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_tokens = forward_tokens(batch_tokens, self._device.type == "cuda")
        own = own_classifier(path)
        config = judge_config(path, trust_remote_code)
        # Before the weights are read: a judge that cannot be used is refused at once.
        self.context = judge_context(path, config, max_tokens)
        if own is None:
            require_one_logit(path, config)
        body_dtype = saved_dtype(path, dtype)
        model = load_weights(
            AutoModelForSequenceClassification, path, body_dtype, trust_remote_code, config=config
        )
        # Set for a judge with code of its own only; others are split into body and head.
        self._whole: Any = None
        self._masked = True
        if own:
            self._whole = model.to(self._device).eval()
            if getattr(model.config, "pad_token_id", None) is None:
                # Without a pad such code often refuses more rows than one.
                self._batch_tokens = 1
            return
        if not hasattr(model, "score"):
            raise ModelError(
                f"{path}: {type(model).__name__} has no linear head named `score`. Use a model "
                "whose sequence classification class is a decoder with a score head (Llama, Qwen, "
                "Mistral, Gemma, Phi, …)."
            )
        self._body = model.base_model.to(self._device).eval()
        self._head = model.score.to(self._device, torch.float32).eval()
        vocab_size = self._body.get_input_embeddings().num_embeddings
        self._masked = sees_padding(self._states, vocab_size, self._device)

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Raw logits (see `rlhf.scoring.judge.Judge`).

        Raises:
            TemplateRefuses: the judge's chat template does not take a conversation that the policy
                has answered.
            ModelError: the model's own code gives back no score.
        """
        return score_distinct(self._tokenizer, items, self._max_tokens, self._score_rows, self.context)

    def _score_rows(self, rows: list[TokenIds]) -> list[float]:
        never_padded = self._whole is not None
        return score_in_batches(rows, self._batch_tokens, self._forward, equal_lengths=never_padded)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[TokenIds]) -> list[float]:
        inputs, last_B = padded_inputs(rows, self._device, self._masked)
        if self._whole is not None:
            output = self._whole(**inputs)
            return self._own_scores(output, len(rows))
        hidden_BTD = self._states(**inputs)
        row_B = torch.arange(len(rows))
        last_BD = hidden_BTD[row_B, last_B]
        logits_B1 = self._head(last_BD.float())
        return logits_B1[:, 0].tolist()

    def _states(self, input_ids: Tensor, **mask: Tensor) -> Tensor:
        # Without a cache: nothing is generated, and it would take more memory than the activations.
        states_BTD: Tensor = self._body(input_ids=input_ids, use_cache=False, **mask).last_hidden_state
        return states_BTD

    def _own_scores(self, output: Any, num_rows: int) -> list[float]:
        # `logits` may be the objectives that `score` sums up, so it is asked second.
        score = getattr(output, "score", None)
        if score is None:
            score = getattr(output, "logits", None)
        if not isinstance(score, Tensor) or score.numel() != num_rows:
            raise ModelError(
                f"{self._path}: the judge's own code gives back no number per conversation, as "
                f"`score` or `logits` (found {getattr(score, 'shape', score)} for {num_rows}). "
                "Choose another judge, or mend a copy of it."
            )
        return [float(value) for value in score.flatten()]
