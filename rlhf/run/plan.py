"""The run folder: artifacts, fingerprints, commit, and the plan made before anything runs.

An artifact is complete when its final folder exists. A stage works in `.<stage>.partial/`; `artifact.json` is written
last, then the folder is renamed. Whether a stage must run is decided by its fingerprint: schema version, stage, seed,
own config section, and the *content digests* of its inputs.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from rlhf.config.schema import UNCOMPARED, Config
from rlhf.data.digest import digest_of, digest_of_files, sealed
from rlhf.data.shards import damaged_shards, shard_name, sum_counts, write_atomic
from rlhf.errors import RunChanged, UserError
from rlhf.models.folder import own_code
from rlhf.run.commit import check_files, commit, damaged, discard, read_sealed, take, tidy
from rlhf.run.console import Console
from rlhf.run.job import Job, Kind, Outcome

SCHEMA = 1
UNKNOWN = "unknown until earlier stages have run"
"""A config value that a plan cannot know yet."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder, or a file or folder inside it, or something from outside the run.

    `digest` is None while a plan is made and the stage has yet to run; `stale` says that a plan found it, or what it
    was made of, changed. `root` is the finished stage's folder, None of something from outside.
    """

    path: Path
    digest: str | None
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    stale: bool = False
    root: Path | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What the stage counted."""
        return dict(self.record.get("counts", {}))

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        return dict(self.record.get("metrics", {}))

    def part(self, name: str) -> Artifact:
        """A file or folder inside this artifact, with a digest of its own."""
        if self.digest is None:
            return dataclasses.replace(self, path=self.path / name)
        digest = digest_of_files(self.record["files"], name)
        return dataclasses.replace(self, path=self.path / name, digest=digest)


class Launcher(Protocol):
    """Starts a stage's processes and waits for them."""

    def launch(self, job: Job, kind: Kind, shards: list[int]) -> Outcome:
        """Run one stage attempt; returns rank 0's outcome."""
        ...


class AloneDone(Exception):
    """The one stage that was asked for is finished."""


def plain(value: Any) -> Any:
    """A config value as plain JSON: dataclasses become dicts, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def differences(there: Any, now: Any, name: str = "") -> list[str]:
    """Lines that say where two JSON values differ."""
    if isinstance(there, dict) and isinstance(now, dict):
        lines = []
        for key in sorted(there.keys() | now.keys()):
            lines += differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if there == now else [f"{name}: {_shown(there)} there, {_shown(now)} now"]


def _shown(value: Any) -> str:
    """A value as text; of a digest its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else repr(value)


