"""The real loop with a weighted sum of a classifier and a rule."""

import json
import math
from statistics import fmean, pstdev

import pytest

from rlhf.data.shards import read_all_rows
from tests.commands import digests, quick_loop
from tests.tiny import tiny_llama, tiny_reward_model

WEIGHTS = {"main": 2.0, "short": -0.5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one iteration, what it was told, and what it printed."""
    folder = tmp_path_factory.mktemp("mixed")
    tiny_llama(folder / "policy", seed=1)
    tiny_reward_model(folder / "judge", seed=2)
    rows = [{"prompt": f"Say {i} in words"} for i in range(18)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [
        f"model.path={folder / 'policy'}",
        f"reward_model.path={folder / 'judge'}",
        "reward_model.weight=2",
        "+reward_model.others={short: {rule: 'tests.unit.rules:length', weight: -0.5}}",
        f"prompts.path={folder / 'prompts.jsonl'}",
        *[
            "prompts.num_per_iteration=12",
            "prompts.num_held_out=6",
            "num_iterations=1",
            "evaluate.n=2",
            "dpo.batch_size=4",
        ],
        *[
            "generate.engine=transformers",
            "generate.n=4",
            "generate.max_new_tokens=8",
            "pair.truncated=allow",
        ],
        *[
            "generate.shard_size=5",
            "dpo.batch_size=4",
            "dpo.gradient_checkpointing=false",
            "dpo.learning_rate=1e-3",
        ],
    ]
    code, said = quick_loop(folder / "run", *told)
    assert code == 0, said
    return folder / "run", told, said


def scores_of(run, name):
    return {row["id"]: row["scores"] for row in read_all_rows(run / name)}


def test_every_iteration_is_scored_on_the_scale_of_the_initial_policy(finished):
    run, _, _ = finished
    scale = {}
    for judge, stage in (("main", "score"), ("short", "score_short")):
        values = [v for row in scores_of(run, f"iteration_000/held_out/{stage}").values() for v in row]
        scale[judge] = fmean(values), pstdev(values)
    for place in ("iteration_000/held_out", "iteration_001", "iteration_001/held_out"):
        mixed, apart = scores_of(run, f"{place}/mix"), {}
        for judge, stage in (("main", "score"), ("short", "score_short")):
            mean, std = scale[judge]
            rows = scores_of(run, f"{place}/{stage}")
            apart[judge] = {
                name: [WEIGHTS[judge] * (v - mean) / std for v in row] for name, row in rows.items()
            }
        assert list(mixed) == list(apart["main"])
        for name, row in mixed.items():
            assert row == pytest.approx(
                [a + b for a, b in zip(apart["main"][name], apart["short"][name], strict=True)]
            )


def test_pairs_are_made_by_the_sum(finished):
    run, _, _ = finished
    mixed = scores_of(run, "iteration_001/mix")
    pairs = list(read_all_rows(run / "iteration_001" / "pair"))
    assert pairs
    for pair in pairs:
        assert (pair["chosen_score"], pair["rejected_score"]) == (
            max(mixed[pair["id"]]),
            min(mixed[pair["id"]]),
        )


def test_the_table_shows_the_sum_and_each_judge(finished):
    run, _, said = finished
    first, last = json.loads((run / "summary.json").read_text())["iterations"]
    assert first["mean_score"] == pytest.approx(0, abs=1e-9)  # the scale is π0's own
    assert list(first["judges"]) == ["main", "short"] and 0 <= first["disagreement"] <= 1
    assert last["judges"]["short"]["win_rate"] is not None and math.isfinite(last["mean_score"])
    heads = next(line for line in said.split("\n") if line.startswith("policy"))
    assert "main" in heads and "short" in heads
    assert "✓ iteration_001/mix" in said and "disagreement" in said


def test_the_same_command_redoes_nothing_and_another_weight_is_refused(finished):
    run, told, _ = finished
    before = digests(run)
    code, said = quick_loop(run, *told)
    assert code == 0 and "✓" not in said and "0 to do" in said, said
    code, said = quick_loop(run, *told, "reward_model.others.short.weight=-1")
    assert code == 2 and "config.weights.short: -0.5 there, -1.0 now" in said and "Traceback" not in said
    assert digests(run) == before
