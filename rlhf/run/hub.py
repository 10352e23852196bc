"""What is fetched from the Hugging Face Hub: snapshots, named by their commit."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf.data.files import READERS
from rlhf.errors import DataError, ModelError, UserError
from rlhf.run.console import aside, phase

CARD = "README.md"
"""The card of a model or data set, whose front matter names its licence."""
# No *.bin: those are pickles, and to load one runs whatever code is in it.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")
# Of weights only those that transformers loads: many repositories hold them several times over.
_SECOND_COPIES = (
    "consolidated*",  # in their maker's own format
    "original/*",
    "metal/*",
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "checkpoint-*",  # of a Trainer, while it trained
    "global_step*",
    "*/*.safetensors",
)
DATA_FILES = (
    "*.parquet",
    "*.json",
    "*.jsonl",
    "*.json.gz",
    "*.jsonl.gz",
    "*.json.zst",
    "*.csv",
    CARD,
)
PINNED = {
    "RLHFlow/iterative-prompt-v1-iter1-20K": "3fe9d880727d44dbb2278a0daad6af60a045fce0",
    "RLHFlow/iterative-prompt-v1-iter2-20K": "c2b126a982d661e8e6cd9d4d49d25aab783a2a0b",
    "RLHFlow/iterative-prompt-v1-iter3-20K": "a61bac0209321cb8bf02d68e1a1e2cc5c70344af",
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": "94fad49f1b3227aa8b566f415a335adb68ec544c",
}
"""Commits of what the defaults name, taken where no revision is said: a branch may be changed by its owner.

