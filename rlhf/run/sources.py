"""What a run takes from outside: models and data files, from a folder, a file, or the Hub.

`@name/part` names something this run made: `@world/model` is the folder `model` of the artifact `world`.
"""

from __future__ import annotations

from pathlib import Path

from rlhf.config.stage_configs import DatasetStage
from rlhf.data.digest import digest_files, digest_of, digest_of_files, sealed, unsealed
from rlhf.data.files import resolved
from rlhf.data.shards import write_atomic
from rlhf.errors import ConfigError, DataError, ModelError, one_line
from rlhf.models.kinds import check_folder
from rlhf.models.weight_files import second_copies
from rlhf.run import hub
from rlhf.run.artifact import Artifact, artifact_around
from rlhf.run.commit import check_files
from rlhf.run.console import phase
from rlhf.run.plan import Run
from rlhf.run.refusal import rule_file
from rlhf.run.removed import files_removed

_ENTRY_OF_THEN = {
    # rlhf/world/tasks.py: moved about and commented since the first quickstart; what its rules say is the
    # same
    "ce0a9392ab19b60f5b69a4ee89fd0fa3d7602f4e3cfb5a25e25c8a9424f1f99a": {
        "bytes": 9962,
        "sha256": "d9d2d3fad3e75c840fb92c2210c36171cedc00e1b58cb794bff4a475338a25fd",
    },
}
"""Of rules that come with this package, by the digest of the file as it is now: its size and digest when runs
began to hold them. A run is not refused because a comment was added; a file that is not listed counts as it
is."""


def made_here(run: Run, path: str, key: str) -> Artifact:
    """The part of this run that `@name/part` names.

    Raises:
        ConfigError: this run makes no such artifact, or the artifact has no such part.
    """
    name, _, part = path.removeprefix("@").partition("/")
    if name not in run.made:
        raise ConfigError(
            f"{key}={path}: no stage of this run makes {name!r} before it is needed; made by then: "
            f"{', '.join(sorted(run.made)) or 'nothing'}. Name one of those, or a path or Hub id "
            "without the @ (a "
            f"folder whose own name begins so is ./{path})."
        )
    artifact = run.made[name]
    files = artifact.record.get("files", [part])  # in a plan nobody knows yet what is in it
    if ".." in Path(part).parts:
        raise ConfigError(
            f"{key}={path}: '..' leads out of what {name!r} is. Name a part of it, such as @world/model."
        )
    if not part:
        return artifact
    is_there = any(f"{file}/".startswith(f"{part}/") for file in files)  # a file, or a folder of files
    if not is_there:
        raise ConfigError(
            f"{key}={path}: {name!r} has no such part. Name one of {one_line(', '.join(sorted(files)))}."
        )
    return artifact.part(part)


def model(run: Run, path: str, revision: str | None, key: str) -> Artifact:
    """A model folder: one this run made, a local one (digest of its files), or one of the Hub (digest: its
    commit).

    Raises:
        ModelError: it is not there, or no whole model in safetensors.
        ConfigError: there is a revision, and it is not of the Hub.
        RunChanged: it is of a finished run, and not what that run made.
    """
    if path.startswith("@"):
        _refuse_revision(path, revision, key, "something this run makes")
        return made_here(run, path, key)
    folder = model_folder(path, revision, key)
    if not resolved(path, key).exists():
        # Of the Hub: the folder's name is the commit, which says what is in it.
        return Artifact(folder, digest_of([path, folder.name]))
    names = set()
    for pattern in hub.MODEL_FILES:
        names |= {file.name for file in folder.glob(pattern) if file.is_file()}
    # A second copy of the weights is never read, and may come and go.
    names -= {file.name for file in second_copies(folder)}
    return Artifact(folder, _digest_of_outside(run, folder, sorted(names)))


def model_folder(path: str, revision: str | None, key: str, weights: bool = True) -> Path:
    """Where a model of outside lies; from the Hub it comes without its weights when they are not wanted.

    Raises:
        ModelError: it is not there, or no whole model in safetensors.
        ConfigError: there is a revision, and it is not of the Hub.
        RunChanged: it is of a finished run, and files are missing, of another size or of no manifest, or
            small ones damaged.
    """
    folder = resolved(path, key)
    # A folder's own name may hold an @; what is here comes first.
    if folder.exists():
        _refuse_revision(path, revision, key, "a folder of this machine")
        _check_small_files(folder)  # before they are read: a manifest says more of what is damaged
        check_folder(folder, key)
        return folder
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ModelError(
            f"{key}={path}: no such folder, and no Hub id either (those read owner/name). Ways "
            "out: give the path "
            "of a folder with config.json and *.safetensors, or a Hub id."
        )
    if "@" in path:
        repo, _, wanted = path.partition("@")
        raise ModelError(
            f"{key}={path}: no such folder, and no Hub id either. The revision of a model on the "
            "Hub has a key of its "
            f"own: {key}={repo} {_revision_key(key)}={wanted}."
        )
    folder = hub.fetch_model(path, revision, key, weights)
    check_folder(folder, key, weights)
    return folder


