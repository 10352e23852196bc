"""A pairwise preference model as judge: a causal LM that answers A or B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlhf.config.choices import SpecialTokens
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.comparison import answer_ids, render_comparison, require_causal_lm
from rlhf.models.context import judge_context
from rlhf.models.folder import load_config, load_weights
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.weight_files import saved_dtype
from rlhf.scoring.token_rows import (
    TokenIds,
    cut_on_the_left,
    num_longer,
    padded_inputs,
    score_in_batches,
    sees_padding,
)
from rlhf.scoring.tournament import Compared, Matchup


class _TwoTokenHead(nn.Linear):
    """The two rows of the output head that matter, in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits of A and B at every position."""
        in_fp32 = input.float()
        return super().forward(in_fp32)


def _two_token_head(whole_head: Any, answers: list[int]) -> _TwoTokenHead:
    has_bias = whole_head.bias is not None
    head = _TwoTokenHead(whole_head.in_features, 2, bias=has_bias)
    with torch.no_grad():
        head.weight.copy_(whole_head.weight[answers])
        if has_bias:
            head.bias.copy_(whole_head.bias[answers])
    return head


class PairwiseJudge:
    """P(first is better): softmax over the tokens A and B, averaged over both orders of the two responses.

    The logits are fp32 from the last hidden state on. Rows are padded on the right and read at
    their last real token, so a probability does not depend on its batch.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        max_tokens: int = 4096,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        special_tokens: SpecialTokens = SpecialTokens.text,
    ) -> None:
        self._tokenizer = load_tokenizer(path, trust_remote_code, special_tokens=special_tokens)
        self._max_tokens = max_tokens
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._batch_tokens = forward_tokens(batch_tokens, self._device.type == "cuda")
        answers = answer_ids(self._tokenizer)
        config = load_config(path, trust_remote_code)
        require_causal_lm(path, config)
        self.context = judge_context(path, config, max_tokens)
        model = load_weights(AutoModelForCausalLM, path, saved_dtype(path, dtype), trust_remote_code)
        head = _two_token_head(model.get_output_embeddings(), list(answers))
        # Put into the model and not called by itself: the model's own scaling and capping of logits
        # comes after it.
        model.set_output_embeddings(head)
        self._model = model.to(self._device).eval()
        vocab_size = self._model.get_input_embeddings().num_embeddings
        self._masked = sees_padding(self._logits, vocab_size, self._device)

    def compare(self, comparisons: Sequence[Matchup]) -> Compared:
        """P(first is better) of each comparison: two calls each (see `rlhf.scoring.tournament.PairJudge`).

        Raises:
            TemplateRefuses: the judge's chat template takes no user turn.
        """
        rendered = []
        for messages, first, second in comparisons:
            # Both orders: such judges lean to the place in which a response is shown.
            rendered.append(render_comparison(self._tokenizer, messages, first, second, break_up=True))
            rendered.append(render_comparison(self._tokenizer, messages, second, first, break_up=True))
        rows, num_truncated = cut_on_the_left(rendered, self._max_tokens)
        # P(answer A) of each row, which is that of the response shown first.
        shown_first_wins = score_in_batches(rows, self._batch_tokens, self._forward)
        probabilities = []
        for index in range(0, len(rows), 2):
            # In the second row the roles are exchanged: there 1 − P is the probability of the same response.
            probability = (shown_first_wins[index] + 1 - shown_first_wins[index + 1]) / 2
            probabilities.append(probability)
        return Compared(probabilities, len(rows), num_truncated, num_longer(rows, self.context))

    @torch.inference_mode()
    def _forward(self, rows: Sequence[TokenIds]) -> list[float]:
        inputs, last_B = padded_inputs(rows, self._device, self._masked)
        logits_BT2 = self._logits(**inputs)
        row_B = torch.arange(len(rows))
        last_B2 = logits_BT2[row_B, last_B].float()
        probs_B2 = last_B2.softmax(-1)
        return probs_B2[:, 0].tolist()

    def _logits(self, input_ids: Tensor, **mask: Tensor) -> Tensor:
        """Of A and B, at every place."""
        logits_BT2: Tensor = self._model(input_ids=input_ids, use_cache=False, **mask).logits
        return logits_BT2
