"""The response of each prompt that RAFT learns."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.choices import Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.best_responses import best_responses
from rlhf.errors import DataError
from tests.unit.stages.test_pair import EOS, EOT, candidates_row, write_inputs


def best(tmp_path: Path, rows: list[Any], **settings: Any) -> tuple[list[int], Counter[str]]:
    """The number of the response that was taken of each prompt, and the counts; shards of two prompts."""
    write_inputs(tmp_path, [rows[start : start + 2] for start in range(0, len(rows), 2)])
    counts = Counter[str]()
    found = list(
        best_responses(tmp_path / "candidates", tmp_path / "scores", PairSettings(**settings), counts)
    )
    assert all(prompt == [1, 2, 3] for prompt, _ in found)
    return [ids[0] - 20 for _, ids in found], counts


def test_the_highest_score_wins_the_first_of_equals_and_every_prompt_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        (candidates_row("a", ["x", "y", "z"]), [0.5, 2.0, 1.0]),
        (candidates_row("b", ["same", "same"]), [1.0, 1.0]),
        (candidates_row("c", ["x", " "]), [1.0, 2.0]),
        (candidates_row("d", ["x", "y", "z"]), [1.0, math.nan, 3.0]),
        (candidates_row("e", ["x", "y"], finished=False), [1.0, 2.0]),
    ]
    found, counts = best(tmp_path, rows)
    assert found == [1, 0, 0, 2]
    assert counts == {"prompts": 5, "dropped/truncated": 1}


def test_one_usable_response_is_enough(tmp_path: Path) -> None:
    one_cut = candidates_row("a", ["x", "y", "z"], finished=False)
    one_cut["candidates"][1] = candidates_row("a", ["x", "y", "z"])["candidates"][1]
    rows = [
        (one_cut, [3.0, 1.0, 2.0]),
        (candidates_row("b", ["x", "y", "z"]), [math.nan, math.inf, -1.0]),
        (candidates_row("c", ["", " ", "z"]), [2.0, 1.0, 0.0]),
        (candidates_row("d", ["x"]), [1.0]),
        (candidates_row("e", ["x", "y"]), [math.nan, math.nan]),
        (candidates_row("f", ["", "\n"]), [1.0, 2.0]),
        (candidates_row("g", []), []),
    ]
    found, counts = best(tmp_path, rows, truncated=Truncated.drop)
    assert found == [1, 2, 2, 0]
    dropped = {"dropped/non_finite": 1, "dropped/empty": 1, "dropped/too_few_candidates": 1}
    assert counts == {"prompts": 7, **dropped}


def test_what_was_cut_is_learnt_only_where_it_may_be_and_without_an_end(tmp_path: Path) -> None:
    write_inputs(tmp_path, [[(candidates_row("a", ["x", "y"], finished=False), [1.0, 2.0])]])
    config = PairSettings(truncated=Truncated.allow)
    [(_, ids)] = best_responses(tmp_path / "candidates", tmp_path / "scores", config, Counter())
    assert ids == [21]


def test_a_response_ends_as_the_template_ends_a_turn(tmp_path: Path) -> None:
    write_inputs(tmp_path, [[(candidates_row("a", ["x", "y"]), [1.0, 2.0])]])
    [(_, ids)] = best_responses(tmp_path / "candidates", tmp_path / "scores", PairSettings(), Counter())
    assert ids == [21, EOT] and EOT != EOS


def test_length_costs_what_the_settings_say(tmp_path: Path) -> None:
    rows = [(candidates_row("a", ["x" * 100, "y"]), [2.0, 1.5])]
    assert best(tmp_path, rows)[0] == [0]
    assert best(tmp_path, rows, length_penalty=0.01)[0] == [1]
    assert best(tmp_path, [(candidates_row("a", ["x", "y", "z"]), [1.0, 2.0, 3.0])], num_candidates=2)[0] == [
        1
    ]


def test_scores_of_other_responses_are_refused(tmp_path: Path) -> None:
    rows = [(candidates_row("a", ["x", "y"]), [1.0, 2.0, 3.0])]
    with pytest.raises(DataError, match="3 scores for 2 candidates"):
        best(tmp_path, rows)
