"""`python -m rlhf.whatif` as it is typed: what it prints, and what it refuses."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.unit.old_run import contents, old_run
from tests.unit.refusals import Case, cases, refuse, run_here


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return old_run(tmp_path, "r")


def said_by(monkeypatch, capsys, command):
    assert run_here(monkeypatch, command) == 0
    said = capsys.readouterr()
    assert not said.err
    return said.out


def rows_of(said):
    """The first cell and the pairs of each line of the tables."""
    return re.findall(r"^(own.*?|\w+=.*?)  +(\d+) +[\d.]+ %", said, re.MULTILINE)


def test_the_run_alone(run, monkeypatch, capsys):
    before = contents(run)
    said = said_by(monkeypatch, capsys, "whatif run_dir=r")
    assert rows_of(said) == [("own", "10"), ("own", "10"), ("own", "20")]
    assert said.count("100.0 %)") == 3, "the run's own pairs come out again"
    assert re.findall(r"^[124] ", said, re.MULTILINE) == ["1 ", "2 ", "4 "], "best of k"
    assert "own: strategy=best_worst truncated=allow" in said and "20 prompts × 4 responses in" in said
    assert contents(run) == before, "nothing is written into a run"


@pytest.mark.parametrize("values", ["best_worst,random", "[best_worst,random]"])
def test_several_values(values, run, monkeypatch, capsys):
    said = said_by(
        monkeypatch, capsys, f"whatif run_dir=r iterations=2 pair.strategy={values} pair.min_margin=0,100"
    )
    assert rows_of(said) == [
        ("own (strategy=best_worst min_margin=0.0)", "10"),
        ("strategy=best_worst min_margin=100.0", "0"),
        ("strategy=random min_margin=0.0", "10"),
        ("strategy=random min_margin=100.0", "0"),
    ]
    assert "below_margin 10" in said and "Iteration 2" in said and "Iteration 1" not in said


def test_an_unfinished_run(run, monkeypatch, capsys):
    shutil.rmtree(run / "iteration_002" / "mix")
    (run / "iteration_001" / "pair" / "artifact.json").write_text("{}")
    said = said_by(monkeypatch, capsys, "whatif run_dir=r pair.truncated=drop")
    assert "It has no pairs to read; those of the run's own settings stand for them." in said
    assert "iteration 2 is left out" in said and "iteration 1: its pairs are left out:" in said


def some_run(folder):
    old_run(folder, "r")


def given_pairs(folder):
    iteration = old_run(folder, "r") / "iteration_001"
    shutil.rmtree(folder / "r" / "iteration_002")
    for name in ("generate", "score", "score_words", "mix"):
        shutil.rmtree(iteration / name)
    (iteration / "pair").rename(iteration / "preferences")


@cases(
    Case("no run", "whatif", ["run_dir=… is missing", "Add it to the command"]),
    Case("missing", "whatif run_dir=x", ["run_dir=x", "does not exist"]),
    Case("part", "whatif run_dir=r/iteration_001", ["is a part of the run", "Name that"], {}, some_run),
    Case("unknown iteration", "whatif run_dir=r iterations=7", ["iterations=7", "of 1, 2"], {}, some_run),
    Case("iteration 0", "whatif run_dir=r iterations=0,1", ["iterations=0", "of 1, 2"], {}, some_run),
    Case("strategy", "whatif run_dir=r pair.strategy=best", ["pair.strategy", "best_worst"], {}, some_run),
    Case("text", "whatif run_dir=r pair.min_margin=a,1", ["pair.min_margin", "'a'"], {}, some_run),
    Case("negative", "whatif run_dir=r pair.min_margin=-1", ["=-1.0", "not be negative"], {}, some_run),
    Case("many", "whatif run_dir=r pair.num_candidates=9", ["=9", "4 responses"], {}, some_run),
    Case("unknown key", "whatif run_dir=r pair.margin=1", ["pair.margin", "no such setting"], {}, some_run),
    Case(
        "given pairs",
        "whatif run_dir=r",
        ["no iteration has", "pairs were given (pair.data)"],
        {},
        given_pairs,
    ),
    Case("several runs", "whatif run_dir=r,s", ["run_dir", "r,s"], {}, some_run),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)
