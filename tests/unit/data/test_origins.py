"""What a row says of where it comes from."""

from __future__ import annotations

import pytest

from rlhf.data.origins import Origin, origin_of


@pytest.mark.parametrize(
    ("row", "origin"),
    [
        ({"source": "", "dataset": " hh ", "subset": "x"}, Origin("hh", None)),
        ({"source": 3, "chosen": []}, Origin(None, None)),
        ({"subset": "math", "lang": "de", "language": " "}, Origin("math", "de")),
        ({"language": "English"}, Origin(None, "English")),
        ({}, Origin(None, None)),
    ],
)
def test_source_and_language(row, origin):
    assert origin_of(row) == origin
