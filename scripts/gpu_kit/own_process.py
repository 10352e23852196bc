"""A piece of a step in a process of its own, so that the memory it held is free for the next."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

from gpu_kit.step import die_with_parent

OUT_OF_MEMORY = "out of memory"


class PieceError(Exception):
    """A piece failed; the text says how, and begins with `OUT_OF_MEMORY` where it was that."""


def in_a_process(work: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """What `work(*arguments)` gives in a fresh process.

    Raises:
        PieceError: it raised, died, or took longer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(max(1.0, seconds)):
            raise PieceError(f"not done after {seconds:.0f} s")
        is_done, answer = ours.recv()
    except EOFError:
        process.join(5)
        raise PieceError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join(5)
    if not is_done:
        raise PieceError(answer)
    return answer


def _send(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    try:
        pipe.send((True, work(*arguments)))
    except BaseException as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".replace("\n", " ")[:400]
        if "out of memory" in str(error).lower():
            text = f"{OUT_OF_MEMORY}: {text}"
        pipe.send((False, text))
