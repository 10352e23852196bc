"""Every recipe's experiment runs on tiny models, resumes with nothing to do, and can be looked at."""

import json

import pytest

from tests.commands import called, digests, quick_loop
from tests.tiny import tiny_llama, tiny_reward_model
from tests.unit.config.test_experiments import RECIPES

TOLD = {
    "inpo": ["num_iterations=2"],
    "replay": ["num_iterations=2", "replay.data=pairs.jsonl"],
    "score_aware": ["dpo.score_scale=0.5"],
    "best_sigma": ["generate.n=6"],
    "raft": ["raft.batch_size=4", "raft.gradient_checkpointing=false", "raft.learning_rate=1e-3"],
    "skywork_judge": [
        "reward_model.path=judge",
        "evaluate.judges.fsfairx=second",
        "prompts.path=prompts.jsonl",
    ],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with models, prompts and pairs, and what a run of them is told."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_llama(folder / "policy", seed=1)
    tiny_reward_model(folder / "judge", seed=2)
    tiny_reward_model(folder / "second", seed=3)
    rows = [{"prompt": f"Say {i} in words"} for i in range(22)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"Name {i}", "chosen": "the name", "rejected": "no"} for i in range(5)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder, [
        *[
            "model.path=policy",
            "reward_model.path=judge",
            "prompts.path=prompts.jsonl",
            "model.dtype=float32",
        ],
        *["prompts.num_per_iteration=8", "prompts.num_held_out=6", "num_iterations=1", "evaluate.n=2"],
        *[
            "generate.engine=transformers",
            "generate.n=4",
            "generate.max_new_tokens=8",
            "generate.shard_size=5",
        ],
        *[
            "pair.truncated=allow",
            "dpo.batch_size=4",
            "dpo.gradient_checkpointing=false",
            "dpo.learning_rate=1e-3",
        ],
        *["score.engine=transformers", "score.max_tokens=1100", "reward_model.dtype=float32"],
    ]


@pytest.fixture(scope="module")
def plain(given):
    """A run by the paper's recipe, to compare others with."""
    folder, overrides = given
    code, said = quick_loop(folder / "plain", *overrides)
    assert code == 0, said


@pytest.fixture(scope="module", params=[*RECIPES, "skywork_judge"])
def recipe(request, given):
    """A recipe's name, its finished run, what it was told and what it printed."""
    folder, overrides = given
    if request.param == "raft":
        overrides = [word for word in overrides if not word.startswith("dpo.")]
    told = [f"experiment={request.param}", *overrides, *TOLD.get(request.param, [])]
    code, said = quick_loop(folder / request.param, *told)
    assert code == 0, said
    return request.param, folder / request.param, told, said


def record(run, name):
    return json.loads((run / name / "artifact.json").read_text())


def steps_of(run, name):
    return [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_and_says_what_came_out(recipe):
    name, run, _, said = recipe
    trained = "raft" if name == "raft" else "dpo"
    assert f"✓ iteration_001/{trained}" in said and "best policy" in said and "gates.first_loss" not in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"][-1]["kl"] is not None
    losses = [step["loss"] for step in steps_of(run, f"iteration_001/{trained}")]
    assert all(isinstance(loss, float) for loss in losses)
    stages = set(digests(run))
    assert ("iteration_001/reference" in stages) == (name not in ("simpo", "raft"))
    assert ("iteration_001/pair" in stages) == (name != "raft")


def test_what_is_particular_of_it(recipe):
    name, run, _, _ = recipe
    if name == "inpo":
        inputs = record(run, "iteration_002/dpo")["identity"]["inputs"]
        assert {"reference", "reference_previous"} < inputs.keys()
        assert steps_of(run, "iteration_001/dpo")[0]["loss"] == pytest.approx(1 / (4 * 0.0075**2), rel=1e-3)
    if name == "replay":
        counts = [record(run, f"iteration_00{t}/dpo")["counts"] for t in (1, 2)]
        own = record(run, "iteration_001/pair")["counts"]["pairs"]
        assert counts[0]["pairs/own"] == counts[1]["pairs/iteration_001"] == own
        assert counts[0]["pairs/replay"] == counts[1]["pairs/replay"] == 5
        for each in counts:
            assert each["pairs"] == sum(number for key, number in each.items() if key.startswith("pairs/"))
        assert not [stage for stage in digests(run) if "_of_" in stage], "no inference for what is replayed"
    if name == "raft":
        counts = record(run, "iteration_001/raft")["counts"]
        assert counts["prompts"] == counts["conversations"] == 8 and counts["held_out"] == 0
        assert "method=raft" in (run / "report.html").read_text()
        assert "raft" in (run / "best" / "README.md").read_text().lower()
    if name in ("score_aware", "length_normalized_dpo", "best_sigma"):
        assert steps_of(run, "iteration_001/dpo")[0]["loss"] == pytest.approx(0.693147, abs=1e-3)


def test_a_resume_has_nothing_to_do(recipe):
    _, run, told, _ = recipe
    before = digests(run)
    code, said = quick_loop(run, *told)
    assert code == 0 and "0 to do" in said and "✓" not in said, said
    assert digests(run) == before


def test_people_can_look_at_it(recipe, given, plain):
    _, run, _, _ = recipe
    page = (run / "report.html").read_text()
    assert "Training loss" in page
    tools = {
        "status": [],
        "report": [],
        "plan": [],
        "chat": ["once=Say 1", "max_new_tokens=4", "iterations=[1]"],
        "compare": [f"runs=[{run},{given[0] / 'plain'}]"],
    }
    for tool, words in tools.items():
        where = [] if tool == "compare" else [f"run_dir={run}"]
        code, said = called(run.parent, f"rlhf.{tool}", *where, *words)
        assert code == 0, (tool, said)
