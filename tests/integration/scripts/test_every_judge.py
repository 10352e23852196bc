"""`every_judge.py` with little training: every kind of judge in one experiment that shares SFT and
samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.data.shards import read_all_rows

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("scalar", "pairwise", "rule", "remote")
LITTLE = {
    "world": "base_steps=40 num_sft_examples=64 num_preferences=160 num_prompts=16 num_held_out=6",
    "prompts": "num_per_iteration=16 num_held_out=6",
    "generate": "engine=transformers max_new_tokens=8 n=4",
    "pair": "truncated=allow",
    "dpo": "batch_size=8 num_epochs=1",
    "evaluate": "n=2",
    "compute": "num_inference_workers=1 num_training_ranks=1",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every") / "out"
    settings = [f"{section}.{word}" for section, words in LITTLE.items() for word in words.split()]
    command = [
        sys.executable,
        ROOT / "scripts" / "experiments" / "every_judge.py",
        f"out={folder}",
        "rule=tests.unit.rules:length",
    ]
    done = subprocess.run(
        [*command, *settings], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    lines = done.stdout.strip().split("\n")[-4:]
    assert [line.split("|")[1].strip() for line in lines] == list(KINDS)
    return folder


def made(run, stage):
    return json.loads((run / stage / "artifact.json").read_text())


def scores(run):
    return [value for row in read_all_rows(run / "iteration_001" / "score") for value in row["scores"]]


def test_sft_and_samples_are_made_once(out):
    for part in ("sft/model/model.safetensors", "iteration_001/generate/shard_00000.parquet"):
        files = [out / kind / part for kind in KINDS]
        assert all(os.path.samefile(file, files[0]) for file in files)
    trained = [made(out / kind, "reward_model")["identity"] for kind in KINDS[:2]]
    assert (
        trained[0]["inputs"]["data"] == trained[1]["inputs"]["data"]
    )  # the same preferences, two kinds of judge
    assert trained[1]["config"]["kind"] == "pairwise" and "kind" not in trained[0]["config"]


def test_every_kind_makes_pairs_of_every_prompt_or_says_why_not(out):
    for kind in KINDS:
        counts = made(out / kind, "iteration_001/pair")["counts"]
        dropped = sum(number for key, number in counts.items() if key.startswith("dropped/"))
        assert counts["prompts_with_pairs"] + dropped == counts["prompts"] == 16
        assert made(out / kind, "iteration_001/dpo")["counts"]["pairs"] == counts["pairs"] > 0
        assert ("judge_calls" in made(out / kind, "iteration_001/score")["counts"]) == (kind == "pairwise")


def test_the_server_gives_the_scores_of_its_weights(out):
    assert scores(out / "remote") == pytest.approx(scores(out / "scalar"), abs=1e-4)
    assert scores(out / "remote") != scores(out / "scalar")  # another engine's, not taken from the other run
    rows = [
        json.loads((out / f"rewardbench_{kind}.json").read_text())["rows"] for kind in ("scalar", "remote")
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert [ours[side] for side in ("chosen", "rejected")] == pytest.approx(
            [theirs[side] for side in ("chosen", "rejected")], abs=1e-4
        )


def test_each_kind_scores_in_its_own_way(out):
    rows = {kind: json.loads((out / f"rewardbench_{kind}.json").read_text())["rows"] for kind in KINDS}
    assert {len(found) for found in rows.values()} == {6}
    assert all(row["chosen"] + row["rejected"] == pytest.approx(1) for row in rows["pairwise"])
    pairs = [json.loads(line) for line in (out / "rewardbench.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows["rule"]] == [len(pair["chosen"]) for pair in pairs]
