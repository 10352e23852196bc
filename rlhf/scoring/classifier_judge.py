"""A reward model as judge: the raw logit of a one-label sequence classifier, or the score its own code gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf.data.records import Message
from rlhf.errors import ModelError, TemplateRefuses
from rlhf.models.chat import load_tokenizer, render_conversation
from rlhf.models.folder import load_config, load_weights, own_classifier, require_trust, saved_dtype
from rlhf.scoring.judge import Scored


class ClassifierJudge:
    """Reads conversations with its own tokenizer and template; the score head runs in fp32.

    The last real token is found from lengths, not from a pad id: a model whose pad is its end-of-turn token would
    otherwise be read at the user's turn. Rows are padded on the right, so under causal attention padding is never
    seen and a score does not depend on its batch.

    A model whose class is Python code of its own (ArmoRM: several objectives and a gate) runs as it is, and the field
    `score` of what it gives back is read. Such code may look for padding anywhere, so its rows are never padded.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        max_tokens: int = 4096,
        batch_tokens: int = 16384,
        trust_remote_code: bool = False,
        note: str = "",
    ) -> None:
        require_trust(path, trust_remote_code)
        self._tokenizer, self._path, self.note = load_tokenizer(path, trust_remote_code), path, note
        self._max_tokens, self._batch_tokens = max_tokens, batch_tokens
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        own = own_classifier(path)
        if own is None:
            require_one_logit(path, load_config(path, trust_remote_code))
        model = load_weights(AutoModelForSequenceClassification, path, saved_dtype(path, dtype), trust_remote_code)
        self._whole = model.to(self._device).eval() if own else None
        if self._whole is not None:
            if getattr(model.config, "pad_token_id", None) is None:
                self._batch_tokens = 1  # such code often refuses more rows than one
            return
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
            ModelError: the model's own code gives back no score.
        """
        kept, num_truncated = read_items(self._tokenizer, items, self._max_tokens)
        distinct = list(dict.fromkeys(kept))  # samples of one prompt are often the same
        scores: dict[tuple[int, ...], float] = {}
        for batch in token_batches([len(ids) for ids in distinct], self._batch_tokens, padded=self._whole is None):
            rows = [distinct[i] for i in batch]
            scores.update(zip(rows, self._forward(rows), strict=True))
        return Scored([scores[ids] for ids in kept], num_truncated)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        ids_BT, mask_BT, lengths_B = right_padded(rows)
        inputs = {"input_ids": ids_BT.to(self._device), "attention_mask": mask_BT.to(self._device)}
        if self._whole is not None:
            return self._own_scores(self._whole(**inputs), len(rows))
        hidden_BTD = self._body(**inputs, use_cache=False).last_hidden_state
        last_BD = hidden_BTD[torch.arange(len(rows)), lengths_B - 1]
        return [float(value) for value in self._head(last_BD.float())[:, 0]]

    def _own_scores(self, output: Any, num: int) -> list[float]:
        score = getattr(output, "score", None)
        score = getattr(output, "logits", None) if score is None else score
        if not isinstance(score, Tensor) or score.numel() != num:
            raise ModelError(
                f"{self._path}: the judge's own code gives back no number per conversation, as `score` or `logits` "
                f"(found {getattr(score, 'shape', score)} for {num}). Choose another judge, or mend a copy of it."
            )
        return [float(value) for value in score.flatten()]


def right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and attention mask as (B, T), and lengths as (B,)."""
    lengths_B = torch.tensor([len(row) for row in rows])
    ids_BT = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = torch.tensor(row)
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long(), lengths_B


def require_one_logit(path: str, config: Any) -> None:
    """Refuse a classifier of several labels, and one whose score is computed by code of its own.

    Raises:
        ModelError: the number of labels, and what to use.
    """
    if own := own_classifier(path):
        raise ModelError(
            f"{path}: the judge's score is computed by Python code that comes with it ({own}), which runs in "
            "transformers only. Use score.engine=transformers (or auto) and reward_model.url=null."
        )
    if config.num_labels != 1:
        raise ModelError(
            f"{path}: the judge has {config.num_labels} labels, and which of them is the reward is not known. Use a "
            "sequence classifier with one logit, or a model whose own code says it (`score`; docs/recipe.md)."
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


def token_batches(lengths: Sequence[int], batch_tokens: int, padded: bool = True) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size is at most `batch_tokens` (one row at least).

    Longest first, so that memory runs out at once or never. Where not `padded`, the lengths of a batch are the same.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        full = batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens
        if full or (batch and not padded and lengths[index] != lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
