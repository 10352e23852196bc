"""What a person should know of how a file was read, as a stage says it beside its counts."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.data.columns import unread_text


def reading_notes(counts: Mapping[str, int], section: str = "") -> dict[str, str]:
    """A metric `warning`, which the console shows below the stage's line; empty where all was read as it
    says.

    Args:
        counts: of a reader of `rlhf.data`.
        section: of the config that names the file, such as "prompts"; empty for a tool's input.

    Example:
        {"rows": 9, "unread/evidence": 7} gives {"warning": "column `evidence` (7 of 9 rows) is not read; …"}
    """
    notes = []
    unread = unread_text(counts, section or "columns")
    if unread is not None:
        notes.append(unread)
    contradicting = counts.get("contradicting_scores", 0)
    if contradicting:
        # Kept as they are labelled: whether labels or scores are wrong, only the data's owner can tell.
        notes.append(f"in {contradicting} pairs the rejected answer has the higher score or label of the two")
    return {"warning": "; ".join(notes)} if notes else {}
