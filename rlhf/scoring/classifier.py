"""A Bradley-Terry reward model as judge: the raw logit of a one-label sequence classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf.chat import load_tokenizer, render_conversation
from rlhf.errors import ModelError, TemplateRefuses
from rlhf.models import load_config, load_weights, saved_dtype
from rlhf.records import Message
from rlhf.scoring.judge import Scored


class ClassifierJudge:
    """Reads conversations with its own tokenizer and template; the score head runs in fp32.

    The last real token is found from lengths, not from a pad id: a model whose pad is its end-of-turn token would
    otherwise be read at the user's turn. Rows are padded on the right, so under causal attention padding is never
    seen and a score does not depend on its batch.
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
        require_one_logit(path, load_config(path, trust_remote_code))
        model = load_weights(AutoModelForSequenceClassification, path, saved_dtype(path, dtype), trust_remote_code)
        if not hasattr(model, "score"):
            raise ModelError(
                f"{path}: {type(model).__name__} has no linear head named `score`. Use a model whose sequence "
                "classification class is a decoder with a score head (Llama, Qwen, Mistral, Gemma, Phi, …)."
            )
        self._body = model.base_model.to(self._device).eval()
        self._head = model.score.to(self._device, torch.float32).eval()

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Raw logits (see `rlhf.scoring.judge.Judge`).

        Raises:
            TemplateRefuses: the judge's chat template does not take a conversation that the policy has answered.
        """
        kept, num_truncated = read_items(self._tokenizer, items, self._max_tokens)
        distinct = list(dict.fromkeys(kept))  # samples of one prompt are often the same
        scores: dict[tuple[int, ...], float] = {}
        for batch in token_batches([len(ids) for ids in distinct], self._batch_tokens):
            rows = [distinct[i] for i in batch]
            scores.update(zip(rows, self._forward(rows), strict=True))
        return Scored([scores[ids] for ids in kept], num_truncated)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        ids_BT, mask_BT, lengths_B = right_padded(rows)
        hidden_BTD = self._body(
            input_ids=ids_BT.to(self._device), attention_mask=mask_BT.to(self._device), use_cache=False
        ).last_hidden_state
        last_BD = hidden_BTD[torch.arange(len(rows)), lengths_B - 1]
        return [float(value) for value in self._head(last_BD.float())[:, 0]]


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and attention mask as (B, T), and lengths as (B,)."""
    lengths_B = torch.tensor([len(row) for row in rows])
    ids_BT = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = torch.tensor(row)
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long(), lengths_B


def require_one_logit(path: str, config: Any) -> None:
    """Refuse a classifier of several labels.

    Raises:
        ModelError: the number of labels, and what to use.
    """
    if config.num_labels != 1:
        raise ModelError(
            f"{path}: the judge has {config.num_labels} labels, and a Bradley-Terry reward model has one. "
            "Use a one-logit sequence classifier."
        )


def read_items(
    tokenizer: Any, items: list[tuple[list[Message], str]], max_tokens: int
) -> tuple[list[tuple[int, ...]], int]:
    """Token ids of each conversation, the last `max_tokens` of them, and how many conversations lost some.

    Raises:
        TemplateRefuses: the chat template does not take a conversation.
    """
    conversations = [[*messages, {"role": "assistant", "content": text}] for messages, text in items]
    try:
        rendered = [tuple(render_conversation(tokenizer, conversation)) for conversation in conversations]
    except TemplateRefuses as error:
        raise TemplateRefuses(f"The judge cannot read what the policy has answered. {error}") from error
    return [ids[-max_tokens:] for ids in rendered], sum(len(ids) > max_tokens for ids in rendered)


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size is at most `batch_tokens` (one row at least).

    Longest first, so that memory runs out at once or never.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
