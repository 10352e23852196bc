"""What is fetched from the Hugging Face Hub: snapshots, named by their commit."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from rlhf.data.files import READERS
from rlhf.errors import DataError, ModelError, UserError

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")
DATA_FILES = ("*.parquet", "*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.json.zst", "*.csv", "README.md")
SILENCE_SECONDS = 8.0
"""After so long without a byte the Hub counts as unreachable, and what the local cache has is taken."""
_silent_until = 0.0
_DATASET = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:((?P<subset>[^/\s]+)/)?(?P<split>\w+))?"
)


@dataclass(frozen=True)
class DatasetName:
    """`owner/name[@revision][:[subset/]split]`."""

    repo: str
    revision: str | None
    subset: str | None
    split: str


def parse_dataset(text: str) -> DatasetName | None:
    """A data set on the Hub; None for what cannot be one, such as the path of a file."""
    match = _DATASET.fullmatch(text)
    if match is None or Path(match["repo"]).suffix.lower() in READERS:
        return None
    return DatasetName(match["repo"], match["revision"], match["subset"], match["split"] or "train")


def fetch_model(repo: str, revision: str | None, key: str, weights: bool = True) -> Path:
    """The folder of a model's files, its name the commit; downloaded unless the local cache has it.

    Without `weights` only the small files are fetched; weights that the cache has are there all the same.

    Raises:
        ModelError: gated, missing, or not to be reached.
    """
    files = tuple(pattern for pattern in MODEL_FILES if weights or pattern != "*.safetensors")
    return _snapshot(repo, revision, key, "model", files, ModelError)


def fetch_dataset(repo: str, revision: str | None, key: str, rows: bool = True) -> Path:
    """The folder of a data set's files, its name the commit; downloaded unless the local cache has it.

    Without `rows` only its card is fetched.

    Raises:
        DataError: gated, missing, or not to be reached.
    """
    return _snapshot(repo, revision, key, "dataset", DATA_FILES if rows else ("README.md",), DataError)


def _snapshot(
    repo: str, revision: str | None, key: str, kind: str, files: tuple[str, ...], error_type: type[UserError]
) -> Path:
    from httpx2 import TransportError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = "model" if kind == "model" else "data set"
    local = "folder" if kind == "model" else "file"
    where = f"{key}={repo}" + (f", revision {revision}" if revision else "")
    download = f"hf download{'' if kind == 'model' else ' --repo-type dataset'} {repo}"
    try:
        silent = _is_silent(repo, revision, kind)
        return Path(
            snapshot_download(
                repo, revision=revision, repo_type=kind, allow_patterns=list(files), local_files_only=silent
            )
        )
    except HFValidationError as error:
        raise error_type(
            f"{where}: no such {local} here, and no Hub id either ({error}). Give the path of one."
        ) from error
    except GatedRepoError as error:
        raise error_type(
            f"{where}: the {what} is gated. Accept its licence on its Hub page, then log in with `hf auth login` or "
            "set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise error_type(f"{where}: the {what} has no such revision. Give a branch, tag or commit it has.") from error
    except RepositoryNotFoundError as error:
        raise error_type(
            f"{where}: no such {what} on the Hub, or it is private. Check the spelling, or log in with "
            f"`hf auth login`; a local {local} is given by its path."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, TransportError, OSError) as error:
        raise error_type(
            f"{where}: the Hub cannot be reached and the {what} is not in the local cache. Download it where there is "
            f"a network (`{download}`), or give a local {local}. The quickstart needs no download: "
            "python -m rlhf.iterate experiment=quickstart"
        ) from error


def _is_silent(repo: str, revision: str | None, kind: str) -> bool:
    """Whether the Hub does not answer at all: `snapshot_download` would wait for ever. It meets other errors itself."""
    global _silent_until
    from httpx2 import TimeoutException, TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if time.monotonic() < _silent_until:
        return True
    try:
        HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=SILENCE_SECONDS)
    except TimeoutException:
        _silent_until = time.monotonic() + 60.0
        return True
    except (HfHubHTTPError, TransportError, OSError):
        pass
    return False
