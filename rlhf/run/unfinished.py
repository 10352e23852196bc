"""The folder that a stage works in, `.STAGE.partial/`, and what earlier attempts have left there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.digest import sealed
from rlhf.data.shards import damaged_shards, make_folders, write_atomic
from rlhf.run import engine_choice
from rlhf.run.attempt_folder import end_attempts, unfinished_checkpoints
from rlhf.run.console import phase
from rlhf.run.job import ANSWERS, KEPT_ANSWERS, Kind
from rlhf.run.stage_table import STAGES


def partial_of(final: Path) -> Path:
    """The folder in which a stage works that will become `final`."""
    return final.with_name(f".{final.name}.partial")


def has_begun(partial: Path) -> bool:
    """Whether an attempt has worked there, or was about to."""
    identity = partial / ".identity.json"
    return identity.is_file() or has_work(partial)


def has_work(partial: Path) -> bool:
    """Whether there is anything that would be lost with the folder."""
    has_shards = any(partial.glob("shard_*"))
    # Answers that were paid for, before the first shard is whole.
    has_answers = any(partial.glob(f"{KEPT_ANSWERS}/*"))
    return has_shards or has_answers or any(unfinished_checkpoints(partial))


def is_cheap(stage: str, partial: Path) -> bool:
    """Whether unfinished work is that of seconds, or none at all."""
    if STAGES[stage].kind is Kind.single:
        return True
    return not has_work(partial)


def prepared(final: Path, identity: Mapping[str, Any], say: Callable[[str], None]) -> Path:
    """The folder a stage works in, with its whole shards of an earlier attempt and nothing damaged.

    Args:
        final: where the finished stage will be.
        identity: of what is to be made.
        say: told of every shard that is thrown away.
    """
    for leftover in ("gone", "taken"):  # of an attempt that was killed
        shutil.rmtree(final.with_name(f".{final.name}.{leftover}"), ignore_errors=True)
    partial = partial_of(final)
    make_folders(partial)
    end_attempts(partial)
    write_atomic(partial / ".identity.json", sealed(identity))
    # A stage of one process looks at all that it has made, at the end; others write shards and no more.
    are_read = STAGES[identity["stage"]].kind is Kind.single
    with phase("taking the checksums of what an earlier attempt has kept"):
        damaged = damaged_shards(partial, are_read) + damaged_shards(partial / ANSWERS, are_read)
        throw_away(damaged, say)
        for path in damaged:
            # What lies beside a shard, under its name, is made with it.
            (partial / path.name).unlink(missing_ok=True)
    if not has_work(partial):
        engine_choice.unpin(partial)
    return partial


def throw_away(damaged: Iterable[Path], say: Callable[[str], None]) -> None:
    """Remove shards that are not what was written, and say so."""
    for path in damaged:
        say(f"  ! {path}: not what was written; it is thrown away and made again")
        path.unlink()
