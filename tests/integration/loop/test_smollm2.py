"""`experiment=smollm2` on a tiny ChatML model, or on SmolLM2 itself where its folder is there."""

import json
import subprocess
import sys

import pytest

from rlhf.data.shards import read_all_rows
from rlhf.world.instruction_prompts import draw_sets
from tests.commands import ROOT, digests, loop
from tests.families import tiny_policy
from tests.tiny import tiny_reward_model

THINGS = ("tea", "rain", "a bridge", "chess", "bread", "a map", "snow", "a violin", "iron", "the moon")
ASKED = ("What is {} good for?", "How would you explain {} to a child?", "Where does one find {}?")


def told(folder, model):
    """Questions with instructions as the script adds them, both kinds of held-out ones among them."""
    questions = [asked.format(thing) for thing in THINGS for asked in ASKED]
    sets = draw_sets(questions, None, 6, 6, seed=1)
    for name, prompts in (("prompts.jsonl", sets.train), ("held_out.jsonl", sets.held_out)):
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return [
        "experiment=smollm2",
        f"model.path={model}",
        "prompts.path=prompts.jsonl",
        "prompts.held_out_path=held_out.jsonl",
        "prompts.num_per_iteration=8",
        "num_iterations=1",
        "generate.n=4",
        "dpo.batch_size=4",
        "compute.num_inference_workers=1",
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of a random ChatML model."""
    folder = tmp_path_factory.mktemp("smollm2")
    settings = [
        *told(folder, tiny_policy(folder / "policy", "qwen2")),
        "model.dtype=float32",
        "generate.engine=transformers",
        "generate.max_new_tokens=12",
        "pair.truncated=allow",
        f"+evaluate.judges.watching={tiny_reward_model(folder / 'judge')}",
        "score.engine=transformers",
        "evaluate.greedy=5",
        "score.max_tokens=1100",
    ]
    run = folder / "run"
    code, said = loop(run, *settings)
    assert code == 0, said
    return run, settings, said


def test_it_runs_to_its_end_and_reports_both_sets_of_kinds(tiny):
    run, _, said = tiny
    rows = json.loads((run / "summary.json").read_text())["iterations"]
    assert len(rows) == 2
    for row in rows:
        assert set(row["judges"]) == {"other_kinds", "watching"}
        num_seen, num_other = 6 * 2, 6 * 2
        assert row["left_out"] == {"gold": num_other, "other_kinds": num_seen}
        assert 0 <= row["gold_accuracy"] <= 1
        assert 0 <= row["judges"]["other_kinds"]["mean_score"] <= 1
    assert "responses left out" in said
    assert (run / "report.html").is_file()


def test_it_resumes_with_nothing_to_do(tiny):
    run, settings, _ = tiny
    before = digests(run)
    code, said = loop(run, *settings)
    assert code == 0, said
    assert "0 to do" in said
    assert digests(run) == before


def test_scores_are_those_of_the_rule_whoever_asks(tiny):
    from rlhf.world.instructions import graded

    run, _, _ = tiny
    candidates = read_all_rows(run / "iteration_001" / "generate")
    scores = read_all_rows(run / "iteration_001" / "score")
    for sampled, scored in zip(candidates, scores, strict=True):
        expected = [graded(sampled["messages"], candidate["text"]) for candidate in sampled["candidates"]]
        assert scored["scores"] == pytest.approx(expected)


def test_every_policy_answers_the_same_prompts_greedily(tiny):
    run, _, _ = tiny
    ids = []
    for iteration in ("iteration_000", "iteration_001"):
        rows = list(read_all_rows(run / iteration / "held_out" / "greedy"))
        ids.append([row["id"] for row in rows])
        assert [[candidate["temperature"] for candidate in row["candidates"]] for row in rows] == [[0.0]] * 5
    held_out = [row["id"] for row in read_all_rows(run / "iteration_000" / "held_out" / "generate")]
    assert ids[0] == ids[1] == held_out[:5]
    assert "5 held-out prompts, answered at temperature 0" in (run / "report.html").read_text()


def test_its_figures_can_be_told(tiny):
    run, _, _ = tiny
    script = ROOT / "scripts" / "experiments" / "smollm2.py"
    done = subprocess.run([sys.executable, str(script), str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kinds trained on (6 prompts)" in done.stdout
    assert "kinds held out (6 prompts)" in done.stdout
    assert "π1, greedy, 5 prompts: gold" in done.stdout
    assert "distinct-2" in done.stdout and "refusals" in done.stdout


def test_the_real_model_runs_an_iteration(tmp_path, real_model):
    # As shipped, so that most responses end of themselves, and enough prompts for pairs whatever is drawn: samples
    # differ from one kind of processor to another.
    settings = [*told(tmp_path, real_model), "prompts.num_per_iteration=16"]
    code, said = loop(tmp_path / "run", *settings)
    assert code == 0, said
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"]
    assert len(rows) == 2 and rows[1]["pairs"] > 0
