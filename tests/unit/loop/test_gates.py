"""Gates: each fires beyond its limit and on the limit does not; what fires warns, stops or is ignored."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rlhf.config.choices import Action, Loss, Reference
from rlhf.config.limits import check_config
from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import ConfigError, RunChanged, UserError
from rlhf.loop.equal_policies import loss_at_equal_policies
from rlhf.loop.figures import Evaluation, Row
from rlhf.loop.gates import Gates, check_iteration, check_stage
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.commit import commit
from rlhf.run.console import Console
from rlhf.run.job import Job
from rlhf.run.plan import Run
from rlhf.run.verified import Verified


def gates_of(findings):
    return [finding.gate for finding in findings]


def counted(folder, stage, **counts):
    return Artifact(folder / stage, "d", {"counts": counts})


def trained(folder, losses, norms=None, accuracies=None, dtype="float32"):
    (folder / "dpo").mkdir(parents=True)
    steps = [{"loss": loss} for loss in losses]
    for key, values in (("grad_norm", norms), ("rewards/accuracies", accuracies)):
        for step, value in zip(steps, values or (), strict=bool(values)):
            step[key] = value
    (folder / "dpo" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return Artifact(folder / "dpo", "d", {"config": {"dtype": dtype}})


@pytest.mark.parametrize(
    ("stage", "counts", "gate"),
    [
        ("generate", {"responses": 100, "truncated": 21}, "truncated"),
        ("generate", {"responses": 100, "truncated": 20}, None),
        ("generate", {"responses": 0, "truncated": 0}, None),
        ("pair", {"prompts": 10, "dropped/identical_text": 3, "dropped/all_tied": 3}, "same_candidates"),
        ("pair", {"prompts": 10, "dropped/identical_text": 5, "dropped/below_margin": 5}, None),
        ("pair", {}, None),
        ("preferences", {"prompts": 10, "dropped/identical_text": 9}, None),
    ],
)
def test_counts(tmp_path, stage, counts, gate):
    found = list(check_stage(Config(), 1, counted(tmp_path, stage, **counts)))
    assert gates_of(found) == ([gate] if gate else [])
    assert all(f.value > f.threshold and f"gates.{f.limit}=" in f.text for f in found)


@pytest.mark.parametrize(
    ("dpo", "t", "loss", "dtype", "fires"),
    [
        ({}, 1, 0.6931472, "float32", False),
        ({}, 1, 0.6960, "float32", True),
        ({}, 1, 0.6960, "bfloat16", False),
        ({}, 1, 0.73, "bfloat16", True),
        ({}, 1, math.nan, "float32", True),
        ({}, 2, 0.5, "float32", False),
        ({"reference": Reference.previous}, 2, 0.5, "float32", True),
        ({"rpo_alpha": 1.0}, 1, 2.5, "float32", False),
        ({"loss": Loss.hinge}, 1, 1.0, "float32", False),
        ({"loss": Loss.hinge}, 1, math.log(2), "float32", True),
        ({"loss": Loss.ipo}, 1, 25.00002, "float32", False),
        ({"loss": Loss.ipo}, 1, 24.9, "float32", True),
        ({"loss": Loss.robust, "label_smoothing": 0.2}, 1, 0.6931472, "float32", False),
    ],
)
def test_first_loss(tmp_path, dpo, t, loss, dtype, fires):
    cfg = Config()
    for key, value in dpo.items():
        setattr(cfg.dpo, key, value)
    assert gates_of(check_stage(cfg, t, trained(tmp_path, [loss], dtype=dtype))) == ["first_loss"] * fires


def test_a_figure_that_was_not_finite_is_read_as_such(tmp_path):
    norms = [1.0] * 5 + [None] * 5 + [1.0] * 5 + [101.0] * 5
    artifact = trained(tmp_path, [None] * 20, norms, accuracies=[None] * 20)
    first, grown = check_stage(Config(), 1, artifact)
    assert first.gate == "first_loss" and math.isnan(first.value)
    assert grown.gate == "grad_norm" and grown.value == 101.0 and "of step 20" in grown.text


@pytest.mark.parametrize("loss", [loss for loss in Loss if loss is not Loss.simpo])
def test_the_loss_at_equal_policies_is_the_one_trained_with(loss):
    torch = pytest.importorskip("torch")
    from rlhf.training.losses import dpo_loss

    cfg = Config().dpo
    cfg.loss, cfg.label_smoothing, cfg.beta = loss, 0.01 if loss is Loss.exo_pair else 0.0, 0.3
    logps = [torch.tensor([-4.0]), torch.tensor([-7.0])]
    length = torch.tensor([3])
    found = dpo_loss(*logps, *logps, length, length, torch.tensor([1.5]), cfg)[0]
    assert found.item() == pytest.approx(loss_at_equal_policies(cfg), rel=1e-6)


@pytest.mark.parametrize("change", [{"loss": Loss.simpo}, {"length_alpha": 0.1}, {"rpo_alpha": 0.5}], ids=str)
def test_a_first_loss_that_nobody_knows_beforehand_is_not_held_against_one(change, tmp_path):
    cfg = Config()
    for key, value in change.items():
        setattr(cfg.dpo, key, value)
    assert loss_at_equal_policies(cfg.dpo) is None
    assert gates_of(check_stage(cfg, 1, trained(tmp_path, [7.0]))) == []


def test_inpo_is_its_own_anchor_in_the_first_iteration_alone(tmp_path):
    cfg = Config()
    cfg.dpo.loss, cfg.dpo.beta = Loss.inpo, 0.0075
    artifact = trained(tmp_path, [4000.0])
    (found,) = check_stage(cfg, 1, artifact)
    assert (found.gate, found.threshold) == ("first_loss", pytest.approx(1 / (4 * 0.0075**2)))
    assert gates_of(check_stage(cfg, 2, artifact)) == []


@pytest.mark.parametrize(
    ("norms", "accuracies", "gates"),
    [
        ([1.0] * 10 + [101.0] + [1.0] * 9, [0.9] * 20, ["grad_norm"]),
        ([1.0] * 10 + [100.0] + [1.0] * 9, [0.9] * 20, []),
        ([1.0] * 5 + [9e9] + [1.0] * 14, [0.9] * 20, []),  # too early to say what is usual
        ([0.0] * 20, [0.9] * 20, []),
        ([1.0] * 20, [0.9] * 10 + [0.49] * 10, ["accuracy"]),
        ([1.0] * 20, [0.0] * 10 + [0.5] * 10, []),
        ([1.0] * 9, [0.0] * 9, []),  # too few steps to say anything
    ],
)
def test_training(tmp_path, norms, accuracies, gates):
    losses = [math.log(2)] * len(norms)
    found = list(check_stage(Config(), 1, trained(tmp_path, losses, norms, accuracies)))
    assert gates_of(found) == gates
    assert all(f.where == tmp_path / "dpo" / "metrics.jsonl" for f in found)
    assert gates != ["grad_norm"] or "step 11 is 101 times" in found[0].text


LN_2 = math.log(2)
FINE = {"losses": [LN_2] * 10 + [0.4] * 10, "accuracy": 0.7, "held_out": 100, "pairs": 900, "cut_left": 0}


def judge(folder, losses, accuracy, **counts):
    path = folder / "reward_model"
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps({"loss": loss}) + "\n" for loss in losses))
    record = {"counts": counts, "metrics": {"held_out_accuracy": accuracy}, "config": {"max_length": 128}}
    return Artifact(path, None, record)  # of no run, so that no file is held against a manifest


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({}, []),
        ({"losses": [0.4] * 19 + [1.5]}, ["last losses are 0.95"]),
        ({"losses": [0.4] * 39 + [0.8]}, []),  # one batch of many is noise
        ({"losses": [0.9, 0.8, LN_2 - 0.002]}, []),
        ({"losses": [0.9, 0.8, LN_2]}, ["last losses are 0.6931"]),
        ({"losses": [LN_2 - 0.0005] * 20}, ["ln 2 = 0.6931"]),  # equal scores, in fp32
        (
            {"accuracy": 0.59},
            ["59.0% of 100 held-out pairs, 95 % interval 0.49", "cannot be told from a coin"],
        ),
        ({"accuracy": 0.60}, []),
        ({"accuracy": 0.59, "held_out": 1000, "pairs": 0}, []),
        ({"accuracy": 0.3}, ["worse than a coin"]),
        ({"accuracy": 1.0, "held_out": 3}, []),  # too few to tell anything
        ({"accuracy": 1.0, "held_out": 4}, []),
        ({"accuracy": 0.75, "held_out": 4}, ["cannot be told"]),
        ({"accuracy": None, "held_out": 0, "pairs": 1000}, []),
        ({"cut_left": 500}, []),
        ({"cut_left": 501}, ["50.1% of the judge's pairs are longer than reward_model.max_length=128"]),
    ],
)
def test_a_judge_at_chance(tmp_path, change, texts):
    found = list(check_stage(Config(), 0, judge(tmp_path, **(FINE | change))))
    assert gates_of(found) == ["judge"] * (len(texts) > 0)
    assert all(text in found[0].text for text in texts)


def test_a_judge_at_chance_is_said_and_can_stop_the_run_before_it_samples(tmp_path, capsys):
    cfg = Config()
    coin = judge(tmp_path, [LN_2] * 3, 0.5, held_out=10, pairs=90, cut_left=0)
    console = Console(tmp_path)
    gates = Gates(Run(tmp_path, cfg, console=console), [])
    gates.stage_finished(0, coin)
    assert capsys.readouterr().out.count("  ! gates.judge: ") == 2 == len(gates.violations)
    cfg.gates.judge = Action.stop
    with pytest.raises(
        UserError, match=r"gates\.judge=stop stopped the run in iteration 0(.|\n)*gates\.judge=warn"
    ):
        gates.stage_finished(0, coin)
    console._log.close()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["iterations"] == [] and written["best_iteration"] is None and len(written["gates"]) == 4


def row(iteration, score=0.0, tokens=10.0, kl=0.0):
    return Row(iteration, score, None, None, None, None, tokens, kl, 0.0, None, {})


def evaluation(folder, t, gold=None, **others):
    def scores(name, values):
        path = folder / f"iteration_{t:03d}" / name
        path.mkdir(parents=True)
        rows = [{"id": str(i), "scores": each} for i, each in enumerate(values)]
        write_shard(path / shard_name(0), SCORES_SCHEMA, rows)
        return Artifact(path, "d")

    made = Artifact(folder / f"iteration_{t:03d}" / "generate", "d")
    judged = {name: scores(f"score_{name}", values) for name, values in others.items()}
    return Evaluation(t, made, made, made, scores("gold", gold) if gold else None, others=judged)


@pytest.mark.parametrize(
    ("change", "gates"),
    [
        ({}, []),
        ({"tokens": 15.0, "kl": 50.0}, []),
        ({"tokens": 15.1}, ["length"]),
        ({"kl": 50.1}, ["kl"]),
        ({"kl": None}, []),
        ({"kl": math.nan}, []),
    ],
)
def test_length_and_kl(tmp_path, change, gates):
    rows = [row(0), replace(row(0), iteration=1), row(2, **change)]
    evaluations = [evaluation(tmp_path, t) for t in range(3)]
    assert gates_of(check_iteration(Config(), rows, evaluations)) == gates
    assert list(check_iteration(Config(), rows[:1], evaluations[:1])) == []


UP, LEVEL, DOWN = (
    [[v + d, v - d] for v, d in zip([x] * 4, (0.1, 0.2, 0.3, 0.4), strict=True)] for x in (2, 1, 0)
)
NOISY = [[0.0], [4.0], [-3.0], [1.0]]
"""Mean 0.5, but its differences from LEVEL are not beyond two standard errors."""


@pytest.mark.parametrize(
    ("score", "before", "now", "bases"),
    [
        (1.0, LEVEL, DOWN, ["π1", "π0"]),  # falls from both
        (1.0, UP, LEVEL, ["π1"]),  # above π0, below the policy before
        (1.0, DOWN, DOWN, ["π0"]),  # fell earlier
        (1.0, LEVEL, UP, []),
        (1.0, LEVEL, NOISY, []),
        (1.0, LEVEL, [[math.nan]] * 4, []),  # nothing to go by
        (-1.0, LEVEL, DOWN, []),  # the training judge falls too
    ],
)
@pytest.mark.parametrize("kind", ["gold", "second"])
def test_a_second_judge_falls_while_the_first_rises(tmp_path, score, before, now, bases, kind):
    rows = [row(0), row(1, 0.5 if score > 0 else -0.5), row(2, score)]
    evaluations = [evaluation(tmp_path, t, **{kind: values}) for t, values in enumerate((LEVEL, before, now))]
    found = list(check_iteration(Config(), rows, evaluations))
    assert gates_of(found) == ["second_judge"] * len(bases)
    assert [f.text.split(" from ")[1][:2] for f in found] == bases
    assert all(
        f.text.startswith("evaluate.gold" if kind == "gold" else "evaluate.judges.second") for f in found
    )


def test_a_judge_of_the_sum_is_no_second_judge(tmp_path):
    cfg = Config()
    cfg.reward_model.others = {"summed": OtherJudge(rule="module:function")}
    judged = [{"main": values, "summed": values, "second": values} for values in (LEVEL, DOWN)]
    evaluations = [evaluation(tmp_path, t, **each) for t, each in enumerate(judged)]
    (found,) = check_iteration(cfg, [row(0), row(1, 1.0)], evaluations)
    assert found.text.startswith("evaluate.judges.second")


def test_a_fall_is_measured_in_standard_errors_of_differences_per_prompt(tmp_path):
    now = [[1.0], [0.0], [0.5], [0.9]]  # changes 0, −1, −0.5, −0.1: mean −0.4, sd 0.4546, se 0.2273
    evaluations = [evaluation(tmp_path, t, gold=values) for t, values in enumerate((LEVEL, now))]
    cfg, rows = Config(), [row(0), row(1, 1.0)]
    assert list(check_iteration(cfg, rows, evaluations)) == []
    cfg.gates.max_fall = 1.7
    assert [f.value for f in check_iteration(cfg, rows, evaluations)] == [
        pytest.approx(0.4 / 0.2273, rel=1e-3)
    ]


@pytest.fixture
def run(tmp_path):
    console = Console(tmp_path)
    yield Run(tmp_path, Config(run_dir=str(tmp_path)), console=console)
    console._log.close()


@pytest.mark.parametrize("action", list(Action))
def test_what_is_found_warns_stops_or_is_ignored(run, capsys, monkeypatch, action):
    monkeypatch.setattr("rlhf.loop.gates.rows_of", lambda evaluations: [row(0)])
    run.cfg.gates.truncated = action
    gates = Gates(run, [])
    findings = check_stage(
        run.cfg, 1, counted(run.folder / "iteration_001", "generate", responses=4, truncated=3)
    )
    if action is Action.stop:
        with pytest.raises(UserError) as stopped:
            gates._heed(findings)
        assert all(
            part in str(stopped.value) for part in ("75.0%", "gates.max_truncated", "gates.truncated=warn")
        )
        assert str(run.folder / "iteration_001" / "generate") in str(stopped.value)
        assert json.loads((run.folder / "summary.json").read_text())["gates"] == gates.violations
    else:
        gates._heed(findings)
    assert ("  ! gates.truncated: 75.0%" in capsys.readouterr().out) == (action is not Action.ignore)
    assert ("! gates.truncated" in (run.folder / "logs" / "driver.log").read_text()) == (
        action is not Action.ignore
    )
    assert [
        (f["iteration"], f["value"], f["threshold"], f["action"], f["where"]) for f in gates.violations
    ] == ([] if action is Action.ignore else [(1, 0.75, 0.2, action.value, "iteration_001/generate")])


@pytest.mark.parametrize("change", [{"planning": True}, {"only": "iteration_001/dpo"}])
def test_a_plan_and_a_stage_alone_are_not_held_against_gates(run, change):
    gates = Gates(replace(run, **change), [])
    gates.stage_finished(1, Artifact(run.folder / "dpo", None))
    assert gates.violations == []


def test_a_negative_limit_is_refused():
    cfg = Config()
    cfg.gates.max_kl = -1.0
    with pytest.raises(ConfigError, match=r"gates\.max_kl=-1\.0: must not be negative"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it has no step"),
        ("{", "Expecting property name"),
        ('{"loss": 0.69}\n{"los', "Unterminated string"),
        ("[1]\n", "line 1 has no loss"),
        ('{"loss": 0.69}\n{"step": 2}\n', "line 2 has no loss"),
        ('{"loss": "0.69"}\n', 'line 1: loss is "0.69", and must be a number'),
        ('{"loss": 0.69, "grad_norm": [1]}\n', r"line 1: grad_norm is \[1\]"),
        ('{"loss": 0.69, "rewards/accuracies": true}\n', "line 1: rewards/accuracies is true"),
        (None, r"\[Errno 2\] No such file"),
    ],
)
def test_damaged_steps_of_a_training_are_named(tmp_path, content, said):
    artifact = trained(tmp_path, [math.log(2)])
    path = artifact.path / "metrics.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunChanged, match=rf"{path} is damaged \({said}[\s\S]*rm -r {artifact.path}"):
        list(check_stage(Config(), 1, artifact))


@pytest.mark.parametrize("stage", ["dpo", "reward_model"])
def test_steps_are_held_against_the_manifest_before_they_are_read(run, stage):
    partial = run.folder / f".{stage}.partial"
    (partial / "model").mkdir(parents=True)
    (partial / "metrics.jsonl").write_text(f'{{"loss": {math.log(2)}}}\n')
    (partial / "model" / "weights").write_text("x")
    identity = {"schema": 1, "stage": stage, "seed": 42, "config": {}, "inputs": {}}
    commit(partial, run.folder / stage, identity, Job(stage, stage, {}, {}, "", 0), {}, {}, 0.5)
    (run.folder / stage / "model" / "weights").write_text("y")  # of no concern here: weights take long
    Gates(run, []).stage_finished(1, open_artifact(run.folder / stage))
    text = (run.folder / stage / "metrics.jsonl").read_text()
    (run.folder / stage / "metrics.jsonl").write_text(text.replace("0.69", "0.79"))
    fresh = replace(run, _verified=Verified())
    with pytest.raises(RunChanged, match=r"metrics\.jsonl is damaged \(its SHA-256"):
        Gates(fresh, []).stage_finished(1, open_artifact(run.folder / stage))


def test_a_gate_that_stops_reads_no_damaged_figures(run, monkeypatch):
    monkeypatch.setattr("rlhf.loop.gates.measured", lambda evaluation: [evaluation])
    monkeypatch.setattr("rlhf.loop.gates.rows_of", lambda evaluations: [row(0)])
    verified = []
    monkeypatch.setattr(Run, "verify", lambda self, *artifacts: verified.extend(artifacts))
    run.cfg.gates.truncated = Action.stop
    findings = check_stage(run.cfg, 1, counted(run.folder, "generate", responses=4, truncated=3))
    with pytest.raises(UserError):
        Gates(run, ["π0's", "π1's"])._heed(findings)
    assert verified == ["π0's", "π1's"]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_norm_that_is_no_number_does_not_hide_the_others(tmp_path, odd):
    norms = [1.0, odd] * 5 + [500.0] + [1.0] * 9
    losses = [math.log(2)] * len(norms)
    found = list(check_stage(Config(), 1, trained(tmp_path, losses, norms, [0.9] * len(norms))))
    assert gates_of(found) == ["grad_norm"] and "step 11 is 500 times" in found[0].text


def test_an_accuracy_that_is_no_number_does_not_hide_the_others(tmp_path):
    accuracies = [0.9] * 10 + [math.nan] + [0.1] * 9
    losses = [math.log(2)] * 20
    assert gates_of(check_stage(Config(), 1, trained(tmp_path, losses, [1.0] * 20, accuracies))) == [
        "accuracy"
    ]


def test_a_second_judge_is_followed_through_scores_that_are_no_numbers(tmp_path):
    now = [[*scores, math.nan] for scores in DOWN]
    before = [[math.inf, *scores] for scores in LEVEL]
    evaluations = [evaluation(tmp_path, t, gold=values) for t, values in enumerate((before, now))]
    assert gates_of(check_iteration(Config(), [row(0), row(1, 1.0)], evaluations)) == ["second_judge"]


def test_the_usual_gradient_norm_is_the_median_of_all_before_and_nothing_is_sorted_anew(monkeypatch):
    import random
    from pathlib import Path
    from statistics import median

    from rlhf.loop import gates

    rng = random.Random(0)
    norms = [rng.choice([rng.random(), 2.0, math.inf]) for _ in range(300)]
    growths = []
    for number in range(gates.FEW_STEPS, len(norms)):
        before = [norm for norm in norms[:number] if math.isfinite(norm)]
        if math.isfinite(norms[number]):
            growths.append(norms[number] / median(before))
    cfg = Config()
    cfg.gates.max_grad_growth = 0.5
    monkeypatch.setattr(gates, "sorted", lambda values: pytest.fail("sorted"), raising=False)
    (found,) = gates._grad_norm(cfg, 1, [{"grad_norm": norm} for norm in norms], Path("m"), "")
    assert found.value == max(growths)
