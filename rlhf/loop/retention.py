"""Which policies' weights a run still needs, and which it may do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.choices import TRAINED, KeptPolicies
from rlhf.errors import StorageError
from rlhf.loop.figures import Row, best
from rlhf.loop.pair_pool import asked_anew
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.other_runs import needed_beside
from rlhf.run.plan import Run
from rlhf.run.removal import Leaving, obstacle, remove, size_text, sizes_of, weights_of


@dataclass(frozen=True)
class Policy:
    """A policy that a run has trained; `kept` says why its weights stay, None where they may go.

    `readers` are the stages that read it, of its own iteration and of the next one.
    """

    iteration: int
    name: str
    artifact: Artifact
    kept: str | None
    readers: tuple[str, ...]

    def leaving(self) -> Leaving:
        """Its weights as something that goes, with what cannot be done without them."""
        t = self.iteration
        own, *of_the_next = self.readers
        *others, last = (reader.partition("/")[2] for reader in of_the_next)
        read_by = f"{own}, and {', '.join(others)} and {last} of iteration {t + 1}"
        then = (
            f"chat with π{t}, or load its model by path",
            f"redo {read_by}, unless {self.name} is trained again first",
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
    stage_of: dict[int, str] = {}
    for name in artifacts:
        iteration, _, stage = name.partition("/")
        if stage in TRAINED:
            stage_of[int(iteration.removeprefix("iteration_"))] = stage
    policies = []
    for t in sorted(stage_of):
        name = f"iteration_{t:03d}/{stage_of[t]}"
        readers = _readers(t, name, artifacts)
        missing = [reader for reader in readers if reader not in artifacts]
        kept = _why_kept(t, t == max(stage_of), missing, rows)
        if kept is None and keep is KeptPolicies.all:
            kept = "every policy is wanted"
        if kept is None:
            kept = needed_beside(folder, name)
        policies.append(Policy(t, name, artifacts[name], kept, readers))
    return policies


def _readers(t: int, name: str, artifacts: Mapping[str, Artifact]) -> tuple[str, ...]:
    """The stages that read π_t, trained by the stage `name`: its held-out responses first, the training of
    the next policy last.

    Which log-probabilities that training asked for is said by its manifest: SimPO has none, INPO and replay
    have several.
    """
    here, after = f"iteration_{t:03d}", f"iteration_{t + 1:03d}"
    _, _, stage = name.partition("/")
    sampled = f"{after}/preferences" if f"{after}/preferences" in artifacts else f"{after}/generate"
    readers = [f"{here}/held_out/generate", sampled]
    score = artifacts.get(f"{after}/score")
    policy = artifacts[name].part("model").digest
    if score is not None and score.record["identity"]["inputs"].get("judge") == policy:
        readers.append(f"{after}/score")  # the policy judges itself
    training = f"{after}/{stage}"
    if training in artifacts:
        readers += [f"{after}/{reference}" for reference in asked_anew(artifacts[training])]
    return (*readers, training)


def _why_kept(t: int, is_last: bool, missing: Sequence[str], rows: Sequence[Row]) -> str | None:
    if is_last:
        return "the last one, from which another iteration goes on"
    if t not in {row.iteration for row in rows}:
        return "not evaluated, so that nobody knows yet whether it is the best one"
    # Of policies to come none makes an earlier one the best that is not the best now.
    if rows[best(rows)].iteration == t:
        return "the best one, from which the export is made"
    return f"{missing[0]} has yet to read it" if missing else None


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
