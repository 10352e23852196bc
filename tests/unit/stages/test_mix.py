"""The weighted sum of judges, in numbers worked out by hand; what it is told, and what is refused."""

import json
import math

import numpy as np
import pytest

from rlhf.command.line import to_config
from rlhf.config.limits import check_config
from rlhf.config.schema import Config
from rlhf.config.stage_configs import MixStage
from rlhf.config.training import OtherJudge
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.run.job import Job
from rlhf.run.stage_table import num_shards
from rlhf.stages import mix
from tests.stage_runner import run_here
from tests.unit.config.test_experiments import composed, fetched, plan  # noqa: F401 - fetched is a fixture that is always on

RULE = "tests.unit.rules:length"


def write_scores(folder, *shards):
    folder.mkdir()
    for index, shard in enumerate(shards):
        rows = [{"id": name, "scores": scores} for name, scores in shard.items()]
        write_shard(folder / shard_name(index), SCORES_SCHEMA, rows)
    return folder


def mixing(tmp_path, weights, initial, scores):
    """A job that sums judges; `initial` and `scores` are the shards of each."""
    inputs = {
        f"initial.{name}": write_scores(tmp_path / f"initial_{name}", *initial[name]) for name in weights
    }
    inputs |= {f"scores.{name}": write_scores(tmp_path / f"scores_{name}", *scores[name]) for name in weights}
    (tmp_path / "out").mkdir()
    paths = {key: str(path) for key, path in inputs.items()}
    return Job("mix", "mix", MixStage(weights), paths, str(tmp_path / "out"), 1)


INITIAL = {
    "main": [
        {"h": [1.0, 3.0]},
        {"i": [math.nan, 1.0, 3.0]},
    ],  # mean 2, standard deviation 1, the NaN left out
    "safety": [{"h": [0.0, 20.0, math.inf]}, {"i": [0.0, 20.0]}],  # 10, 10
}
SCORES = {
    "main": [{"p": [4.0, 2.0, 3.0]}, {"q": [1.0, math.nan, 2.0]}],
    "safety": [{"p": [10.0, 30.0, 0.0]}, {"q": [20.0, 5.0, -math.inf]}],
}


def test_scores_are_normalised_by_the_initial_policys_and_summed(tmp_path):
    job = mixing(tmp_path, {"main": 2.0, "safety": 0.5}, INITIAL, SCORES)
    assert num_shards(job) == 2
    outcome = run_here(job)
    p, q = (row["scores"] for row in read_all_rows(tmp_path / "out"))
    # p: main adds 2·(2, 0, 1), safety 0.5·(0, 2, -1); q: 2·(-1, ?, 0) and 0.5·(1, -0.5, ?)
    assert p == [4.0, 1.0, 1.5]
    assert q[0] == -1.5 and math.isnan(q[1]) and math.isnan(q[2])
    assert sum_counts(tmp_path / "out") == {"prompts": 2, "responses": 6, "non_finite": 2}
    assert outcome.metrics == {
        "mean/main": 2.0,
        "std/main": 1.0,
        "mean/safety": 10.0,
        "std/safety": 10.0,
        # of p the sum prefers 0 to 1: main too, safety the other way; q has one finite sum
        "reversed/main": 0.0,
        "reversed/safety": 1.0,
        # of p: (0, 1) differ, (0, 2) agree, (1, 2) differ
        "disagreement": pytest.approx(2 / 3),
    }


def test_finished_shards_are_kept_and_measured_again(tmp_path):
    job = mixing(tmp_path, {"main": 2.0, "safety": 0.5}, INITIAL, SCORES)
    whole = run_here(job)
    (tmp_path / "out" / shard_name(1)).unlink()
    assert run_here(job) == whole


def test_a_judge_with_a_negative_weight_votes_against_its_scores(tmp_path):
    job = mixing(tmp_path, {"main": 1.0, "safety": -1.0}, INITIAL, SCORES)
    metrics = run_here(job).metrics
    assert next(read_all_rows(tmp_path / "out"))["scores"] == [2.0, -2.0, 2.0]
    assert metrics["disagreement"] == pytest.approx(1 / 3) and metrics["reversed/safety"] == 0.0


