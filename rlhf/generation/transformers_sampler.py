"""Sampling with transformers, for machines without vLLM: the same requests, the same results, slower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import Candidate
from rlhf.generation.request import Request, Sampling
from rlhf.models.folder import load_weights, saved_dtype

_BATCH = 64


class TransformersSampler:
    """A model with a key-value cache, and one random stream per request."""

    def __init__(self, config: GenerateStage, model: str, note: str = "") -> None:
        self.note = note
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = saved_dtype(model, config.dtype)
        self._model = load_weights(AutoModelForCausalLM, model, dtype, config.trust_remote_code)
        self._model.to(self._device).eval()

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        """One candidate per request, in order (see `rlhf.generation.request.Sampler`)."""
        results: dict[int, Candidate] = {}
        for batch in _equal_lengths(requests):
            candidates = self._sample_batch([requests[i] for i in batch], sampling)
            results.update(zip(batch, candidates, strict=True))
        return [results[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _sample_batch(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        size = len(requests)
        streams = [torch.Generator().manual_seed(request.seed) for request in requests]
        temperature_B1 = torch.tensor([[request.temperature] for request in requests])
        stops = set(sampling.stop_token_ids)
        tokens: list[list[int]] = [[] for _ in range(size)]
        logprobs, done = [0.0] * size, [False] * size
        input_BT = torch.tensor([request.prompt_token_ids for request in requests], device=self._device)
        cache = None
        for _ in range(sampling.max_new_tokens):
            output = self._model(input_ids=input_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits_BV = output.logits[:, -1].float().cpu()
            next_B = draw(logits_BV, temperature_B1, sampling, streams)
            picked_B = torch.log_softmax(logits_BV, -1).gather(-1, next_B[:, None])[:, 0]
            for row in range(size):
                if not done[row]:
                    tokens[row].append(int(next_B[row]))
                    logprobs[row] += float(picked_B[row])
                    done[row] = tokens[row][-1] in stops
            if all(done):
                break
            input_BT = next_B[:, None].to(self._device)
        return [
            Candidate(ids, "", "stop" if ended else "length", logprob, request.seed, request.temperature)
            for ids, ended, logprob, request in zip(tokens, done, logprobs, requests, strict=True)
        ]


def draw(
    logits_BV: torch.Tensor, temperature_B1: torch.Tensor, sampling: Sampling, streams: list[torch.Generator]
) -> torch.Tensor:
    """Draw one token per row from softmax(logits / temperature) after top-k and top-p; temperature 0 is greedy.

    Uses the exponential race: argmax of p / e with e ~ Exp(1) is a draw from p.
    """
    scaled_BV = logits_BV / temperature_B1.clamp_min(1e-6)
    if sampling.top_k:
        kth_B1 = scaled_BV.topk(min(sampling.top_k, scaled_BV.shape[-1])).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < kth_B1, float("-inf"))
    probs_BV = scaled_BV.softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(descending=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV.masked_fill(outside_BV, 0.0))
    race_BV = torch.stack([torch.empty(probs_BV.shape[-1]).exponential_(generator=stream) for stream in streams])
    greedy_B = logits_BV.argmax(-1)
    return torch.where(temperature_B1[:, 0] > 0, (probs_BV / race_BV).argmax(-1), greedy_B)


def _equal_lengths(requests: list[Request]) -> Iterator[list[int]]:
    """Batches of requests whose prompts have one length: no padding, so no row depends on another's."""
    by_length: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        by_length.setdefault(len(request.prompt_token_ids), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), _BATCH):
            yield indices[start : start + _BATCH]
