"""A pairwise preference model as judge: a causal LM that answers A or B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlhf.models.chat import load_tokenizer
from rlhf.models.comparison import answer_ids, render_comparison, require_causal_lm
from rlhf.models.folder import load_config, load_weights, saved_dtype
from rlhf.scoring.classifier_judge import right_padded, token_batches
from rlhf.scoring.tournament import Compared, Comparison


class _TwoTokenHead(nn.Linear):
    """The two rows of the output head that matter, in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits of A and B at every position."""
        return super().forward(input.float())


class PairwiseJudge:
    """P(first is better): softmax over the tokens A and B, averaged over both orders of the two responses.

    The logits are fp32 from the last hidden state on. Rows are padded on the right and read at their last real token,
    so a probability does not depend on its batch.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        max_tokens: int = 4096,
        batch_tokens: int = 16384,
        trust_remote_code: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(path, trust_remote_code)
        self._max_tokens, self._batch_tokens = max_tokens, batch_tokens
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        answers = list(answer_ids(self._tokenizer))
        require_causal_lm(path, load_config(path, trust_remote_code))
        model = load_weights(AutoModelForCausalLM, path, saved_dtype(path, dtype), trust_remote_code)
        old = model.get_output_embeddings()
        head = _TwoTokenHead(old.in_features, 2, bias=old.bias is not None)
        with torch.no_grad():
            head.weight.copy_(old.weight[answers])
            if old.bias is not None:
                head.bias.copy_(old.bias[answers])
        model.set_output_embeddings(head)  # the model's own scaling and capping of logits comes after it
        self._model = model.to(self._device).eval()

    def compare(self, comparisons: Sequence[Comparison]) -> Compared:
        """P(first is better) of each comparison: two calls each (see `rlhf.scoring.tournament.PairJudge`).

        Raises:
            TemplateRefuses: the judge's chat template takes no user turn.
        """
        rendered = [
            tuple(render_comparison(self._tokenizer, messages, *order))
            for messages, first, second in comparisons
            for order in ((first, second), (second, first))
        ]
        rows = [ids[-self._max_tokens :] for ids in rendered]
        first_shown: list[float] = [0.0] * len(rows)
        for batch in token_batches([len(ids) for ids in rows], self._batch_tokens):
            for index, probability in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                first_shown[index] = probability
        both = zip(first_shown[::2], first_shown[1::2], strict=True)
        num_truncated = sum(len(ids) > self._max_tokens for ids in rendered)
        return Compared([(one + 1 - other) / 2 for one, other in both], len(rows), num_truncated)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        ids_BT, mask_BT, lengths_B = right_padded(rows)
        logits_BT2 = self._model(
            input_ids=ids_BT.to(self._device), attention_mask=mask_BT.to(self._device), use_cache=False
        ).logits
        last_B2 = logits_BT2[torch.arange(len(rows)), lengths_B - 1].float()
        return [float(value) for value in last_B2.softmax(-1)[:, 0]]
