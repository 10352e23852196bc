"""What of a run can be read: files that are what their manifests say, of a schema that is known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from rlhf.errors import RunChanged
from rlhf.run.artifact import Artifact
from rlhf.run.plan import SCHEMA
from rlhf.run.verified import Verified
from rlhf.view.run_folder import RunFolder


def sound(run: RunFolder, read: Callable[[RunFolder], Iterable[Artifact]]) -> RunFolder:
    """A run without the stages that cannot be read; `damaged` names them, with the reason.

    Args:
        run: as it was opened, by the sizes of its files alone.
        read: gives the artifacts that will be read.
    """
    verified = Verified()
    artifacts = dict(run.artifacts)
    damaged = dict(run.damaged)
    names = {artifact.path: name for name, artifact in run.artifacts.items()}
    for artifact in read(run):
        reason = _fault(artifact, verified)
        if reason is not None:
            name = names[artifact.path]
            artifacts.pop(name, None)
            damaged[name] = reason
    return replace(run, artifacts=artifacts, damaged=damaged)


def _fault(artifact: Artifact, verified: Verified) -> str | None:
    schema = artifact.record["identity"]["schema"]
    if schema != SCHEMA:
        return (
            f"{artifact.path} was made by another version, whose files are of schema {schema}; this one "
            f"reads schema {SCHEMA}. Look at the run with the version that made it."
        )
    try:
        verified.check([artifact])
    except RunChanged as error:
        return str(error)
    return None
