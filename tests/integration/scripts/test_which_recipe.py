"""`scripts/experiments/which_recipe.py`: a small table, killed and gone on with; its runs are those of the loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.data.json_text import json_text
from tests.commands import ROOT, digests, loop

SMALL = [
    *["world.num_base_examples=300", "world.num_sft_examples=32", "world.num_preferences=40"],
    *["world.num_judge_prompts=10", "world.num_prompts=40", "world.num_held_out=8", "world.base_steps=10"],
    *["reward_model.on_policy.prompts=null", "reward_model.on_policy.rule=null"],
    *["prompts.num_held_out=8", "prompts.num_per_iteration=16", "num_iterations=1"],
    *["generate.n=4", "generate.max_new_tokens=8", "pair.truncated=allow", "dpo.batch_size=8"],
]


def started(out: Path) -> subprocess.Popen[str]:
    """The table of two recipes and two seeds, with a given rate."""
    words = [
        f"out={out}",
        f"output={out / 'page.md'}",
        "recipes=dpo,simpo",
        "seeds=2",
        "main_seeds=2",
        "rate=1e-3",
    ]
    script = ROOT / "scripts" / "experiments" / "which_recipe.py"
    return subprocess.Popen(
        [sys.executable, script, *words, *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As `loop` has it: a tokenizer that was saved offline says so of itself.
        env=dict(os.environ, HF_HUB_OFFLINE="1"),
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def rows(out: Path) -> list[dict]:
    file = out / "results.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table that was killed after its first run, and what it had and said then and at its end."""
    out = tmp_path_factory.mktemp("which") / "table"
    process = started(out)
    while not rows(out):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = rows(out)
    return out, before, ended(started(out))


def test_a_killed_table_goes_on(table):
    out, before, said = table
    assert f"4 runs, {len(before)} of them finished" in said
    after = rows(out)
    assert after[: len(before)] == before
    assert {(row["seed"], row["recipe"]) for row in after} == {
        (s, r) for s in (1, 2) for r in ("dpo", "simpo")
    }
    assert len(after) == 4
    assert "4 runs, 4 of them finished" in ended(started(out))
    page = (out / "page.md").read_text(encoding="utf-8")
    assert "intervals over 2 seeds" in page and "| SimPO | 0.001 |" in page
    assert (out / "recipes.svg").read_text(encoding="utf-8").startswith("<svg")


def test_what_the_recipes_of_a_seed_have_in_common_is_made_once(table):
    out, _, _ = table
    one, other = (digests(out / "seed_1" / f"{recipe}@0.001") for recipe in ("dpo", "simpo"))
    assert one["iteration_001/dpo"] != other["iteration_001/dpo"]
    for name in ("world", "sft", "reward_model", "iteration_001/generate", "iteration_001/score"):
        files = [out / "seed_1" / f"{recipe}@0.001" / name / "artifact.json" for recipe in ("dpo", "simpo")]
        assert files[0].samefile(files[1]), name


def test_a_run_is_what_the_loop_makes_of_the_same_settings(table):
    out, _, _ = table
    row = next(row for row in rows(out) if (row["seed"], row["recipe"]) == (2, "dpo"))
    code, said = loop(out.parent / "loop", *row["told"])
    assert code == 0, said
    ours = digests(out / "seed_2" / "dpo@0.001")
    its = digests(out.parent / "loop")
    assert {name: digest for name, digest in ours.items() if "greedy" not in name} == its
    summary = json.loads((out.parent / "loop" / "summary.json").read_text(encoding="utf-8"))
    policies = [{key: value for key, value in policy.items() if key != "steps"} for policy in row["policies"]]
    assert json_text(policies) == json_text(summary["iterations"])
    assert row["policies"][1]["steps"] == 4 and set(row["greedy"]) == {"0", "1"}
