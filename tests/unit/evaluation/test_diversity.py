"""How much texts repeat."""

import pytest

from rlhf.evaluation.diversity import distinct_n


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["the cat, the cat"], 1, 2 / 4),
        (["the cat, the cat"], 2, 2 / 3),
        (["the cat", "the cat"], 2, 1 / 2),  # none goes over the end of a text
        (["The the THE"], 1, 1 / 3),
        (["don't do it, don’t"], 1, 4 / 4),
        (["well-known well known"], 1, 3 / 3),
        (["one two"], 2, 1.0),
        (["one", "two"], 2, 0.0),
        ([], 1, 0.0),
        (["", "!?"], 1, 0.0),
        (["Привет привет"], 1, 1 / 2),
    ],
)
def test_distinct_n(texts, n, share):
    assert distinct_n(texts, n) == pytest.approx(share)