@dataclass
class Run:
    """One run folder and the stages in it, in the order the loop asks for them.

    With `planning`, `stage` runs nothing: it returns what is finished, marks what is not, and collects refusals.
    With `only`, every stage but that one must be finished already.
    """

    folder: Path
    cfg: Config
    launcher: Launcher | None = None
    console: Console | None = None
    planning: bool = False
    only: str | None = None
    elsewhere: str = "run_dir=<a new folder>"
    made: dict[str, Artifact] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    refusals: list[tuple[str, list[str]]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    _others: dict[str, Path] | None = field(default=None, repr=False)
    _trusted: set[str] = field(default_factory=set, repr=False)
    _verified: set[Path] = field(default_factory=set, repr=False)

    def stage(self, stage: str, name: str, config: dict[str, Any], inputs: dict[str, Artifact]) -> Artifact:
        """The artifact of one stage: taken when it is finished and unchanged, else made.

        Raises:
            RunChanged: it exists, made with other settings or inputs, or damaged; or an input is damaged.
            WorkerFailed: a process of the stage failed.
        """
        final = self.folder / name
        identity = self._identity(stage, config, inputs)
        found = self._elsewhere(final, identity)
        if found is not None:
            artifact = open_artifact(found) if self.planning else self._take(found, name, final)
        elif self.planning:
            artifact = self._plan(name, final, identity, inputs)
        else:
            artifact = self._finished(name, final, identity) or self._make(stage, name, final, identity, config, inputs)
        self.made[name] = artifact
        if name == self.only:
            raise AloneDone
        return artifact

    def verify(self, *artifacts: Artifact | None) -> None:
        """Hold the files of finished artifacts against their checksums, once; RunChanged names one that differs."""
        for artifact in artifacts:
            if artifact is not None and artifact.root is not None:
                files = {artifact.root / name: name for name in artifact.record["files"]}
                inside = {path for path in files if path.is_relative_to(artifact.path)} - self._verified
                check_files(artifact.root, artifact.record["files"], sorted(files[path] for path in inside))
                self._verified |= inside

    def _identity(self, stage: str, config: dict[str, Any], inputs: dict[str, Artifact]) -> dict[str, Any]:
        compared = {key: value for key, value in config.items() if key not in UNCOMPARED}
        digests = {key: artifact.digest for key, artifact in inputs.items()}
        return {"schema": SCHEMA, "stage": stage, "seed": self.cfg.seed, "config": compared, "inputs": digests}

    def _elsewhere(self, final: Path, identity: dict[str, Any]) -> Path | None:
        """A stage that a run of `reuse` has finished with the same fingerprint; own work begun goes before it."""
        if not self.cfg.reuse or final.exists() or _partial(final).exists() or None in identity["inputs"].values():
            return None
        if self._others is None:
            runs = [Path(run).expanduser().resolve() for run in self.cfg.reuse]
            manifests = [path for run in reversed(runs) for path in sorted(run.glob("**/artifact.json"))]
            self._others = {_fingerprint_of(path): path.parent for path in manifests}
        return self._others.get(digest_of(identity))

    def _finished(self, name: str, final: Path, identity: dict[str, Any]) -> Artifact | None:
        if not final.exists():
            self._check_partial(name, _partial(final), identity)
            return None
        artifact = open_artifact(final)
        tidy(final)  # a kill right after the commit left its working files
        changed = differences(artifact.record["identity"], identity)
        if changed and identity["stage"] == "export":
            discard(final)  # a view of what is finished: made anew when the figures on its card are
            return None
        if changed:
            raise RunChanged(self._refusal([(name, changed)], [name]))
        return artifact

    def _check_partial(self, name: str, partial: Path, identity: dict[str, Any]) -> None:
        changed = differences(read_sealed(partial / ".identity.json"), identity) if _has_begun(partial) else []
        if changed and _is_cheap(identity["stage"], partial):
            discard(partial)  # often the very thing whose settings had to change
        elif changed:
            where = str(partial.relative_to(self.folder))
            raise RunChanged(self._refusal([(f"{name} (unfinished)", changed)], [where]))

    def _plan(self, name: str, final: Path, identity: dict[str, Any], inputs: dict[str, Artifact]) -> Artifact:
        stale_input = any(artifact.stale for artifact in inputs.values())
        folder = final if final.exists() else _partial(final)
        if folder != final and not _has_begun(folder):
            self.pending.append(name)
            return Artifact(final, None, stale=stale_input)
        there = _read_manifest(final) if folder == final else read_sealed(folder / ".identity.json")
        there = there.get("identity", there)
        unknown = {key for key, digest in identity["inputs"].items() if digest is None}
        hidden = {"inputs": unknown, "config": {k for k, v in identity["config"].items() if v == UNKNOWN}}
        there, known = (
            each | {part: {k: v for k, v in each[part].items() if k not in keys} for part, keys in hidden.items()}
            for each in (there, identity)
        )
        changed = differences(there, known)
        if changed and folder != final and _is_cheap(identity["stage"], folder):
            changed = []
        if changed and not stale_input:
            self.refusals.append((name, changed))
        if changed or stale_input:
            self.stale.append(str(folder.relative_to(self.folder)))
            return Artifact(final, None, stale=True)
        if folder == final and not unknown:
            return open_artifact(final)
        self.pending.append(name)
        return Artifact(final, None)

    def _make(
        self,
        stage: str,
        name: str,
        final: Path,
        identity: dict[str, Any],
        config: dict[str, Any],
        inputs: dict[str, Artifact],
    ) -> Artifact:
        if self.only is not None and name != self.only:
            raise UserError(
                f"{self.only} alone cannot run: {name} in {self.folder} is not finished. "
                f"Run that stage first, or the whole loop: python -m rlhf.iterate run_dir={self.folder}"
            )
        assert self.launcher is not None, "a run without a launcher only plans"
        self.verify(*inputs.values())
        partial = _partial(final)
        for leftover in ("gone", "taken"):  # of an attempt that was killed
            shutil.rmtree(final.with_name(f".{final.name}.{leftover}"), ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        write_atomic(partial / ".identity.json", sealed(identity))
        for path in damaged_shards(partial):
            self.say(f"  ! {path}: not what was written; it is thrown away and made again")
            path.unlink()
        compute = plain(self.cfg.compute) | {"report_to": list(self.cfg.report_to)}
        paths = {key: str(artifact.path) for key, artifact in inputs.items()}
        job = Job(stage, name, config, paths, str(partial), self.cfg.seed, compute)
        module = importlib.import_module(f"rlhf.stages.{stage}")
        cut = range(module.num_shards(job) if hasattr(module, "num_shards") else 0)
        shards = [index for index in cut if not (partial / shard_name(index)).exists()]
        started = time.monotonic()
        if config.get("trust_remote_code"):
            self._say_code(paths.values())
        if self.console is not None:
            self.console.begin(name)
        try:
            outcome = self.launcher.launch(job, module.KIND, shards)
        except UserError:
            if _is_cheap(stage, partial):
                discard(partial)  # nothing half-written stays
            raise
        counts = outcome.counts | sum_counts(partial)
        seconds = time.monotonic() - started
        commit(partial, final, identity, job, counts, outcome.metrics, seconds)
        artifact = self._own(final)
        if self.console is not None:
            self.console.end(name, seconds, artifact.counts | artifact.metrics)
        return artifact

    def _take(self, found: Path, name: str, final: Path) -> Artifact:
        take(found, open_artifact(found).record, final)
        self.say(f"  = {name:<32}          taken from {found}")
        return self._own(final)

    def _own(self, final: Path) -> Artifact:
        artifact = open_artifact(final)
        self._verified.update(final / file for file in artifact.record["files"])
        return artifact

    def _say_code(self, paths: Iterable[str]) -> None:
        """Say, once per model, that Python code which came with it is about to run."""
        for path in paths:
            if path not in self._trusted and (code := own_code(path)):
                self._trusted.add(path)
                self.say(f"  ! runs the Python code of {path} (trust_remote_code=true): {', '.join(code.values())}")

    def say(self, text: str) -> None:
        """Tell the person who watches."""
        if self.console is not None:
            self.console.say(text)

    def refuse_changes(self) -> None:
        """Raise for every change the plan found, all at once.

        Raises:
            RunChanged: a finished or begun stage was made with other settings or inputs.
        """
        if self.refusals:
            raise RunChanged(self._refusal(self.refusals, self.stale))

    def _refusal(self, refusals: list[tuple[str, list[str]]], stale: list[str]) -> str:
        lines = [f"{self.folder} holds work made with other settings; nothing was run and nothing was touched."]
        for name, changed in refusals:
            lines += [f"  {name}:"] + [f"    {line}" for line in changed]
        folders = " ".join(str(self.folder / name) for name in stale)
        lines += [
            "Ways out:",
            "  put the old values back, and the run goes on;",
            f"  keep this work as it is and begin anew elsewhere: {self.elsewhere};",
            f"  redo what the change touches, losing it: rm -r {folders}",
        ]
        return "\n".join(lines)


def _kind(stage: str) -> Kind:
    kind = importlib.import_module(f"rlhf.stages.{stage}").KIND
    assert isinstance(kind, Kind), stage
    return kind


def _is_cheap(stage: str, partial: Path) -> bool:
    """Whether unfinished work is that of seconds, or none at all."""
    return not _has_work(partial) or _kind(stage) is Kind.single


def _has_work(partial: Path) -> bool:
    return any(partial.glob("shard_*")) or any(partial.glob("checkpoint-*"))


def _has_begun(partial: Path) -> bool:
    return (partial / ".identity.json").is_file() or _has_work(partial)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What `commit` wrote; damage, and file names that lead out of the folder, are refused."""
    path = folder / "artifact.json"
    record = read_sealed(path)
    if not isinstance(files := record.get("files"), dict) or not {"identity", "digest"} <= record.keys():
        raise damaged(path, "it has no files, identity or digest", folder)
    if bare := [name for name, entry in files.items() if set(entry or ()) != {"bytes", "sha256"}]:
        raise damaged(path, f"it has no size or checksum of {bare}", folder)
    if wrong := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise damaged(path, f"it names files outside its folder: {wrong}", folder)
    return record


def open_artifact(folder: Path) -> Artifact:
    """A finished artifact; RunChanged where its manifest is damaged, or a file is missing or of another size.

    What the files hold is looked at by `Run.verify`, before they are read.
    """
    record = _read_manifest(folder)
    for name, entry in record["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            there = "missing" if size is None else f"{size} bytes"
            raise damaged(path, f"{there}, but the manifest says {entry['bytes']} bytes", folder)
    return Artifact(folder, record["digest"], record, root=folder)


def _fingerprint_of(manifest: Path) -> str:
    """What identifies a finished artifact's recipe and inputs; empty where the manifest cannot be read."""
    try:
        return digest_of(_read_manifest(manifest.parent)["identity"])
    except RunChanged:
        return ""
