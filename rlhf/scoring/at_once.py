"""Many calls on their way at once, from code that is not async itself."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Clock:
    """Time as retries see it; tests have one that takes none."""

    def now(self) -> float:
        """Seconds, from any beginning."""
        return time.monotonic()

    async def sleep(self, seconds: float, given_up: asyncio.Event) -> None:
        """Wait, but no longer than until nothing is worth waiting for."""
        with suppress(TimeoutError):
            await asyncio.wait_for(given_up.wait(), seconds)


class AtOnce:
    """One event loop for all calls of a judge: what its clients hold open belongs to it."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        # Nothing that runs the loop once more (as `asyncio.Runner` does): who is collected may be so while
        # another loop runs.
        weakref.finalize(self, self._loop.close)
        self.given_up = asyncio.Event()
        """Set when a call has failed for good, so that others need not be tried again."""

    def run(
        self,
        call: Callable[[Item], Awaitable[Result]],
        items: Sequence[Item],
        done: Callable[[Item, Result], None],
    ) -> None:
        """Call for each item, so many at a time; `done` gets each result as soon as it is there.

        Where a call fails none is begun any more. Those on their way come to their end, since what they
        answer may have been paid for; then the first error is raised.
        """
        self._loop.run_until_complete(self._all(call, items, done))

    async def _all(
        self,
        call: Callable[[Item], Awaitable[Result]],
        items: Sequence[Item],
        done: Callable[[Item, Result], None],
    ) -> None:
        self.given_up = asyncio.Event()
        # One iterator for all workers: whoever is free takes the next.
        left = iter(items)
        errors: list[BaseException] = []

        async def work() -> None:
            for item in left:
                if errors:
                    return
                try:
                    done(item, await call(item))
                # Of any type: a rule is anybody's code.
                except Exception as error:
                    errors.append(error)
                    self.given_up.set()

        workers = min(self._concurrency, len(items))
        await asyncio.gather(*(work() for _ in range(workers)))
        if errors:
            raise errors[0]
