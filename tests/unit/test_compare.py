"""`python -m rlhf.compare` as it is typed: what it prints and writes, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.unit.old_run import contents, old_run
from tests.unit.refusals import ROOT, Case, cases, refuse, run_here


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Two runs of a sweep, by the names that a sweep gives."""
    for name in ("dpo.beta=0.1,seed=1", "dpo.beta=0.2,seed=1"):
        old_run(tmp_path / "sweep", name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sweep"


COMMANDS = [
    "compare sweep",
    "compare runs=sweep",
    "compare runs=sweep/*",
    "compare sweep/dpo.beta=0.1,seed=1 sweep/dpo.beta=0.2,seed=1",
    "compare runs=[sweep/dpo.beta=0.1,seed=1,sweep/dpo.beta=0.2,seed=1]",
    "compare runs=sweep/dpo.beta=0.1,seed=1 runs=sweep/dpo.beta=0.2,seed=1",
    "compare runs=sweep/dpo.beta=0.1,seed=1,sweep/dpo.beta=0.2,seed=1 sort=gold iteration=1",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_runs_in_every_form(command, sweep, monkeypatch, capsys):
    before = contents(sweep)
    assert run_here(monkeypatch, command) == 0
    said = capsys.readouterr()
    assert "A  dpo.beta=0.1,seed=1  42 finished" in said.out and "A π1  B π1" in said.out and not said.err
    assert "None: the runs have the same settings." in said.out
    assert contents(sweep) == before, "nothing is written into a run"


def test_a_page_is_written_and_written_anew(sweep, monkeypatch, capsys):
    assert run_here(monkeypatch, "compare sweep output=pages/c.html") == 0
    page = sweep.parent / "pages" / "c.html"
    first = page.read_text(encoding="utf-8")
    assert "dpo.beta=0.2,seed=1" in first and f"written to {page}" in capsys.readouterr().out
    page.write_text(first.replace("Comparison", "Older"), encoding="utf-8")
    assert run_here(monkeypatch, "compare sweep output=pages/c.html") == 0
    assert page.read_text(encoding="utf-8") == first


def some_run(folder):
    old_run(folder, "r")


@cases(
    Case("no run", "compare", ["runs=[]: names no run", "python -m rlhf.compare runs/a runs/b"]),
    Case("missing", "compare runs=nowhere", ["runs=nowhere:", "does not exist", "Name the folder of a run"]),
    Case("one missing", "compare r runs=nowhere", ["runs=nowhere:", "does not exist"], {}, some_run),
    Case("pattern of nothing", "compare runs=x/*", ["runs=x/*: matches nothing", "runs/sweep/*"]),
    Case("unknown figure", "compare r sort=beauty", ["sort=beauty: no such figure", "gold"], {}, some_run),
    Case("unknown iteration", "compare r iteration=9", ["iteration=9", "Evaluated: 0, 1, 2"], {}, some_run),
    Case("iteration of text", "compare r iteration=x", ["iteration", "'x'", "Integer"], {}, some_run),
    Case("suffix", "compare r output=c.txt", ["output=c.txt", "writes .html"], {}, some_run),
    Case(
        "output of others",
        "compare r output=c.html",
        ["output=c.html", "no comparison of this tool", "rm "],
        {"c.html": "<html>mine</html>"},
        some_run,
    ),
    Case(
        "output is a folder",
        "compare r output=c.html",
        ["output=c.html", "exists"],
        {},
        lambda folder: (some_run(folder), (folder / "c.html").mkdir()),
    ),
    Case("unknown key", "compare r run=x", ["run", "did you mean runs?"], {}, some_run),
    Case("sweep", "compare -m r sort=gold,kl", ["sweeps (-m) are for", "rlhf.iterate"], {}, some_run),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)


def test_a_word_that_names_nothing(sweep, monkeypatch, capsys):
    assert run_here(monkeypatch, "compare sweep nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_as_a_shell_expands_it(sweep):
    command = f"{sys.executable} -m rlhf.compare sweep/* sort=win_rate"
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=sweep.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "B  dpo.beta=0.2,seed=1" in done.stdout
