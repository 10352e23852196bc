"""The output head together with the log-probabilities it is there for, so that large vocabularies fit.

Logits of every predicted token are the largest tensor of a pass by far where the vocabulary is large. Kept,
they spare the backward pass the head's product; where that would take too much memory, they are made in
chunks, forgotten, and made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.models.shape import CHANGES_LOGITS
from rlhf.training import memory_forecast

_targets: ContextVar[Tensor | None] = ContextVar("targets", default=None)


class TargetHead(nn.Linear):
    """A head that may give log-probabilities of the tokens asked for (`predicting`) in place of logits.

    In any other call it is the linear layer that it was.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (1, S, V), or where those would take too much memory log-probabilities (1, S)."""
        targets_S = _targets.get()
        if targets_S is None or _can_be_kept(hidden, self.weight):
            return F.linear(hidden, self.weight, self.bias)
        logprobs_S: Tensor = _HeadLogprobs.apply(hidden[0], self.weight, self.bias, targets_S)
        return logprobs_S[None]


def use_target_head(model: Any) -> None:
    """Make a transformers model's head a `TargetHead`, for good, where its logits are the model's own."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return
    for name in CHANGES_LOGITS:
        if getattr(model.config, name, None) not in (None, 1.0):
            return
    # Its class alone: the weight is tied, shared out or adapted under its name, and must stay where it is.
    head.__class__ = TargetHead


@contextlib.contextmanager
def predicting(targets_S: Tensor) -> Iterator[None]:
    """Inside, a `TargetHead` may give log-probabilities of these tokens, one for each hidden state."""
    token = _targets.set(targets_S)
    try:
        yield
    finally:
        _targets.reset(token)


def _can_be_kept(hidden: Tensor, weight: Tensor) -> bool:
    num_rows = hidden.numel() // hidden.shape[-1]
    num_bytes = num_rows * weight.shape[0] * hidden.element_size()
    return num_bytes <= memory_forecast.KEPT_LOGITS


class _HeadLogprobs(torch.autograd.Function):
    """log softmax(W·h + b)[target] of each row, in fp32 (float64 for float64), without keeping a logit."""

    @staticmethod
    def forward(
        ctx: Any, hidden_S_D: Tensor, weight_V_D: Tensor, bias_V: Tensor | None, targets_S: Tensor
    ) -> Tensor:
        num_rows = _rows_of_chunk(weight_V_D)
        logsumexps = []
        logprobs = []
        chunks = zip(hidden_S_D.split(num_rows), targets_S.split(num_rows), strict=True)
        for hidden_C_D, targets_C in chunks:
            logits_C_V = _logits(hidden_C_D, weight_V_D, bias_V)
            logsumexp_C = logits_C_V.logsumexp(dim=1)
            logsumexps.append(logsumexp_C)
            logprobs.append(logits_C_V.gather(1, targets_C[:, None])[:, 0] - logsumexp_C)
        ctx.save_for_backward(hidden_S_D, weight_V_D, bias_V, targets_S, torch.cat(logsumexps))
        return torch.cat(logprobs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        hidden_S_D, weight_V_D, bias_V, targets_S, logsumexp_S = ctx.saved_tensors
        num_rows = _rows_of_chunk(weight_V_D)
        grad_hidden = []
        # In fp32 at least: they are the sums of many chunks.
        grad_weight_V_D = None
        if ctx.needs_input_grad[1]:
            grad_weight_V_D = torch.zeros_like(weight_V_D, dtype=logsumexp_S.dtype)
        grad_bias_V = None
        if ctx.needs_input_grad[2]:
            grad_bias_V = torch.zeros_like(bias_V, dtype=logsumexp_S.dtype)
        chunks = zip(
            hidden_S_D.split(num_rows),
            targets_S.split(num_rows),
            logsumexp_S.split(num_rows),
            grad_S.split(num_rows),
            strict=True,
        )
        for hidden_C_D, targets_C, logsumexp_C, grad_C in chunks:
            # d log p(target) / d logits = one-hot(target) − softmax(logits).
            grad_C_V = _logits(hidden_C_D, weight_V_D, bias_V).sub_(logsumexp_C[:, None]).exp_()
            grad_C_V.mul_(-grad_C[:, None])
            grad_C_V.scatter_add_(1, targets_C[:, None], grad_C[:, None])
            if grad_bias_V is not None:
                grad_bias_V += grad_C_V.sum(dim=0)
            grad_C_V = grad_C_V.to(weight_V_D.dtype)
            grad_hidden.append(grad_C_V @ weight_V_D)
            if grad_weight_V_D is not None:
                _add_product(grad_weight_V_D, grad_C_V.t(), hidden_C_D)
        dtype = weight_V_D.dtype
        grad_weight_V_D = None if grad_weight_V_D is None else grad_weight_V_D.to(dtype)
        grad_bias_V = None if grad_bias_V is None else grad_bias_V.to(dtype)
        return torch.cat(grad_hidden), grad_weight_V_D, grad_bias_V, None


def _logits(hidden_C_D: Tensor, weight_V_D: Tensor, bias_V: Tensor | None) -> Tensor:
    """A chunk's logits, rounded as the model's own are, then in fp32 at least; a tensor of its own."""
    logits_C_V = hidden_C_D @ weight_V_D.t()
    if bias_V is not None:
        logits_C_V += bias_V
    return logits_C_V.to(torch.promote_types(torch.float32, logits_C_V.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the dtype of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _rows_of_chunk(weight_V_D: Tensor) -> int:
    on_gpu = weight_V_D.device.type != "cpu"
    return memory_forecast.rows_of_chunk(len(weight_V_D), on_gpu)
