"""Which worker makes which shard."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

LATER: Literal["later"] = "later"
"""The answer to a worker that has enough in hand: what is left is for those that hold less."""


class Handout:
    """The shards of one stage attempt: left, in a worker's hands, or made.

    A worker may ask for another shard while it still makes one, so that its engine is never short of
    requests. So that none hoards the last shards, it is given no more than its even share of what is not
    made yet.
    """

    def __init__(self, shards: list[int], num_workers: int) -> None:
        self.total = len(shards)
        self._left = deque(shards)
        self._in_hand: list[list[int]] = [[] for _ in range(num_workers)]

    def take(self, rank: int) -> int | Literal["later"] | None:
        """The next shard for a worker; None where none is left for anyone."""
        if not self._left:
            return None
        mine = self._in_hand[rank]
        unmade = len(self._left) + sum(len(shards) for shards in self._in_hand)
        share = math.ceil(unmade / len(self._in_hand))
        # Who holds none is never sent away: it would wait for others to end, and nobody would tell it.
        if mine and len(mine) >= share:
            return LATER
        shard = self._left.popleft()
        mine.append(shard)
        return shard

    def made(self, rank: int, shard: int) -> None:
        """A worker has written a shard."""
        self._in_hand[rank].remove(shard)

    def num_made(self) -> int:
        """How many are written."""
        return self.total - len(self._left) - sum(len(shards) for shards in self._in_hand)

    def in_hand(self, rank: int) -> list[int]:
        """What a worker is making, the oldest first."""
        return list(self._in_hand[rank])
