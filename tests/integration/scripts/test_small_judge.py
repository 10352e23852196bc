"""`scripts/experiments/small_judge.py`: a judge made from nothing, held out by prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.world.tasks import preference_rows

ROOT = Path(__file__).resolve().parents[3]
HELLO = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "What shall I do?"}]


def script(name, *arguments):
    command = [sys.executable, ROOT / "scripts" / "experiments" / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def cells(said, first):
    """The cells of the lines of a table whose first cell begins so."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in said.split("\n") if line.startswith("| ")
    ]
    return [line for line in lines if line[0].startswith(first)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("small")
    for number, name in enumerate(("one", "two")):
        rows = [
            {side: [row[side][0], *HELLO[::-1], *row[side]] for side in ("chosen", "rejected")}
            for row in preference_rows(number, 60)
        ]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"data=easy:{out / 'one.jsonl'},hard:{out / 'two.jsonl'}"
    return out, script("small_judge", f"out={out}", files, "share=0.3", "reward_model.learning_rate=0.003")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_no_held_out_prompt_is_trained_on_and_none_is_lost(made):
    out, _ = made
    train, held_out = lines(out / "train.jsonl"), lines(out / "held_out.jsonl")
    assert len(train) + len(held_out) == 120 and 15 < len(held_out) < 60
    assert not {row["chosen"][0]["content"] for row in train} & {
        row["prompt"][0]["content"] for row in held_out
    }
    counts = json.loads((out / "run" / "reward_model" / "artifact.json").read_text())["counts"]
    assert counts["pairs"] == len(train) and counts["held_out"] == 0


def test_accuracy_by_source_is_that_of_the_scores(made):
    out, said = made
    held_out, scored = lines(out / "held_out.jsonl"), json.loads((out / "held_out.json").read_text())["rows"]
    for source in ("easy", "hard", "all"):
        mine = [(s, p) for s, p in zip(scored, held_out, strict=True) if source in (p["subset"], "all")]
        judge = sum(s["chosen"] > s["rejected"] for s, _ in mine) / len(mine)
        length = sum(len(p["chosen"]) > len(p["rejected"]) for _, p in mine) / len(mine)
        ((_, number, ours, longer),) = cells(said, source)
        assert int(number) == len(mine)
        assert ours.startswith(f"{judge:.3f} [") and longer.startswith(f"{length:.3f} [")
        low, high = map(float, ours.split("[")[1].rstrip("]").split(","))
        assert 0 <= low < judge < high <= 1 or judge in (0, 1)
