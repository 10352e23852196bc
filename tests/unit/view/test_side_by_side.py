"""Runs side by side: who is comparable with whom, who wins, and who is on the front."""

from __future__ import annotations

import math
import re
import shutil

import pytest

from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.errors import ConfigError
from rlhf.loop.figures import scores_by_prompt, win_rate
from rlhf.view.comparison_page import GENERATOR, page_of
from rlhf.view.pareto import Front, Point, front_of
from rlhf.view.section import as_text
from rlhf.view.several_runs import runs_of
from rlhf.view.side_by_side import FIGURES, compared_runs
from tests.unit.old_run import HELD_OUT, old_run, remake, rewrite

ROLES = ("score", "score_words", "mix", "gold", "score_second")


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two copies of a run, `a` and `b`."""
    monkeypatch.chdir(tmp_path)
    return old_run(tmp_path, "a"), old_run(tmp_path, "b")


def compared(*paths, **options):
    runs, notes = runs_of(paths or ["a", "b"])
    return compared_runs(runs, notes, **options)


def section(comparison, title):
    (found,) = [each for each in comparison.sections if each.title.startswith(title)]
    return found


def win_rates(**options):
    found = section(compared(**options), "Win rate")
    return [dict(zip(found.heads, row, strict=True)) for row in found.rows], " ".join(found.notes)


def every_stage(run, name):
    return sorted(run.glob(f"iteration_*/held_out/{name}"))


def test_equal_runs_tie_and_nothing_differs(two):
    rows, notes = win_rates()
    assert rows[0]["run"] == "A π1" and rows[0]["common prompts"] == "5"
    assert [head for head in rows[0] if head.startswith("by")] == [
        f"by {role} (95 %)" for role in ("score", "gold", "main", "second", "words")
    ]
    assert all(cell.startswith("0.500") for head, cell in rows[0].items() if head.startswith("by"))
    assert "score is the sum 1 × main + 0.5 × words, on the scale of π0: A's score, B's score." in notes
    assert section(compared(), "Settings").notes == ["None: the runs have the same settings."]


def test_a_win_rate_is_the_figures_own(two):
    _, b = two
    # The scores of a's π1 against b's π2, by hand: as if b's π2 stood in the place of its π1.
    shutil.rmtree(b / "iteration_001" / "held_out")
    shutil.copytree(b / "iteration_002" / "held_out", b / "iteration_001" / "held_out")
    rows, _ = win_rates(iteration=1)
    for head, stage in (("score", "mix"), ("gold", "gold"), ("second", "score_second")):
        mine = scores_by_prompt(runs_of(["a"])[0][0].folder.artifact(1, f"held_out/{stage}"))
        theirs = scores_by_prompt(runs_of(["b"])[0][0].folder.artifact(2, f"held_out/{stage}"))
        mean, low, high = win_rate(mine, theirs)
        assert rows[0][f"by {head} (95 %)"] == f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def test_only_common_prompts_count(two):
    _, b = two
    stages = [stage for name in ("generate", *ROLES) for stage in every_stage(b, name)]
    ids = list(scores_by_prompt(runs_of(["a"])[0][0].folder.artifact(0, "held_out/mix")))
    for stage in stages:
        if stage.name != "generate":
            rewrite(stage, SCORES_SCHEMA, lambda row: None if row["id"] == ids[0] else row)
    rows, _ = win_rates()
    assert rows[0]["common prompts"] == "4 of 5 and 4"
    for stage in stages:
        if stage.name != "generate":
            rewrite(stage, SCORES_SCHEMA, lambda row: row | {"id": "x" + row["id"]})
    rows, notes = win_rates()
    assert rows[0]["common prompts"] == "0 of 5 and 4" and rows[0]["by gold (95 %)"] == "–"
    assert "A π1 and B π1 have no held-out prompt in common" in notes


def test_prompts_without_a_finite_score_are_told(two):
    for stage in every_stage(two[1], "gold"):
        first = next(iter(scores_by_prompt(runs_of(["b"])[0][0].folder.artifact(0, "held_out/gold"))))
        rewrite(
            stage,
            SCORES_SCHEMA,
            lambda row, first=first: row | {"scores": [math.nan] * 2} if row["id"] == first else row,
        )
    rows, notes = win_rates()
    assert (
        "A π1 and B π1: 1 common prompts are left out of gold" in notes and rows[0]["by gold (95 %)"] != "–"
    )
    assert "B: 2 responses have no finite gold" in " ".join(section(compared(), "What").notes)


def other_model(record):
    record["identity"]["inputs"]["judge"] = "f" * 64


def other_source(record):
    record["identity"]["config"]["rule_source"] = "e" * 64


def other_rule(record):
    record["identity"]["config"]["rule"] = "mine:other"


@pytest.mark.parametrize(
    ("stage", "change", "lost", "role"),
    [
        ("score_second", other_model, {"second"}, "second"),
        ("gold", other_source, {"gold"}, "gold"),
        ("gold", other_rule, {"gold"}, "gold"),
        ("score", other_model, {"score", "main"}, "main"),
        ("score_words", other_source, {"score", "words"}, "score"),
    ],
)
def test_two_judges_are_not_compared_whatever_they_are_called(two, stage, change, lost, role):
    before, _ = win_rates()
    for each in every_stage(two[1], stage):
        remake(each, change)
    after, notes = win_rates()
    assert set(before[0]) - set(after[0]) == {f"by {name} (95 %)" for name in lost}
    assert f"{role}: no win rate between runs of different judges, whose scores are not comparable:" in notes


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["identity"]["config"]["weights"].update(words=0.25),
        lambda record: record["metrics"].update({"std/main": 2.0}),
    ],
)
def test_a_sum_is_another_one_with_other_weights_or_scales(two, change):
    for each in every_stage(two[1], "mix"):
        remake(each, change)
    rows, notes = win_rates()
    assert "by score (95 %)" not in rows[0] and "by main (95 %)" in rows[0]
    assert "score: no win rate between runs of different judges" in notes


def test_one_judge_by_two_names_is_one(two):
    for stage in every_stage(two[1], "score_second"):
        stage.rename(stage.with_name("score_other"))
    rows, notes = win_rates()
    assert "by second (95 %)" in rows[0]
    assert "A's second, B's other." in notes


def test_a_judge_that_is_called_gold_is_not_the_gold(two):
    for run in two:
        for stage in every_stage(run, "score_second"):
            stage.rename(stage.with_name("score_gold"))
        for stage in every_stage(run, "gold"):
            shutil.rmtree(stage)
    rows, _ = win_rates()
    assert "by judge gold (95 %)" in rows[0] and "by gold (95 %)" not in rows[0]
    assert compared().front.figure == "judge gold"


def test_a_pairwise_judge_is_comparable_against_the_same_responses_alone(two):
    def compare_with(opponents):
        def change(record):
            record["identity"]["config"]["kind"] = "pairwise"
            record["identity"]["inputs"]["against"] = opponents

        return change

    for run in two:
        for stage in every_stage(run, "score_second"):
            remake(stage, compare_with("a" * 64))
    assert "by second (95 %)" in win_rates()[0][0]
    for stage in every_stage(two[1], "score_second"):
        remake(stage, compare_with("b" * 64))
    rows, notes = win_rates()
    assert "by second (95 %)" not in rows[0] and "against the responses aaaaaaaa…" in notes
    for run in two:
        for stage in every_stage(run, "score_second"):
            remake(stage, lambda record: record["identity"]["inputs"].pop("against"))
    rows, notes = win_rates()
    assert "by second (95 %)" not in rows[0], "π0's responses were compared with each other"
    assert "second: no win rate" in notes


def test_a_judge_that_was_asked_in_another_way_is_told(two):
    for stage in every_stage(two[1], "score_second"):
        remake(stage, lambda record: record["identity"]["config"].update(max_tokens=64))
    rows, notes = win_rates()
    assert "by second (95 %)" in rows[0]
    assert "second was not asked in the same way: max_tokens is 1000 in A, 64 in B." in notes


def test_more_than_a_few_runs_are_held_against_the_first(two, tmp_path):
    for name in "cdef":
        shutil.copytree("a", name)
    found = section(compared(*"abcdef"), "Win rate")
    assert [row[:2] for row in found.rows] == [["A π1", f"{letter} π1"] for letter in "BCDEF"]
    assert "Each against A π1, the first one: 5 of 15 pairs." in found.notes[0]
    assert len(section(compared(*"abcde"), "Win rate").rows) == 10


def test_sorted_by_every_figure(two):
    shutil.rmtree(two[1] / "iteration_001")
    for sort in FIGURES:
        rows = [row for each in runs_of(["a", "b"])[0] for row in each.folder.rows]
        assert len(rows) == 5
        found = section(compared(sort=sort), "What")
        assert [row[0] for row in found.rows] == ["A", "B"], "letters follow the order"
    by_score = section(compared("b", "a", sort="score"), "What").rows
    assert [row[1] for row in by_score] == ["π1", "π0"], "the higher score comes first"
    by_kl = section(compared("a", "b", iteration=0, sort="kl"), "Runs").rows
    assert [row[1] for row in by_kl] == ["a", "b"], "equals stay in the order named"
    with pytest.raises(
        ConfigError, match=r"sort=beauty: no such figure\. Sort by one of score, gold, win_rate"
    ):
        compared(sort="beauty")


def test_what_has_no_figure_comes_last(two):
    shutil.rmtree(two[0] / "iteration_000")
    comparison = compared(sort="gold")
    assert [row[1] for row in section(comparison, "Runs").rows] == ["b", "a"]
    assert section(comparison, "What").rows[1][1:] == ["–"] * 8
    assert "B: no policy is evaluated" in " ".join(section(comparison, "Runs").notes)
    assert "Fewer than two runs" in section(comparison, "Win rate").notes[0]


@pytest.mark.parametrize(
    ("sort", "stage", "change"), [("score", "score", other_model), ("gold", "gold", other_rule)]
)
def test_no_order_by_what_cannot_be_compared(two, sort, stage, change):
    for each in every_stage(two[1], stage):
        remake(each, change)
    with pytest.raises(ConfigError, match=f"sort={sort}: .* different judges.*Sort by win_rate"):
        compared(sort=sort)
    assert compared(sort="win_rate").sections


def test_an_iteration_that_is_named(two):
    shutil.rmtree(two[1] / "iteration_002")
    rows = section(compared(iteration=2), "What").rows
    assert rows[0][1] == "π2" and rows[1][1:] == ["–"] * 8
    with pytest.raises(ConfigError, match=r"iteration=7: .*Evaluated: 0, 1, 2"):
        compared(iteration=7)


def test_an_unfinished_and_damaged_run_is_told_and_the_rest_is_shown(two):
    _, b = two
    (b / "iteration_002" / "dpo").rename(b / "iteration_002" / ".dpo.partial")
    (b / HELD_OUT / "reference" / "artifact.json").write_text("{}")
    comparison = compared()
    said = " ".join(section(comparison, "Runs").notes)
    assert "B is unfinished: iteration_002/dpo" in said
    assert f"B: {HELD_OUT}/reference is left out:" in said and "damaged" in said
    row = dict(zip(section(comparison, "What").heads, section(comparison, "What").rows[1], strict=True))
    assert row["KL to π0"] == "–" and row["score"] != "–"
    assert "Left out, for their gold or KL is not known: B π1." in section(comparison, "Every").notes


def test_stages_of_another_schema_are_told(two):
    for stage in every_stage(two[1], "mix"):
        remake(stage, lambda record: record["identity"].update(schema=0))
    comparison = compared()
    assert "of schema 0; this one reads schema 1" in " ".join(section(comparison, "Runs").notes)
    assert section(comparison, "What").rows[1][1:] == ["–"] * 8


def test_one_run_alone(two):
    text = as_text(compared("a").sections)
    assert "Fewer than two runs have an evaluated policy" in text and "Every policy: gold against KL" in text


def points(*figures):
    return [Point("A", number, *pair) for number, pair in enumerate(figures)]


def test_the_front_takes_gold_then_another_judge_then_the_score(two):
    def figure():
        return front_of(runs_of(["a", "b"])[0]).figure

    assert figure() == "gold"
    for stage in every_stage(two[1], "gold"):
        shutil.rmtree(stage)
    assert figure() == "second"
    for stage in every_stage(two[1], "score_second"):
        shutil.rmtree(stage)
    assert figure() == "score", "and not main, which is a part of it"
    for run in two:
        for name in ("score_words", "score_second", "mix", "gold"):
            for stage in every_stage(run, name):
                shutil.rmtree(stage)
        (run / "config.yaml").write_text("seed: 1\n")
    assert figure() == "score"
    for stage in every_stage(two[1], "score"):
        remake(stage, other_model)
    front = front_of(runs_of(["a", "b"])[0])
    assert not front.figure and not front.points and "No judge and no gold" in front.notes[0]


def test_the_front(two):
    comparison = compared()
    found = section(comparison, "Every policy: gold against KL")
    figures = {(row[0], row[1]): (float(row[2]), float(row[3])) for row in found.rows}
    assert len(figures) == 6
    for (letter, policy), (kl, gold) in figures.items():
        beaten = any(k <= kl and g >= gold and (k, g) != (kl, gold) for k, g in figures.values())
        assert ((letter, int(policy[1:])) in comparison.front.best) == (not beaten)
    marked = [row[0] + row[1] for row in found.rows if row[-1] == "★"]
    assert marked and marked[0][0] == "A" and len(marked) % 2 == 0, "equal points are both on it"


def test_the_log_ratio_of_other_samples_is_no_kl(two):
    for stage in every_stage(two[1], "generate"):
        remake(stage, lambda record: record["config"].update(temperatures=[0.5]))
    comparison = compared()
    assert "B: log π/π0 is the mean over samples" in " ".join(section(comparison, "What").notes)
    assert section(comparison, "What").rows[1][5] == "–"
    assert {point.letter for point in comparison.front.points} == {"A"}


HOSTILE = "</title><script>alert(1)</script>\x1b[31m‮"


def test_a_page_that_loads_nothing_and_shows_every_text_as_text(two):
    name = "<img src=x onerror=alert(1)>&\x1b[31m"
    two[1].rename(name)
    page = page_of(compared("a", name))
    assert GENERATOR in page[:1000]
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;&amp;" in page and "\x1b" not in page
    assert not re.search(r"<script|https?://|@import|url\(|<link|src=(?!x)", page)
    assert page.count("<circle") == 6 and "prefers-color-scheme: dark" in page and "@media print" in page


def test_hostile_settings_stay_text(two):
    config = two[1] / "config.yaml"
    config.write_text(config.read_text() + f'hostile: "{HOSTILE.encode("unicode_escape").decode()}"\n')
    page = page_of(compared())
    assert "<script" not in page and "\u202e" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page
    text = as_text(compared().sections)
    assert "\x1b" not in text and "\u202e" not in text


def test_a_drawing_of_one_point_and_of_none(two):
    comparison = compared("a")
    comparison.front.points = points((0.0, 0.0))
    assert "nan" not in page_of(comparison)
    comparison.front = Front()
    assert "<svg" not in page_of(comparison)