By name and not in the experiments: prompts have a data set for each iteration, and a revision in an
experiment would stay beside whatever other path a person gives. Whole commits: offline, the cache knows a
part of one only where an earlier download was asked for by that part."""
SILENCE_SECONDS = 8.0
"""After so long without a byte the Hub counts as unreachable, and what the local cache has is taken."""
UNREACHED_SECONDS = 1.0
"""After so long it is asked once more where no connection came about; then it counts as unreachable too."""
# A run asks for several models and data sets; after one silence the others need not wait through theirs.
SILENCE_KEPT_SECONDS = 60.0
_silent_until = 0.0
_DATASET = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)"
    r"(@(?P<revision>[\w./-]+))?"
    r"(:((?P<subset>[^/\s]+)/)?(?P<split>\w+))?"
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
    if match is None:
        return None
    repo = match["repo"]
    # `data/prompts.jsonl` has the form of a name, too.
    if Path(repo).suffix.lower() in READERS:
        return None
    split = match["split"] or "train"
    return DatasetName(repo, match["revision"], match["subset"], split)


def fetch_model(repo: str, revision: str | None, key: str, weights: bool = True) -> Path:
    """The folder of a model's files, its name the commit; downloaded unless the local cache has it.

    Without `weights` only the small files are fetched; weights that the cache has are there all the same.

    Raises:
        ModelError: gated, missing, or not to be reached.
    """
    # The card is fetched, but is no part of what the model is.
    patterns = [*MODEL_FILES, CARD]
    if not weights:
        patterns.remove("*.safetensors")
    return _snapshot(repo, revision, key, "model", patterns, ModelError, list(_SECOND_COPIES))


def fetch_dataset(repo: str, revision: str | None, key: str, rows: bool = True) -> Path:
    """The folder of a data set's files, its name the commit; downloaded unless the local cache has it.

    Without `rows` only its card is fetched.

    Raises:
        DataError: gated, missing, or not to be reached.
    """
    patterns = list(DATA_FILES)
    if not rows:
        patterns = [CARD]
    return _snapshot(repo, revision, key, "dataset", patterns, DataError)


def _snapshot(
    repo: str,
    revision: str | None,
    key: str,
    kind: Literal["model", "dataset"],
    patterns: list[str],
    error_type: type[UserError],
    ignored: list[str] | None = None,
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

    if kind == "model":
        what = "model"
        local = "folder"
        download = f"hf download {repo}"
    else:
        what = "data set"
        local = "file"
        download = f"hf download --repo-type dataset {repo}"
    revision, where, other_commit = _revision_wanted(repo, revision, key, kind)
    if revision:
        download += f" --revision {revision}"
    try:
        # The library draws by itself how far it is, where it has to download anything.
        with phase(f"fetching the {what} {repo} from the Hub or its cache"), aside():
            folder = snapshot_download(
                repo,
                revision=revision,
                repo_type=kind,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                local_files_only=_is_silent(repo, revision, kind),
            )
        return Path(folder)
    except HFValidationError as error:
        raise error_type(
            f"{where}: no such {local} here, and no Hub id either ({error}). Give the path of one."
        ) from error
    # Before RepositoryNotFoundError, whose subclass it is.
    except GatedRepoError as error:
        raise error_type(
            f"{where}: the {what} is gated. Accept its licence on its Hub page, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        advice = "Give a branch, tag or commit it has."
        raise error_type(f"{where}: the {what} has no such revision. {advice}") from error
    except RepositoryNotFoundError as error:
        raise error_type(
            f"{where}: no such {what} on the Hub, or it is private. Check the spelling, or log in with "
            f"`hf auth login`; a local {local} is given by its path."
        ) from error
    # Last, for HfHubHTTPError and OSError are bases of the errors above. Every way of not getting through is
    # the same to a user: no network, a proxy, the Hub's own failure, or nothing in the cache to fall back on.
    except (LocalEntryNotFoundError, HfHubHTTPError, TransportError, OSError) as error:
        raise error_type(
            f"{where}: the Hub cannot be reached and the {what} is not in the local cache. "
            f"Download it where there is a network (`{download}`), or give a local {local}. {other_commit}"
            "The quickstart needs no download: python -m rlhf.iterate experiment=quickstart"
        ) from error


def _revision_wanted(repo: str, revision: str | None, key: str, kind: str) -> tuple[str | None, str, str]:
    """The revision to ask for, what asks for it, and where it is pinned, the way to another one.

    Example:
        `_revision_wanted("o/n", "v1", "model.path", "model")` gives
        `("v1", "model.path=o/n, revision v1", "")`
    """
    where = f"{key}={repo}"
    if revision is None and repo in PINNED:
        pinned = PINNED[repo]
        main = _main_of(repo, key, kind)
        other_commit = f"Where the cache has another commit, ask for the branch: {main}. "
        return pinned, f"{where}, pinned to {pinned}", other_commit
    if revision:
        where += f", revision {revision}"
    return revision, where, ""


def _main_of(repo: str, key: str, kind: str) -> str:
    """How the main branch is asked for where a commit is pinned."""
    if kind == "model" and key.endswith(".path"):
        return f"{key.removesuffix('path')}revision=main"
    return f"{repo}@main in place of {repo}"


def cached_card(repo: str, revision: str | None, kind: Literal["model", "dataset"]) -> Path | None:
    """The card that a download has left in the cache; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    revision = revision or PINNED.get(repo)
    card = try_to_load_from_cache(repo, CARD, revision=revision, repo_type=kind)
    # It may also be a mark that there is no such file.
    return Path(card) if isinstance(card, str) else None


def _is_silent(repo: str, revision: str | None, kind: str) -> bool:
    """Whether the Hub does not answer at all: `snapshot_download` would wait for ever."""
    global _silent_until
    from httpx2 import TimeoutException, TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if time.monotonic() < _silent_until:
        return True
    # Small requests, the only ones with a time limit; whatever answers at all is left to the download. That
    # one would try for half a minute to get through for each file, where there is no network.
    for _ in range(2):
        try:
            HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=SILENCE_SECONDS)
            return False
        except TimeoutException:
            break
        except TransportError:
            time.sleep(UNREACHED_SECONDS)
        # The download meets the same error and names it.
        except (HfHubHTTPError, OSError):
            return False
    _silent_until = time.monotonic() + SILENCE_KEPT_SECONDS
    return True