def test_ties_count_half_where_best_and_worst_are_held_up_and_not_at_all_between_judges():
    found = mix.disagreement(
        [
            np.array([[3.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),  # best is 0: b ties, c the other way
            np.array([[1.0, 0.0], [2.0, 0.0], [math.nan, 0.0]]),  # one response left: nothing to order
            np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),  # all tied
        ],
        ["a", "b", "c"],
    )
    # a and b are never compared, nor b and c; a and c once, and differ
    assert found == {"disagreement": 1.0, "reversed/a": 0.0, "reversed/b": 0.5, "reversed/c": 1.0}
    nothing = {"disagreement": None, "reversed/a": None, "reversed/b": None}
    assert mix.disagreement([np.array([[1.0], [2.0]])], ["a", "b"]) == nothing


def test_disagreement_is_the_mean_over_pairs_of_judges():
    orders = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])  # c differs in one pair of three
    assert mix.disagreement([orders], ["a", "b", "c"])["disagreement"] == pytest.approx(
        (0 + 1 / 3 + 1 / 3) / 3
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [([3.0, 3.0, math.nan], "all 2 finite scores are 3"), ([math.nan, math.inf], "no score is finite")],
)
def test_a_judge_without_a_scale_is_refused(tmp_path, scores, said):
    path = write_scores(tmp_path / "scores", {"h": scores})
    with pytest.raises(DataError, match=rf"judge short cannot be normalised.*{said}.*reward_model\.others"):
        mix.scale(path, "short")


def test_scores_of_other_candidates_are_noticed(tmp_path):
    wrong = SCORES | {"safety": [{"p": [10.0, 30.0]}, {"q": [20.0, 5.0, 0.0]}]}
    with pytest.raises(AssertionError, match="out of step"):
        run_here(mixing(tmp_path, {"main": 1.0, "safety": 1.0}, INITIAL, wrong))


def test_the_loop_scores_with_each_judge_and_sums(tmp_path, fetched):  # noqa: F811
    cfg = composed(
        "experiment=rlhf_workflow",
        "+reward_model.others={safety: {path: some/safety, revision: v1}}",
        f"+reward_model.others={{short: {{rule: '{RULE}', weight: -0.1}}}}",
        "reward_model.others.safety.weight=0.5",
        "num_iterations=1",
    )
    assert cfg.reward_model.others["safety"] == OtherJudge("some/safety", "v1", weight=0.5)
    pending = plan(cfg, tmp_path)
    assert "reward_model.others.safety.path=some/safety" in fetched
    for place in ("iteration_000/held_out", "iteration_001", "iteration_001/held_out"):
        made = [name.removeprefix(f"{place}/") for name in pending if name.rpartition("/")[0] == place]
        assert [name for name in made if name.startswith(("score", "mix"))] == [
            "score",
            "score_safety",
            "score_short",
            "mix",
        ]


@pytest.mark.parametrize(
    ("reward_model", "said"),
    [
        ({"others": {"a/b": {"path": "x"}}}, "a/b: the name becomes a folder"),
        ({"others": {"main": {"path": "x"}}}, "judge 'main': two are called so"),
        ({"others": {"second": {"path": "x"}}}, "judge 'second': two are called so"),
        ({"others": {"a": {}}}, r"others\.a: path=None, rule=None: give one"),
        ({"others": {"a": {"path": "x", "rule": RULE}}}, r"others\.a: path=x, rule=.*: give one"),
        (
            {"others": {"a": {"path": "x", "weight": 0}}},
            r"others\.a\.weight=0\.0: must be a number other than 0",
        ),
        ({"weight": math.nan}, r"reward_model\.weight=nan"),
        ({"kind": "pairwise", "others": {"a": {"path": "x"}}}, r"kind=pairwise.*kind=scalar"),
        ({"others": {"a": {"file": "x"}}}, "file"),
    ],
)
def test_sums_that_cannot_be_are_refused(reward_model, said):
    from omegaconf import OmegaConf

    judges = {"second": "some/judge"}
    with pytest.raises(ConfigError, match=said):
        to_config(OmegaConf.create({"reward_model": reward_model, "evaluate": {"judges": judges}}))


def test_one_judge_is_not_summed(tmp_path):
    cfg = Config()
    check_config(cfg)
    assert not [
        name for name in plan(composed("experiment=rlhf_workflow"), tmp_path) if name.endswith("/mix")
    ]


@pytest.mark.parametrize(
    "key",
    [
        "reward_model.path=some/judge",
        "+reward_model.others={a: {path: some/judge}}",
        "+evaluate.judges.a=some/judge",
    ],
)
def test_code_that_may_not_run_is_refused_before_anything_runs(tmp_path, fetched, key):  # noqa: F811
    config = {"auto_map": {"AutoModelForSequenceClassification": "modeling.Gated"}}
    cfg = composed("experiment=quickstart", key)
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"modeling\.Gated.*trust_remote_code=true"):
        plan(cfg, tmp_path)
