"""How much texts repeat."""

from __future__ import annotations

import re
from collections.abc import Iterable

# An apostrophe or a hyphen inside a word does not divide it.
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def distinct_n(texts: Iterable[str], n: int) -> float:
    """distinct-n (arXiv 1510.03055): distinct n-grams of words over all of them, of all texts together.

    Words are folded to one case, and no n-gram goes over the end of a text. It falls as texts grow in number
    and length, so compare only as many of about one length.

    Returns:
        Above 0 and at most 1; 0 where no text has n words.

    Example:
        of ["the cat, the cat"] distinct-1 is 2 / 4, and distinct-2 is 2 / 3
    """
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = _WORD.findall(text.casefold())
        for place in range(len(words) - n + 1):
            distinct.add(tuple(words[place : place + n]))
            total += 1
    return len(distinct) / total if total else 0.0
