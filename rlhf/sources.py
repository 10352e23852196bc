"""What a run takes from outside: models and data files, from a folder, a file, or the Hub.

`@name/part` names something this run made: `@world/model` is the folder `model` of the artifact `world`.
"""

from __future__ import annotations

from pathlib import Path

from rlhf import hub
from rlhf.data.shards import write_atomic
from rlhf.digest import digest_files, digest_of, digest_of_files, sealed, unsealed
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.run import Artifact, Run


def made_here(run: Run, path: str, key: str) -> Artifact:
    """The part of this run that `@name/part` names.

    Raises:
        ConfigError: this run makes no such artifact.
    """
    name, _, part = path.removeprefix("@").partition("/")
    if name not in run.made:
        raise ConfigError(
            f"{key}={path}: this run makes no {name!r} before it is needed; it has {sorted(run.made) or 'nothing'}."
        )
    return run.made[name].part(part) if part else run.made[name]


def model(run: Run, path: str, revision: str | None, key: str) -> Artifact:
    """A model folder: one this run made, a local one (digest of its files), or one of the Hub (digest: its commit).

    Raises:
        ModelError: it is not there, or holds no safetensors.
    """
    if path.startswith("@"):
        return made_here(run, path, key)
    folder = Path(path).expanduser()
    if folder.exists():
        return _local_model(run, folder.resolve(), key)
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ModelError(
            f"{key}={path}: no such folder, and no Hub id either (those read owner/name). Ways out: give the path of "
            "a folder with config.json and *.safetensors, or a Hub id."
        )
    return _hub_model(path, revision, key)


def _local_model(run: Run, folder: Path, key: str) -> Artifact:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{key}={folder}: no config.json there, so it is no model folder. Point at the folder itself.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{key}={folder}: no *.safetensors there; other weight formats can run code when loaded and are not read. "
            "Convert with model.save_pretrained(folder)."
        )
    names = sorted({path.name for pattern in hub.MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    return Artifact(folder, _remembered_digest(run, folder, names))


def _remembered_digest(run: Run, folder: Path, names: list[str]) -> str:
    """Digest of large files, remembered in the run folder by size and time of change."""
    memory = run.folder / ".digests.json"
    try:
        known = unsealed(memory.read_bytes())
    except (OSError, ValueError):
        known = {}
    stats = {name: (folder / name).stat() for name in names}
    stamp = digest_of([str(folder), {n: [s.st_size, s.st_mtime_ns, s.st_ino] for n, s in stats.items()}])
    if stamp not in known:
        known[stamp] = digest_of_files(digest_files(folder, names))
        if run.folder.is_dir():
            write_atomic(memory, sealed(known))
    return str(known[stamp])


def _hub_model(repo: str, revision: str | None, key: str) -> Artifact:
    folder = hub.fetch_model(repo, revision, key)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{key}={repo}: it has no *.safetensors; other weight formats can run code when loaded and are not read. "
            "Convert it with model.save_pretrained(folder), or choose a revision that has them."
        )
    return Artifact(folder, digest_of([repo, folder.name]))


def data_file(run: Run, path: str, key: str, name: str = "") -> Artifact:
    """A file of prompts, conversations or preferences: one this run made, a local one, or a data set of the Hub.

    A data set is written to the artifact `data/<name>` (`key` where no name is given) as one Parquet file.

    Raises:
        DataError: there is no such file or data set.
    """
    if path.startswith("@"):
        return made_here(run, path, key)
    file = Path(path).expanduser().resolve()
    if file.is_file():
        return Artifact(file, _remembered_digest(run, file.parent, [file.name]))
    wanted = hub.parse_dataset(path)
    if wanted is None or file.exists():
        raise DataError(
            f"{key}={path}: no such file (looked for {file}). Give the path of a .json, .jsonl or .parquet file, or a "
            "data set on the Hub as owner/name[@revision][:[subset/]split]."
        )
    folder = hub.fetch_dataset(wanted.repo, wanted.revision, key)
    config = {"repo": wanted.repo, "commit": folder.name, "subset": wanted.subset, "split": wanted.split}
    snapshot = Artifact(folder, digest_of([wanted.repo, folder.name]))
    return run.stage("dataset", f"data/{name or key}", config, {"snapshot": snapshot}).part("rows.parquet")


def function_source(path: str, key: str) -> str:
    """Digest of the Python file in which `module:function` is defined, without importing it.

    Raises:
        ConfigError: it is not of that form, or there is no such module.
    """
    from importlib.util import find_spec

    module, _, function = path.partition(":")
    try:
        spec = find_spec(module) if module and function else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{key}={path}: expected module:function of a Python module that can be imported, such as "
            "rlhf.world.tasks:gold. Check the spelling, or put its folder on PYTHONPATH."
        )
    return digest_of([path, digest_files(Path(spec.origin).parent, [Path(spec.origin).name])])
