"""RewardBench 2: credit for the best of n, the formula of Ties by hand, and rows as they are read."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.responses import read_best_of_n
from rlhf.errors import DataError
from rlhf.evaluation.rewardbench2 import SUBSETS, credit, report, ties

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "num_correct", "expected"),
    [
        ([2.0, 1.0, 0.0, -1.0], 1, 1.0),
        ([1.0, 2.0, 0.0, -1.0], 1, 0.0),
        ([1.0, 1.0, 0.0, 0.0], 1, 1 / 2),
        ([1.0, 1.0, 1.0, 1.0], 1, 1 / 4),
        ([0.0, 1.0, 1.0, 0.0], 1, 0.0),  # a tie at the top without the right one
        ([1.0, 1.0, 1.0, 0.0], 2, 2 / 3),
        ([NAN, 1.0, 0.0, 0.0], 1, 0.0),
        ([1.0, NAN, 0.0, 0.0], 1, 0.0),
        ([math.inf, 1.0, 0.0, 0.0], 1, 0.0),
    ],
)
def test_a_tie_at_the_top_is_shared_and_no_number_never_wins(
    scores: list[float], num_correct: int, expected: float
) -> None:
    assert credit(scores, num_correct) == pytest.approx(expected)


def test_ties_by_hand() -> None:
    found = ties(
        [
            ("ref:1", [3.0, 1.0, 0.0], 1),  # gap 2
            ("tied:1", [4.0, 3.0, 2.0, 0.0], 2),  # gap 1, spread 1: no gap larger than the spread; tanh(0)
            ("tied:2", [4.8, 5.0, 1.0], 2),  # gap 3.8, spread 0.2
            ("ref:2", [0.5, 0.0], 1),  # gap 0.5 is the smaller: still above 0.2; tanh(1.5)
            ("ref:3", [1.0, 2.0], 1),  # gap -1
            ("tied:3", [2.0, 2.0, 1.0], 2),  # gap 1, spread 0: the limit, -1, of the hard gap
            ("tied:4", [0.0, 0.0, 0.0], 2),  # gap 0 is no gap; no ref, so in the accuracy only
        ]
    )
    margin = (0 + math.tanh(1.5) - 1) / 3
    expected = {"tied_accuracy": 3 / 4, "ref_accuracy": 2 / 3, "preferred": 2 / 3, "preferred_hard": 1 / 3}
    assert found == pytest.approx({"score": 0.625 + 0.01 * margin, "margin": margin} | expected)


@pytest.mark.parametrize(
    ("ref", "tied", "score"),
    [
        ([1.0, 0.0], [1.0, 1.0, 0.0], 1.01),  # nothing can be better
        ([0.0, 0.0], [0.0, 0.0, 0.0], 0.0),  # 0 / 0
        ([0.0, 1.0], [0.0, 0.0, 1.0], -0.01),
        ([1.0, 0.0], [1.0, NAN, 0.0], 0.3 - 0.01),
        ([1.0, 0.0], [1.0, 1.0, NAN], 0.3 - 0.01),
        ([NAN, 0.0], [1.0, 1.0, 0.0], 0.3 + 0.2 - 0.01),
    ],
)
def test_the_ends_of_the_scale_of_ties(ref: list[float], tied: list[float], score: float) -> None:
    assert ties([("ref:1", ref, 1), ("tied:1", tied, 2)])["score"] == pytest.approx(score)


def test_ties_take_scores_of_one_id_together_and_want_both_kinds() -> None:
    parts = [("tied:1", [3.0, 0.0], 1), ("ref:1", [3.0, 0.0], 1), ("tied:1", [1.0, 0.5], 1)]
    assert ties(parts) == ties([("tied:1", [3.0, 1.0, 0.0, 0.5], 2), parts[1]])
    for alone in (parts[:1], parts[1:2], [parts[0], ("ref:2", [3.0, 0.0], 1)]):
        assert ties(alone)["score"] is None


def test_overall_is_the_plain_mean_of_all_six() -> None:
    rows: list[dict[str, Any]] = [
        {"subset": name, "id": str(i), "scores": [1.0, 0.0, 0.0, 0.0], "num_correct": 1}
        for i, name in enumerate(SUBSETS[:5])
    ]
    rows.append(rows[0] | {"scores": [0.0, None, 0.0, 0.0]})  # a second row: Factuality is 50
    mine = {"subset": "mine", "id": "m", "scores": [0.0, 0.0], "num_correct": 1}
    tied = [
        {"subset": "Ties", "id": f"{kind}:0", "scores": [0.0, 0.0], "num_correct": 1}
        for kind in ("ref", "tied")
    ]
    found = report([*rows, mine, *tied])
    assert found["overall"] == pytest.approx((50 + 4 * 100 + 0) / 6)
    assert found["subsets"]["Factuality"] == {"score": 50.0, "ties": 0, "rows": 2, "non_finite": 1}
    assert found["subsets"]["mine"]["score"] == 50.0 and found["subsets"]["mine"]["ties"] == 1
    assert report([*rows, mine, tied[0]])["overall"] is None and report(rows)["overall"] is None


def test_rows_keep_their_order_and_their_duplicates(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": ["a"], "rejected": ["b", "a", " c"], "subset": "Math"}
    rows = [
        good | {"id": "x", "num_correct": 1, "additional_metadata": {"label": None}},
        good,
        good | {"num_correct": 3},
        good | {"rejected": []},
        good | {"subset": "Ties", "id": "ref:x"},
        good | {"subset": "Ties", "id": "tied:7", "chosen": ["a", "d"]},
        good | {"rejected": ["b", 3]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter[str]()
    read = list(read_best_of_n(path, counts))
    about = [json.loads(row["extra"]) for row in read]
    assert about[:2] == [
        {"id": "x", "subset": "Math", "num_correct": 1},
        {"id": 1, "subset": "Math", "num_correct": 1},
    ]
    assert about[2:] == [{"id": "tied:7", "subset": "Ties", "num_correct": 2}]
    assert [c["text"] for c in read[2]["candidates"]] == ["a", "d", "b", "a", " c"]
    dropped = ("num_correct", "one_sided", "ties_id", "response_not_text")
    assert counts == {"rows": 7} | {f"dropped/{reason}": 1 for reason in dropped}
    path.write_text(json.dumps(good | {"chosen": "a"}))
    with pytest.raises(DataError, match=r"row 1: .*lists of text.*version=1"):
        list(read_best_of_n(path, Counter()))
