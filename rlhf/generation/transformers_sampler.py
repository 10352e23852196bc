"""Sampling with transformers, for machines without vLLM: the same requests, the same results, slower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import Candidate
from rlhf.generation.request import Request, Sampling, ShardOfRequests
from rlhf.models.batches import unbinned
from rlhf.models.folder import load_weights
from rlhf.models.weight_files import saved_dtype

_BATCH = 64
"""Requests that are sampled together, at most."""


class TransformersSampler:
    """A model with a key-value cache, and one random stream per request."""

    def __init__(self, config: GenerateStage, model: str, seed: int, note: str = "") -> None:
        self.note = note
        # Of requests that have none of their own.
        self._stream = torch.Generator().manual_seed(seed)
        self.engine: object = None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = saved_dtype(model, config.dtype)
        loaded: Any = load_weights(AutoModelForCausalLM, model, dtype, config.trust_remote_code)
        self._model = loaded.to(self._device).eval()

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        """One candidate per request, in order (see `rlhf.generation.request.Sampler`)."""
        batches = _equal_lengths(requests)
        candidates_by_batch = []
        for members in batches:
            batch = [requests[index] for index in members]
            candidates_by_batch.append(self._sample_batch(batch, sampling))
        return unbinned(batches, candidates_by_batch)

    def sample_shards(
        self, shards: Iterable[ShardOfRequests | None], sampling: Sampling
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """One shard after the other (see `rlhf.generation.request.Sampler`)."""
        for shard in shards:
            assert shard is not None, "none is in hand"
            index, requests = shard
            yield index, self.sample(requests, sampling)

    @torch.inference_mode()
    def _sample_batch(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        # A stream of its own for each: what it draws must not depend on who else is in the batch.
        streams = [self._stream_of(request) for request in requests]
        temperature_B1 = torch.tensor([[request.temperature] for request in requests])
        stops = set(sampling.stop_token_ids)
        responses = [_Response() for _ in requests]
        prompt_BT = torch.tensor([request.prompt_token_ids for request in requests])
        input_BT = prompt_BT.to(self._device)
        cache = None
        for _ in range(sampling.max_new_tokens):
            output = self._model(input_ids=input_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            # On the CPU whatever the device: there a seed gives the same numbers on every machine.
            logits_BV = output.logits[:, -1].float().cpu()
            next_B = draw(logits_BV, temperature_B1, sampling, streams)
            # At temperature 1, as records have it, however the token was drawn.
            logprobs_BV = torch.log_softmax(logits_BV, -1)
            next_logprob_B = logprobs_BV.gather(-1, next_B[:, None])[:, 0]
            drawn = zip(responses, next_B.tolist(), next_logprob_B.tolist(), strict=True)
            for response, token, logprob in drawn:
                response.add(token, logprob, stops)
            if all(response.has_ended for response in responses):
                break
            # With the cache the model reads the new tokens alone. Rows that have ended go on unread.
            input_BT = next_B[:, None].to(self._device)
        return [response.candidate(request) for response, request in zip(responses, requests, strict=True)]

    @torch.inference_mode()
    def tokens_of(self, request: Request, sampling: Sampling) -> Iterator[int]:
        """The tokens of one response, each as soon as it is drawn; the last one may be a terminator.

        They are those that `sample` gives for the same request.
        """
        stream = self._stream_of(request)
        temperature_B1 = torch.tensor([[request.temperature]])
        input_BT = torch.tensor([request.prompt_token_ids], device=self._device)
        cache = None
        for _ in range(sampling.max_new_tokens):
            output = self._model(input_ids=input_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits_BV = output.logits[:, -1].float().cpu()
            next_B = draw(logits_BV, temperature_B1, sampling, [stream])
            token = int(next_B)
            yield token
            if token in sampling.stop_token_ids:
                break
            input_BT = next_B[:, None].to(self._device)

    def _stream_of(self, request: Request) -> torch.Generator:
        if request.seed is None:
            return self._stream
        return torch.Generator().manual_seed(request.seed)


class _Response:
    """One response while it is sampled."""

    def __init__(self) -> None:
        self.has_ended = False
        self._token_ids: list[int] = []
        self._logprob = 0.0

    def add(self, token: int, logprob: float, stops: set[int]) -> None:
        """Take the next token, unless the response has ended."""
        if self.has_ended:
            return
        self._token_ids.append(token)
        self._logprob += logprob
        self.has_ended = token in stops

    def candidate(self, request: Request) -> Candidate:
        """The response as a record; its text is decoded by the stage."""
        return Candidate(
            token_ids=self._token_ids,
            text="",
            finish_reason="stop" if self.has_ended else "length",
            logprob=self._logprob,
            seed=request.seed,
            temperature=request.temperature,
        )


def draw(
    logits_BV: Tensor,
    temperature_B1: Tensor,
    sampling: Sampling,
    streams: list[torch.Generator],
) -> Tensor:
    """Draw one token per row from softmax(logits / temperature) after top-k and top-p; temperature
    0 is greedy.

    Uses the exponential race: argmax of p / e with e ~ Exp(1) is a draw from p.
    """
    # Rows at temperature 0 are divided by something too; what comes of it is not used.
    scaled_BV = logits_BV / temperature_B1.clamp_min(1e-6)
    if sampling.top_k:
        k = min(sampling.top_k, scaled_BV.shape[-1])
        kth_B1 = scaled_BV.topk(k).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < kth_B1, float("-inf"))
    probs_BV = scaled_BV.softmax(-1)
    if sampling.top_p < 1:
        probs_BV = _nucleus(probs_BV, sampling.top_p)
    # Row by row and the whole vocabulary each time, whatever was cut: each stream moves on by as much.
    vocab_size = probs_BV.shape[-1]
    races = [torch.empty(vocab_size).exponential_(generator=stream) for stream in streams]
    drawn_B = (probs_BV / torch.stack(races)).argmax(-1)
    greedy_B = logits_BV.argmax(-1)
    return torch.where(temperature_B1[:, 0] > 0, drawn_B, greedy_B)


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens that together have `top_p`, the last of them whole; 0 for the others."""
    sorted_BV, order_BV = probs_BV.sort(descending=True)
    likelier_BV = sorted_BV.cumsum(-1) - sorted_BV
    inside_BV = sorted_BV.masked_fill(likelier_BV >= top_p, 0.0)
    # Not made to sum to 1 again: the race does not ask for it.
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, inside_BV)


def _equal_lengths(requests: list[Request]) -> list[list[int]]:
    """Batches of requests whose prompts have one length: no padding, so no row depends on another's.

    Example:
        of prompts with 3, 5 and 3 tokens: [[0, 2], [1]]
    """
    # Not `bins_by_tokens`: here the number of rows is limited, since the cache grows with every token.
    by_length: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        length = len(request.prompt_token_ids)
        by_length.setdefault(length, []).append(index)
    batches = []
    for indices in by_length.values():
        for start in range(0, len(indices), _BATCH):
            batches.append(indices[start : start + _BATCH])
    return batches