def _refuse_revision(path: str, revision: str | None, key: str, what: str) -> None:
    """Raise ConfigError for a revision of something that has none: it would be ignored in silence."""
    if revision is None:
        return
    raise ConfigError(
        f"{_revision_key(key)}={revision}: {path} is {what}, and only models of the Hub have "
        "revisions. Leave it "
        "out (null), or give a Hub id."
    )


def _revision_key(key: str) -> str:
    """The key of a model's revision, by that of its path; judges that only evaluate have it in their path."""
    if key.endswith(".path"):
        return key.removesuffix("path") + "revision"
    return key


def _digest_of_outside(run: Run, folder: Path, names: list[str]) -> str:
    """Digest of files from outside this run; what another run made is held against its manifest.

    Raises:
        RunChanged: one of them is not what that run made.
    """
    digest = _remembered_digest(run, folder, names)
    artifact = artifact_around(folder)
    if artifact is None or artifact.root is None:
        return digest
    files = artifact.record["files"]
    below = folder.relative_to(artifact.root)
    listed = {name: (below / name).as_posix() for name in names}
    made = digest_of_files({name: files[full_name] for name, full_name in listed.items()})
    if digest != made:
        check_files(artifact.root, files, list(listed.values()))  # says which
    return made


def _check_small_files(folder: Path) -> None:
    """Hold a model of another run against its manifest, but for the hashes of its weights.

    Also what has no part in its digest: vocabularies of rare names, and further templates.

    Raises:
        RunChanged: a file is not what its manifest says, or was removed to make room.
    """
    artifact = artifact_around(folder)
    if artifact is None or artifact.root is None:
        return
    if artifact.lacks:
        raise files_removed(str(folder), [(artifact.root, artifact.lacks)])
    names = []
    for name in artifact.record["files"]:
        path = artifact.root / name
        if path.is_relative_to(folder) and path.suffix != ".safetensors":
            names.append(name)
    check_files(artifact.root, artifact.record["files"], names)


def _remembered_digest(run: Run, folder: Path, names: list[str]) -> str:
    """Digest of large files, remembered in the run folder by size and time of change."""
    memory = run.folder / ".digests.json"
    try:
        known = unsealed(memory.read_bytes())
    except (OSError, ValueError):
        known = {}  # missing or damaged: it only saves time
    stats = {}
    for name in names:
        stat = (folder / name).stat()
        # The inode too: a file that was replaced within the clock's resolution is another one.
        stats[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    stamp = digest_of([str(folder), stats])
    if not isinstance(known.get(stamp), str):
        with phase(f"taking the checksums of {folder}"):
            known[stamp] = digest_of_files(digest_files(folder, names))
        if run.folder.is_dir():
            write_atomic(memory, sealed(known))
    digest: str = known[stamp]
    return digest


def data_file(run: Run, path: str, key: str, name: str = "") -> Artifact:
    """A file of prompts, conversations or preferences: one this run made, a local one, or a data set of the
    Hub.

    A data set is written to the artifact `data/<name>` (`key` where no name is given) as one Parquet file.

    Raises:
        DataError: there is no such file or data set.
    """
    if path.startswith("@"):
        return made_here(run, path, key)
    wanted = hub.parse_dataset(path)
    # A path such as data/prompts reads like a Hub id; what is here comes first.
    if wanted is None or resolved(path, key).exists():
        file = local_file(path, key)
        return Artifact(file, _digest_of_outside(run, file.parent, [file.name]))
    folder = hub.fetch_dataset(wanted.repo, wanted.revision, key)
    config = DatasetStage(wanted.repo, folder.name, wanted.subset, wanted.split)
    snapshot = Artifact(folder, digest_of([wanted.repo, folder.name]))
    return run.stage("dataset", f"data/{name or key}", config, {"snapshot": snapshot}).part("rows.parquet")


def local_file(path: str, key: str) -> Path:
    """A data file of this machine.

    Raises:
        DataError: there is no such file.
        RunChanged: it lies in a finished stage of a run, and that stage is not whole or does not name it.
    """
    file = resolved(path, key)
    if not file.is_file():
        what = "a folder, no file" if file.is_dir() else f"no such file (looked for {file})"
        raise DataError(
            f"{key}={path}: {what}. Give the path of a .json, .jsonl, .csv or .parquet file, or a "
            "data set on the Hub as owner/name[@revision][:[subset/]split]."
        )
    artifact_around(file)
    return file


def function_source(path: str, key: str) -> str:
    """Digest of the Python file in which `module:function` is defined, without importing it.

    Raises:
        ConfigError: it is not of that form, or there is no such module.
    """
    source = rule_file(path)
    if source is None:
        raise ConfigError(
            f"{key}={path}: expected module:function of a Python module that can be imported, such as "
            "rlhf.world.tasks:gold. Check the spelling, call from its folder, or put that on PYTHONPATH."
        )
    files = digest_files(source.parent, [source.name])
    files[source.name] = _ENTRY_OF_THEN.get(files[source.name]["sha256"], files[source.name])
    return digest_of([path, files])
