"""What every sampling engine takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf.data.records import Candidate


@dataclass(frozen=True)
class Request:
    """One response to sample: prompt ids, temperature, and a seed of its own; None where the engine has one
    for all.

    Example:
        Request([1, 306, 9], temperature=0.7, seed=181783497)
    """

    prompt_token_ids: list[int]
    temperature: float
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """What all requests of a stage share; `top_k` 0 and `top_p` 1 are off."""

    max_new_tokens: int
    top_p: float
    top_k: int
    stop_token_ids: list[int]


ShardOfRequests = tuple[int, list[Request]]
"""The number of a shard, and its requests."""


class Sampler(Protocol):
    """A loaded engine.

    `note` is what a person should know about why it is this one, mostly nothing; `engine` what takes long to
    be taken down, if anything.
    """

    note: str
    engine: object

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Candidate]:
        """One candidate per request, in order; `token_ids` end with the terminator when one was sampled."""
        ...

    def sample_shards(
        self, shards: Iterable[ShardOfRequests | None], sampling: Sampling
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """The candidates of each shard as `sample` gives them, under its number, as soon as all are there.

        Args:
            shards: taken one by one, the next one when there is room for its requests, which may be before
                those in hand are finished. None means not yet: it is asked for again when one is finished,
                and must be no answer where none is in hand.
            sampling: what all of them share.
        """
        ...


def seed_of(seed: int, iteration: int, prompt_id: str, sample: int) -> int:
    """The seed of one response, in [0, 2^31): a rerun repeats it, another iteration or sample has another."""
    # A digest, not a count: the seed must not move when prompts are added or shards are cut otherwise.
    text = f"{seed}/{iteration}/{prompt_id}/{sample}"
    digest = hashlib.sha256(text.encode()).digest()
    first_32_bits = int.from_bytes(digest[:4], "big")
    # 31 of them, so that it stays positive where an engine holds seeds in 32 bits with a sign.
    return first_32_bits >> 1


def temperatures_of(n: int, temperatures: list[float]) -> list[float]:
    """The temperature of each of n responses, shared out evenly in blocks (paper: n/2 at 1.0, n/2 at 0.7).

    Example:
        `temperatures_of(4, [1.0, 0.7])` gives `[1.0, 1.0, 0.7, 0.7]`
    """
    by_sample = []
    for sample in range(n):
        block = sample * len(temperatures) // n
        by_sample.append(temperatures[block])
    return by_sample


def text_of(token_ids: list[int], tokenizer: Any, stop_token_ids: Collection[int]) -> str:
    """The text of a response's tokens up to the terminator: a plain token may be one."""
    # `skip_special_tokens` alone would not do for such a one.
    if token_ids and token_ids[-1] in stop_token_ids:
        token_ids = token_ids[:-1]
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))
