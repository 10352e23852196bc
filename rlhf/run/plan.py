"""The run folder as the loop asks for it: what is finished, what must run, and the plan made before anything
runs.

An artifact is complete when its final folder exists. A stage works in `.<stage>.partial/`; `artifact.json` is
written last, then the folder is renamed. Whether a stage must run is decided by its fingerprint: schema
version, stage, seed, own config, and the *content digests* of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlhf.config.fields import compared, filled
from rlhf.config.overrides import iterate_command
from rlhf.config.schema import Config
from rlhf.config.stage_configs import StageCompute
from rlhf.data.digest import digest_of
from rlhf.data.files import resolved
from rlhf.data.json_text import finite
from rlhf.data.shards import sum_counts
from rlhf.errors import RunChanged, StorageError, UserError, one_line
from rlhf.models.folder import own_code
from rlhf.run import engine_choice
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.attempts import found_budget, run_to_the_end
from rlhf.run.commit import MANIFEST, ShardsDamaged, commit, discard, take, tidy
from rlhf.run.console import Console, phase
from rlhf.run.job import JUDGE_INPUT, Job, Kind, Outcome
from rlhf.run.lock import require_ours, still_ours
from rlhf.run.manifest import read_identity, read_manifest
from rlhf.run.owner import require_own_code
from rlhf.run.refusal import changes_of, known_differences, refusal
from rlhf.run.removed import require_present
from rlhf.run.reuse import has_gone, reusable_stages
from rlhf.run.stage_table import STAGES, needs_engine
from rlhf.run.stopwatch import stopwatch
from rlhf.run.unfinished import has_begun, is_cheap, partial_of, prepared, throw_away
from rlhf.run.verified import Verified

SCHEMA = 1
"""Version of what an identity holds: raise it when equal settings would mean another artifact."""
_MOST_REPAIRS = 3
"""Attempts that may end in shards which are not what was written: after so many it is the disk."""

Identity = dict[str, Any]
"""Keys `schema`, `stage`, `seed`, `config`, and `inputs`: a digest by name, None of what has yet to be
made."""


class Launcher(Protocol):
    """Starts a stage's processes and waits for them."""

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt; returns rank 0's outcome."""
        ...


class AloneDone(Exception):
    """The one stage that was asked for is finished, or the one after which the run was to stop."""


