"""Log-probabilities of given tokens from logits, in fp32 and without a second copy of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf.training.memory_forecast import rows_of_chunk


def target_logprobs(logits_S_V: Tensor, targets_S: Tensor) -> Tensor:
    """log softmax(logits)[target] of each row, in nats, fp32 (float64 for float64 logits).

    The backward pass turns the logits into their own gradient where they lie, so they are of no use
    after it: nobody else may keep them.
    """
    logprobs_S: Tensor = _TargetLogprobs.apply(logits_S_V, targets_S)
    return logprobs_S


class _TargetLogprobs(torch.autograd.Function):
    """d log p(target) / d logits = one-hot(target) − softmax(logits)."""

    @staticmethod
    def forward(ctx: Any, logits_S_V: Tensor, targets_S: Tensor) -> Tensor:
        logsumexps = []
        for chunk_C_V in logits_S_V.split(_rows_of_chunk(logits_S_V)):
            logsumexps.append(_wide(chunk_C_V).logsumexp(dim=1))
        logsumexp_S = torch.cat(logsumexps)
        ctx.save_for_backward(logits_S_V, targets_S, logsumexp_S)
        target_logits_S = _wide(logits_S_V.gather(1, targets_S[:, None])[:, 0])
        return target_logits_S - logsumexp_S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None]:
        logits_S_V, targets_S, logsumexp_S = ctx.saved_tensors
        num_rows = _rows_of_chunk(logits_S_V)
        chunks = zip(
            logits_S_V.split(num_rows),
            targets_S.split(num_rows),
            logsumexp_S.split(num_rows),
            grad_S.split(num_rows),
            strict=True,
        )
        for logits_C_V, targets_C, logsumexp_C, grad_C in chunks:
            # In place: a gradient of its own would take as much memory again. Logits that are wide
            # enough are worked on where they lie, too.
            gradient_C_V = _wide(logits_C_V)
            gradient_C_V.sub_(logsumexp_C[:, None]).exp_()
            gradient_C_V.mul_(-grad_C[:, None])
            gradient_C_V.scatter_add_(1, targets_C[:, None], grad_C[:, None])
            if gradient_C_V is not logits_C_V:
                logits_C_V.copy_(gradient_C_V)
        return logits_S_V, None


def _wide(values: Tensor) -> Tensor:
    """In fp32 where they are narrower; else the values themselves, not a copy."""
    return values.to(torch.promote_types(torch.float32, values.dtype))


def _rows_of_chunk(logits_S_V: Tensor) -> int:
    # On a GPU too: no head's weight is read here, for which a chunk would have to be larger.
    return rows_of_chunk(logits_S_V.shape[1], on_gpu=False)
