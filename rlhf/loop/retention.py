"""Which policies' weights a run still needs, and which it may do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.choices import KeptPolicies
from rlhf.errors import StorageError
from rlhf.loop.figures import Row, best
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.other_runs import needed_beside
from rlhf.run.plan import Run
from rlhf.run.removal import Leaving, obstacle, remove, size_text, sizes_of, weights_of


@dataclass(frozen=True)
class Policy:
    """A policy that a run has trained; `kept` says why its weights stay, None where they may go."""

    iteration: int
    name: str
    artifact: Artifact
    kept: str | None

    def leaving(self) -> Leaving:
        """Its weights as something that goes, with what cannot be done without them."""
        t = self.iteration
        readers = f"iteration_{t:03d}/held_out/generate, and generate, reference and dpo of iteration {t + 1}"
        then = (
            f"chat with π{t}, or load its model by path",
            f"redo {readers}, unless {self.name} is trained again first",
            f"a run that has this one in its reuse trains {self.name} itself",
        )
        return Leaving(self.name, f"the weights of π{t}", weights_of(self.artifact), self.artifact, then)


def trained_policies(
    folder: Path, artifacts: Mapping[str, Artifact], rows: Sequence[Row], keep: KeptPolicies
) -> list[Policy]:
    """The policies that a run has trained so far, the first one first.

    π0 is none of them: what was given or made by `sft` anchors every iteration to come.

    Args:
        folder: of the run, without links in its path.
        artifacts: its finished stages by name.
        rows: the figures of its policies, π0's first.
        keep: what is wanted.
    """
    trained = {}
    for name, artifact in artifacts.items():
        iteration, _, stage = name.partition("/")
        if stage == "dpo":
            trained[int(iteration.removeprefix("iteration_"))] = artifact
    policies = []
    for t in sorted(trained):
        name = f"iteration_{t:03d}/dpo"
        kept = _why_kept(t, max(trained), artifacts, rows)
        if kept is None and keep is KeptPolicies.all:
            kept = "every policy is wanted"
        if kept is None:
            kept = needed_beside(folder, name)
        policies.append(Policy(t, name, trained[t], kept))
    return policies


def _why_kept(t: int, last: int, artifacts: Mapping[str, Artifact], rows: Sequence[Row]) -> str | None:
    if t == last:
        return "the last one, from which another iteration goes on"
    if t not in {row.iteration for row in rows}:
        return "not evaluated, so that nobody knows yet whether it is the best one"
    # Of policies to come none makes an earlier one the best that is not the best now.
    if rows[best(rows)].iteration == t:
        return "the best one, from which the export is made"
    here, after = f"iteration_{t:03d}", f"iteration_{t + 1:03d}"
    samples = f"{after}/preferences" if f"{after}/preferences" in artifacts else f"{after}/generate"
    for reader in (f"{here}/held_out/generate", samples, f"{after}/reference", f"{after}/dpo"):
        if reader not in artifacts:
            return f"{reader} has yet to read it"
    return None


def drop_policies(run: Run, rows: Sequence[Row]) -> None:
    """Remove the weights that a run's `keep_policies` does not want any more; what cannot be removed stays,
    and is said.

    Args:
        run: held by this process.
        rows: the figures of all policies up to now.
    """
    keep = run.cfg.keep_policies
    if run.planning or run.only is not None or keep is KeptPolicies.all:
        return
    for policy in trained_policies(run.folder, run.made, rows, keep):
        leaving = policy.leaving()
        if policy.kept is not None or not leaving.paths:
            continue
        reason = obstacle(run.folder, leaving)
        (size,) = sizes_of([leaving])
        try:
            if reason is None:
                remove(leaving, f"keep_policies={keep.value}")
        except StorageError as error:
            reason = str(error)
        if reason is not None:
            run.say_once(f"  ! {policy.name}: {leaving.what} could not be removed: {reason}")
            continue
        run.made[policy.name] = open_artifact(policy.artifact.path)
        run.say(
            f"  − {policy.name:<32}          {leaving.what} removed (keep_policies={keep.value}), "
            f"{size_text(size.freed)} free"
        )
