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
    made yet. On a cluster workers join and leave while it goes on, and a shard may be in two workers' hands:
    the one who has made it first counts.
    """

    def __init__(self, shards: list[int], num_workers: int = 0) -> None:
        self.total = len(shards)
        self._left = deque(shards)
        self._made: set[int] = set()
        self._in_hand: dict[int, list[int]] = {rank: [] for rank in range(num_workers)}

    def join(self, rank: int) -> None:
        """One more worker."""
        self._in_hand[rank] = []

    def leave(self, rank: int) -> list[int]:
        """A worker is gone: what it has not made, and nobody else makes, is next; returns that."""
        lost = []
        for shard in self._in_hand.pop(rank):
            if shard not in self._made and not self._makers(shard):
                lost.append(shard)
        self._left.extendleft(reversed(lost))
        return lost

    def take(self, rank: int) -> int | Literal["later"] | None:
        """The next shard for a worker; None where none is left for anyone."""
        if not self._left:
            return None
        mine = self._in_hand[rank]
        unmade = self.total - len(self._made)
        share = math.ceil(unmade / len(self._in_hand))
        # Who holds none is never sent away: it would wait for others to end, and nobody would tell it.
        if mine and len(mine) >= share:
            return LATER
        shard = self._left.popleft()
        mine.append(shard)
        return shard

    def take_again(self, rank: int, shard: int) -> None:
        """Give a worker a shard that another one has in hand."""
        self._in_hand[rank].append(shard)

    def in_one_hand(self) -> list[tuple[int, int]]:
        """Shards that one worker alone is making, each with its rank."""
        found = []
        for rank, shards in self._in_hand.items():
            for shard in shards:
                if shard not in self._made and len(self._makers(shard)) == 1:
                    found.append((shard, rank))
        return sorted(found)

    def made(self, rank: int, shard: int) -> bool:
        """A worker has written a shard; False where another one had before."""
        self._in_hand[rank].remove(shard)
        if shard in self._made:
            return False
        self._made.add(shard)
        return True

    def num_made(self) -> int:
        """How many are written."""
        return len(self._made)

    def in_hand(self, rank: int) -> list[int]:
        """What a worker is making, the oldest first."""
        return list(self._in_hand[rank])

    def _makers(self, shard: int) -> list[int]:
        return [rank for rank, shards in self._in_hand.items() if shard in shards]
