"""The licences of what a run is given, as the cards of its models and data sets name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.data.columns import shown
from rlhf.data.files import resolved
from rlhf.run import hub

UNKNOWN = "unknown"


def licence_in(folder: Path) -> str:
    """What the card in a folder names as its licence, as it may be printed; `unknown` where it names none.

    Example:
        "cc-by-nc-4.0", or "other: gemma-2" of a licence that the Hub has no short name for
    """
    return _licence_of(folder / hub.CARD)


def licence_of_model(path: str, revision: str | None, key: str) -> str:
    """Of a model folder of this machine, or of a model of the Hub that the cache has."""
    folder = resolved(path, key)
    if folder.exists():
        return licence_in(folder)
    return _licence_of(hub.cached_card(path, revision, "model"))


def licence_of_data(path: str, key: str) -> str:
    """Of a data set of the Hub that the cache has; a file of this machine names none."""
    dataset = hub.parse_dataset(path)
    if dataset is None or resolved(path, key).exists():
        return UNKNOWN
    return _licence_of(hub.cached_card(dataset.repo, dataset.revision, "dataset"))


def _licence_of(card: Path | None) -> str:
    if card is None or not card.is_file():
        return UNKNOWN
    metadata = _front_matter(card)
    licence = metadata.get("license")
    names = licence if isinstance(licence, list) else [licence]
    text = ", ".join(name for name in names if isinstance(name, str))
    if text == "other":
        text = _own_licence(metadata)
    # Whoever wrote the card chose these words; they go to terminals and into other cards.
    return shown(text) if text else UNKNOWN


def _own_licence(metadata: dict[str, Any]) -> str:
    """A licence that is none of the Hub's list."""
    name = metadata.get("license_name")
    return f"other: {name}" if isinstance(name, str) else "other"


def _front_matter(card: Path) -> dict[str, Any]:
    """What a card says of itself for programs; nothing where that cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        lines = card.read_text(encoding="utf-8").splitlines()
        if not lines or lines[0].strip() != "---":
            return {}
        end = lines.index("---", 1)
        metadata = yaml.safe_load("\n".join(lines[1:end]))
    # A card that nobody can read is no reason to stop a run.
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
