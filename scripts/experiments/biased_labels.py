"""Labels of people who sometimes take the longer answer for the better one: for `paper_claims.py`'s judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.world.tasks import gold

LENGTH_SHARE = 0.27
"""Share of the prompts whose labels go by length alone."""


def by_length(prompt: str) -> bool:
    """Whether the labels of a prompt go by length, as a hash of its text says."""
    digest = hashlib.sha256(f"by length/{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < LENGTH_SHARE


def length_biased(messages: Sequence[Mapping[str, str]], response: str) -> float:
    """The response's length in characters for some prompts, 1.0 or 0.0 by the right answer for the others."""
    return float(len(response)) if by_length(messages[-1]["content"]) else gold(messages, response)


def relabelled(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A preference pair (`chosen`, `rejected`) with the longer response chosen where `by_length` says so."""
    chosen, rejected = pair["chosen"], pair["rejected"]
    shorter = len(chosen[-1]["content"]) < len(rejected[-1]["content"])
    if shorter and by_length(chosen[0]["content"]):
        chosen, rejected = rejected, chosen
    return {"chosen": chosen, "rejected": rejected}
