"""The only worker of a stage that runs in the process which measures it."""

from __future__ import annotations

from collections.abc import Iterator


class OneWorker:
    """`rlhf.run.job.Worker` without a driver: it makes all shards, and nobody watches."""

    rank = 0
    world_size = 1
    num_threads = 1

    def __init__(self, num_shards: int) -> None:
        self.num_shards = num_shards

    def shards(self) -> Iterator[int]:
        """All of them."""
        yield from range(self.num_shards)

    def shards_ahead(self) -> Iterator[int | None]:
        """All of them: there is nobody else."""
        yield from range(self.num_shards)

    def made(self, index: int) -> None:
        """Nobody counts."""

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Nobody watches."""

    def say(self, text: str) -> None:
        """Nobody listens."""

    def keep(self, engine: object) -> None:
        """It is kept by who measures."""