@dataclass
class Run:
    """One run folder and the stages in it, in the order the loop asks for them.

    With `planning`, `stage` runs nothing: it returns what is finished, marks what is not, and collects
    refusals. With `only`, every stage but that one must be finished already. With `until`, no stage after
    that one is begun.
    """

    folder: Path
    cfg: Config
    launcher: Launcher | None = None
    console: Console | None = None
    planning: bool = False
    only: str | None = None
    until: str | None = None
    elsewhere: str = "run_dir=<a new folder>"
    token: str | None = None
    """Of the driver that holds the folder (`rlhf.run.lock.hold_run`); None where nobody can take it over."""
    publish: Callable[[], None] = lambda: None
    """Called when a training is finished, and when the figures of an iteration are written."""
    about_to_make: Callable[[str, Path], None] = lambda name, partial: None
    """Called before a stage runs, with its name and the folder it works in."""
    made: dict[str, Artifact] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    needing_engines: set[str] = field(default_factory=set)
    """Those of `pending` that load or train a model."""
    refusals: list[tuple[str, list[str]]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    _reusable: dict[str, Path] | None = field(default=None, repr=False)
    has_worked: bool = False
    """Whether a stage was made here, or taken, since this process began."""
    _said: set[str] = field(default_factory=set, repr=False)
    _verified: Verified = field(default_factory=Verified, repr=False)

    def stage(
        self,
        stage: str,
        name: str,
        config: Any,
        inputs: dict[str, Artifact],
        unrecorded: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        """The artifact of one stage: taken when it is finished and unchanged, else made.

        Args:
            stage: a name in `rlhf.run.stage_table.STAGES`.
            name: its folder in the run, such as `iteration_001/pair`.
            config: what it is told, of the class that the table names.
            inputs: finished artifacts, by the names that the stage knows them by.
            unrecorded: more of them, which are no part of its fingerprint: a finished stage is kept when they
                change.

        Raises:
            RunChanged: it exists, made with other settings or inputs, or damaged; or an input is damaged.
            RunInUse: another driver has taken the folder over.
            WorkerFailed: a process of the stage failed.
        """
        # Not right behind it: gates and figures first have their look at it.
        if self.until is not None and self.until in self.made:
            raise AloneDone
        self._require_ours()
        final = self.folder / name
        if engine_choice.is_open(config):
            begun_with = engine_choice.engine_of_work(final, partial_of(final))
            asked_before = engine_choice.engine_of_judge(stage, inputs, self.made.values())
            config = engine_choice.with_engine(config, begun_with or asked_before)
        identity = self._identity(stage, config, inputs)
        artifact = self._reused(name, final, identity)
        if artifact is None:
            if self.planning:
                artifact = self._plan(name, final, identity, inputs)
            else:
                artifact = self._finished(name, final, identity)
        if artifact is None:
            artifact = self._make(name, final, identity, config, inputs, unrecorded or {})
            if STAGES[stage].kind is Kind.training:
                self.publish()
        self.made[name] = artifact
        if name == self.only:
            raise AloneDone
        return artifact

    def verify(self, *artifacts: Artifact | None) -> None:
        """Hold finished artifacts against their manifests; RunChanged names a file that differs, is missing,
        or is of no manifest.

        Everything that reads a finished stage comes by here first. Checksums are taken once per process.
        """
        with phase("looking at the checksums of what will be read"):
            self._verified.check(artifacts)

    def recorded_config(self, pattern: str) -> dict[str, Any] | None:
        """What the first stage of such a name was told, finished or begun, here or in a run of `reuse`.

        None where there is none. Damaged records are left out: they are refused where the stage is asked for.

        Args:
            pattern: of names of stages, such as `iteration_*/held_out/generate`.
        """
        finished = f"{pattern}/{MANIFEST}"
        begun = f"{partial_of(Path(pattern))}/.identity.json"
        others = [resolved(run, "reuse") for run in self.cfg.reuse]
        for folder in (self.folder, *others):
            for path in sorted([*folder.glob(finished), *folder.glob(begun)]):
                try:
                    if path.name == MANIFEST:
                        identity = read_manifest(path.parent)["identity"]
                    else:
                        identity = read_identity(path.parent)
                except RunChanged:
                    continue
                return dict(identity["config"])
        return None

    def say(self, text: str) -> None:
        """Tell the person who watches."""
        if self.console is not None:
            self.console.say(text)

    def say_once(self, text: str) -> None:
        """Tell it the first time; an iteration that finds the same again is silent."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def refuse_changes(self) -> None:
        """Raise for every change the plan found, all at once.

        Raises:
            RunChanged: a finished or begun stage was made with other settings or inputs.
        """
        if self.refusals:
            raise self._refusal(self.refusals, self.stale)

    def _identity(self, stage: str, config: Any, inputs: dict[str, Artifact]) -> Identity:
        digests = {key: artifact.digest for key, artifact in inputs.items()}
        return {
            "schema": SCHEMA,
            "stage": stage,
            "seed": self.cfg.seed,
            # As a record has it, with which it is compared: JSON has no infinite numbers.
            "config": finite(compared(config)),
            "inputs": digests,
        }

    def _reused(self, name: str, final: Path, identity: Identity) -> Artifact | None:
        """The artifact of a stage that a run of `reuse` has finished with the same fingerprint.

        It is taken, or while planning only found. None where there is none; own work begun goes before it.

        Raises:
            RunChanged: it is damaged.
        """
        inputs_unknown = None in identity["inputs"].values()
        if not self.cfg.reuse or final.exists() or partial_of(final).exists() or inputs_unknown:
            return None
        if self._reusable is None:
            self._reusable = reusable_stages(self.cfg.reuse, self.say)
        fingerprints = [digest_of(each) for each in engine_choice.identities_of(identity)]
        fingerprint = next((each for each in fingerprints if each in self._reusable), None)
        if fingerprint is None:
            return None
        source = self._reusable[fingerprint]
        try:
            require_own_code(source, self.cfg)
            found = open_artifact(source)
            if self.planning:
                return found
            take(source, found.record, final)
        except (RunChanged, FileNotFoundError):
            if not has_gone(source, fingerprint):
                raise
            self.say(f"  ! {source} was deleted or made again while it was taken: {name} is made here")
            return None
        self.has_worked = True
        artifact = self._own(final)
        if self.console is not None:
            self.console.done(name, artifact.record.get("seconds", 0.0))
        self.say(f"  = {name:<32}          taken from {source}")
        return artifact

    def _finished(self, name: str, final: Path, identity: Identity) -> Artifact | None:
        """The stage's artifact where it is finished; None where it has to be made.

        Raises:
            RunChanged: it was made with other settings or inputs, or is damaged.
        """
        if not final.exists():
            self._check_partial(name, partial_of(final), identity)
            return None
        artifact = open_artifact(final)
        tidy(final)  # a kill right after the commit left its working files
        changes = changes_of(artifact.record["identity"], identity)
        if changes and identity["stage"] == "export":
            discard(final)  # a view of what is finished: made anew when the figures on its card are
            return None
        if changes:
            raise self._refusal([(name, changes)], [name])
        return artifact

    def _check_partial(self, name: str, partial: Path, identity: Identity) -> None:
        if not has_begun(partial):
            return
        changes = changes_of(engine_choice.begun_identity(partial), identity)
        if changes and is_cheap(identity["stage"], partial):
            discard(partial)  # often the very thing whose settings had to change
        elif changes:
            folder = str(partial.relative_to(self.folder))
            raise self._refusal([(f"{name} (unfinished)", changes)], [folder])

    def _plan(self, name: str, final: Path, identity: Identity, inputs: dict[str, Artifact]) -> Artifact:
        """What a plan knows of a stage; adds it to `pending`, or to `refusals` and `stale`."""
        has_stale_input = any(artifact.stale for artifact in inputs.values())
        is_finished = final.exists()
        if not is_finished:
            require_present(name, inputs.values(), self.made.values())
        folder = final if is_finished else partial_of(final)
        if not is_finished and not has_begun(folder):
            self._add_pending(name, identity)
            return Artifact(final, None, stale=has_stale_input)
        if is_finished:
            recorded = read_manifest(final)["identity"]
        else:
            recorded = engine_choice.begun_identity(folder)
        changes = known_differences(recorded, identity)
        if changes and not is_finished and is_cheap(identity["stage"], folder):
            changes = []
        if changes and not has_stale_input:
            self.refusals.append((name, changes))
        if changes or has_stale_input:
            # What was made of something that changed is no change of its own, but it goes with it.
            self.stale.append(str(folder.relative_to(self.folder)))
            return Artifact(final, None, stale=True)
        if is_finished and None not in identity["inputs"].values():
            return open_artifact(final)
        self._add_pending(name, identity)
        return Artifact(final, None)

    def _add_pending(self, name: str, identity: Identity) -> None:
        self.pending.append(name)
        if needs_engine(identity["stage"], identity["config"]):
            self.needing_engines.add(name)

    def _make(
        self,
        name: str,
        final: Path,
        identity: Identity,
        config: Any,
        inputs: dict[str, Artifact],
        unrecorded: Mapping[str, Artifact],
    ) -> Artifact:
        """Run a stage and commit what it made."""
        self.has_worked = True
        if self.only is not None and name != self.only:
            raise UserError(
                f"{self.only} alone cannot run: {name} in {self.folder} is not finished. "
                f"Run that stage first, or the whole loop: {iterate_command(self.folder)}"
            )
        assert self.launcher is not None, "a run without a launcher only plans"
        self.verify(*inputs.values(), *unrecorded.values())
        partial = prepared(final, identity, self.say)
        stage = identity["stage"]
        recorded_paths = {key: str(artifact.path) for key, artifact in inputs.items()}
        other_paths = {key: str(artifact.path) for key, artifact in unrecorded.items()}
        paths = recorded_paths | other_paths
        compute = filled(
            StageCompute,
            self.cfg.compute,
            found_budget=found_budget(reversed(self.made.values()), stage),
        )
        job = Job(stage, name, config, paths, str(partial), self.cfg.seed, compute)
        if getattr(config, "trust_remote_code", False):
            self._announce_code(recorded_paths.values())
        if getattr(config, "trusted_judges", None):
            self._announce_code(other_paths[JUDGE_INPUT + judge] for judge in config.trusted_judges)
        self.about_to_make(name, partial)
        if self.console is not None:
            self.console.begin(name)
        seconds_of_all_attempts = self._work(job, final, identity)
        artifact = self._own(final)
        if self.console is not None:
            self.console.end(name, seconds_of_all_attempts, artifact.counts | artifact.metrics)
        return artifact

    def _work(self, job: Job[Any], final: Path, identity: Identity) -> float:
        """Do the work of a stage and commit it; returns the seconds of all its attempts.

        Raises:
            StorageError: the disk gives back other bytes than were written, again and again.
        """
        assert self.launcher is not None, "a run without a launcher only plans"
        partial = job.out_path
        for _ in range(_MOST_REPAIRS):
            try:
                with stopwatch(partial) as seconds:
                    outcome = run_to_the_end(self.launcher, job, self.say)
                    counts = outcome.counts | sum_counts(partial)
            except UserError:
                # Not where another driver has taken over: then it is that one's.
                if is_cheap(job.stage, partial) and (
                    self.token is None or still_ours(self.folder, self.token)
                ):
                    discard(partial)  # nothing half-written stays
                raise
            spent = seconds()
            identity = engine_choice.identity_with(identity, engine_choice.pinned_engine(partial))
            known = self._verified.by_inode
            self._require_ours()
            try:
                with phase("taking checksums of what was made"):
                    commit(
                        partial,
                        final,
                        identity,
                        job,
                        counts,
                        outcome.metrics,
                        spent,
                        known,
                        self._require_ours,
                    )
            except ShardsDamaged as error:
                throw_away(error.paths, self.say)
            else:
                return spent
        raise StorageError(
            f"{partial}: {_MOST_REPAIRS} times in a row the disk gave back other bytes than were written, "
            "and nothing of it was used. Look at the disk (dmesg, smartctl), then give the same command "
            "again, which looks at what is kept, or one with a run_dir on another disk."
        )

    def _require_ours(self) -> None:
        """Go no further where another driver has taken the folder over: RunInUse."""
        if self.token is not None and not self.planning:
            require_ours(self.folder, self.token)

    def _own(self, final: Path) -> Artifact:
        """An artifact that this process made or took: its files need no second look."""
        artifact = open_artifact(final)
        self._verified.add(artifact)
        return artifact

    def _announce_code(self, paths: Iterable[str]) -> None:
        """Say, once per model, that Python code which came with it is about to run."""
        for path in paths:
            code = own_code(path)
            if code:
                names = one_line(", ".join(code.values()))
                self.say_once(f"  ! runs the Python code of {path} (trust_remote_code=true): {names}")

    def _refusal(self, changes: list[tuple[str, list[str]]], stale: list[str]) -> RunChanged:
        return refusal(self.folder, changes, stale, self.elsewhere)
