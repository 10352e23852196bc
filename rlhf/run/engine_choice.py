"""Which engine a stage is made with, where its config leaves the choice open (`engine: auto`).

Two engines' scores differ in their last digits, so what one has begun no other goes on with unasked: the
shards of a stage are of one engine, and so are all that a judge says in one run. An artifact's identity names
the engine that made it; `auto` is content with whichever that was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlhf.config.choices import Engine
from rlhf.data.shards import fsync_dir, write_atomic
from rlhf.errors import RunChanged
from rlhf.run.artifact import Artifact
from rlhf.run.commit import MANIFEST, damaged
from rlhf.run.manifest import read_identity, read_manifest

ConfigT = TypeVar("ConfigT")

NAMED = (Engine.vllm, Engine.transformers)
"""What `auto` may come to."""
_PINNED = ".engine"
"""In the folder of unfinished work: the engine that its shards are of. Removed when the stage is finished."""


def pin_engine(partial: Path, engine: Engine) -> Engine:
    """Say that a stage's shards are made with `engine`, unless another worker has said so of another one.

    Returns:
        the engine that was said first, which is the stage's.
    """
    own = partial / f"{_PINNED}.{socket.gethostname()}.{os.getpid()}"
    write_atomic(own, engine.value.encode())
    # Under its name it is there with all that it says or not at all, and one worker is first.
    with contextlib.suppress(FileExistsError):
        _link_or_create(own, partial / _PINNED)
    own.unlink()
    fsync_dir(partial)
    pinned = pinned_engine(partial)
    assert pinned is not None, "it was pinned a moment ago"
    return pinned


def pinned_engine(partial: Path) -> Engine | None:
    """The engine that a stage's shards are of; None where no worker has chosen one.

    Raises:
        RunChanged: the file that says so is damaged.
    """
    path = partial / _PINNED
    try:
        word = path.read_text(encoding="utf-8")
        if word not in [engine.value for engine in NAMED]:
            raise ValueError(f"{word!r} is no engine")
        return Engine(word)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), partial) from None


def _link_or_create(own: Path, path: Path) -> None:
    """Give a file a second name; where the file system has no links, write it there.

    Raises:
        FileExistsError: that name is taken.
    """
    try:
        os.link(own, path)
    except FileExistsError:
        raise
    except OSError:
        with open(path, "x", encoding="utf-8") as file:
            file.write(own.read_text(encoding="utf-8"))
            file.flush()
            os.fsync(file.fileno())


def unpin(partial: Path) -> None:
    """Leave the choice open again: nothing has been made."""
    (partial / _PINNED).unlink(missing_ok=True)


def is_open(config: Any) -> bool:
    """Whether a stage's config leaves the engine open."""
    return getattr(config, "engine", None) is Engine.auto


def with_engine(config: ConfigT, engine: Engine | None) -> ConfigT:
    """A stage's config with the engine that is settled; None leaves it open."""
    if engine is None:
        return config
    return dataclasses.replace(config, engine=engine)  # type: ignore[type-var]


def as_begun(config: ConfigT, made: Iterable[Artifact]) -> ConfigT:
    """A config of judges with the engine that a run has asked them in; as it is where it has asked none yet.

    Args:
        config: the section `score`.
        made: what the run has made or found, in order.
    """
    return with_engine(config, engine_of_scores(made)) if is_open(config) else config


def engine_of_work(final: Path, partial: Path) -> Engine | None:
    """The engine that a stage was finished with, or begun; None where there is none, or it is damaged.

    What is damaged is refused by whoever opens it.
    """
    try:
        if (final / MANIFEST).exists():
            return _named(read_manifest(final)["identity"])
        # Without a shard nothing binds.
        if not any(partial.glob("shard_*")):
            return None
        return _named(begun_identity(partial))
    except RunChanged:
        return None


def begun_identity(partial: Path) -> dict[str, Any]:
    """What the unfinished work in a folder is to become, with the engine that its shards are of.

    Raises:
        RunChanged: the record is damaged.
    """
    return identity_with(read_identity(partial), pinned_engine(partial))


def engine_of_judge(stage: str, inputs: Mapping[str, Artifact], made: Iterable[Artifact]) -> Engine | None:
    """The engine in which the judge of a stage was asked before in this run; None for the first time.

    Args:
        stage: in which it was asked.
        inputs: of the stage; other stages than those with a `judge` have no such engine.
        made: what the run has made or found so far.
    """
    judge = inputs.get("judge")
    if judge is None or judge.digest is None:
        return None
    for artifact in made:
        identity = artifact.record.get("identity")
        if identity and identity["stage"] == stage and identity["inputs"].get("judge") == judge.digest:
            engine = _named(identity)
            if engine is not None:
                return engine
    return None


def engine_of_scores(made: Iterable[Artifact]) -> Engine | None:
    """The engine of a run's scores: that of its first judge, else what its rules' artifacts say.

    Args:
        made: what the run has made or found, in order.
    """
    of_rules = None
    for artifact in made:
        identity = artifact.record.get("identity")
        if not identity or identity["stage"] != "score":
            continue
        engine = _named(identity)
        if engine is not None and "judge" in identity["inputs"]:
            return engine
        of_rules = of_rules or engine
    return of_rules


def identities_of(identity: dict[str, Any]) -> list[dict[str, Any]]:
    """What an artifact may be that a stage is content with: as it is told, or of any engine for `auto`."""
    if identity["config"].get("engine") != Engine.auto.value:
        return [identity]
    return [identity, *(identity_with(identity, engine) for engine in NAMED)]


def identity_with(identity: dict[str, Any], engine: Engine | None) -> dict[str, Any]:
    """An identity that names the engine which made it; None, or a named one, leaves it as it is."""
    if engine is None or identity["config"].get("engine") != Engine.auto.value:
        return identity
    return identity | {"config": identity["config"] | {"engine": engine.value}}


def _named(identity: Mapping[str, Any]) -> Engine | None:
    recorded = identity["config"].get("engine")
    for engine in NAMED:
        if engine.value == recorded:
            return engine
    return None
