"""Figures and gates at their edges: no value, one, and what a plan knows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from rlhf.config.schema import Config
from rlhf.loop import card, figures, gates, table
from rlhf.loop.figures import mean_and_interval
from rlhf.loop.prompt_sets import prompt_paths, too_few
from rlhf.loop.step import iteration_step, policy_dtype, stage_config
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from rlhf.run.refusal import UNKNOWN


@pytest.mark.parametrize(
    ("values", "mean", "low", "high"),
    [
        ([0.5], 0.5, 0.0, 1.0),
        ([0.0, 1.0], 0.5, 0.0, 1.0),
        (
            [0.4, 0.6],
            0.5,
            0.5 - 1.96 * math.sqrt(0.02) / math.sqrt(2),
            0.5 + 1.96 * math.sqrt(0.02) / math.sqrt(2),
        ),
        ([0.5, 0.5], 0.5, 0.5, 0.5),
    ],
)
def test_an_interval_of_few_prompts(values, mean, low, high):
    assert mean_and_interval(values) == pytest.approx((mean, low, high))


def test_nothing_has_no_mean():
    assert all(math.isnan(value) for value in mean_and_interval([]))


@pytest.mark.parametrize(
    ("fall", "error", "standard_errors"),
    [(1.0, 0.5, 2.0), (1.0, 0.0, math.inf), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (-1.0, 0.5, -2.0)],
)
def test_a_fall_without_spread_is_beyond_every_limit(fall, error, standard_errors):
    assert gates._standard_errors(fall, error) == standard_errors


@pytest.mark.parametrize(
    ("num_prompts", "iterations", "size", "ways_out"),
    [
        (6, 2, 3, None),
        (5, 2, 3, ["prompts.num_per_iteration=2,", "num_iterations=1,"]),
        (3, 2, 3, ["prompts.num_per_iteration=1,", "num_iterations=1,"]),
        (2, 2, 3, ["prompts.num_per_iteration=1,"]),
        (1, 2, 3, []),
        (3, 4, 3, ["num_iterations=1,"]),
        (-2, 2, 3, []),
    ],
)
def test_too_few_prompts(num_prompts, iterations, size, ways_out):
    cfg = Config(num_iterations=iterations)
    cfg.prompts.path, cfg.prompts.num_per_iteration = "p.jsonl", size
    text = too_few(cfg, num_prompts, {"rows": 9})
    if ways_out is None:
        assert text is None
        return
    assert (
        f"needs {iterations * size} training prompts, but p.jsonl gives {max(num_prompts, 0)} (9 rows" in text
    )
    for way in ("prompts.num_per_iteration=", "num_iterations="):
        named = [each for each in ways_out if each.startswith(way)]
        assert text.partition("Ways out: ")[2].count(way) == len(named) and all(
            each in text for each in named
        )


@pytest.mark.parametrize(
    ("path", "iteration", "paths"),
    [
        ("a.jsonl", 2, ["a.jsonl"]),
        (["a", "b{iteration}"], 2, ["a", "b2"]),
        ("{iteration}/{iteration}", 3, ["3/3"]),
    ],
)
def test_paths_of_an_iteration(path, iteration, paths):
    cfg = Config()
    cfg.prompts.path = path
    assert prompt_paths(cfg, iteration) == paths


@pytest.mark.parametrize(
    ("path", "name", "is_hub_id"),
    [
        ("owner/name", "owner/name", True),
        ("/data/models/policy", "policy", False),
        ("./a/b", "b", False),
        ("~/b", "b", False),
        ("@world/model", "world/model", False),
        ("name", "name", False),
        ("a/b/c", "c", False),
    ],
)
def test_names_of_models_say_nothing_of_a_machine(path, name, is_hub_id):
    assert (card.name_of(path), card.is_hub_id(path)) == (name, is_hub_id)


def test_a_folder_called_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card.name_of("owner/name") == "name" and not card.is_hub_id("owner/name")


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("generate", {"dtype": "bfloat16", "trust_remote_code": True}),
        ("dpo", {"dtype": "bfloat16", "trust_remote_code": True}),
        ("sft", {"dtype": "bfloat16", "trust_remote_code": True}),
        ("reference", {"dtype": "bfloat16", "trust_remote_code": True, "max_length": 99}),
        ("preferences", {"dtype": "bfloat16", "trust_remote_code": True, "columns": {"context": "c"}}),
        ("score", {"dtype": "float32", "trust_remote_code": False}),
        ("reward_model", {"dtype": "float32", "trust_remote_code": False}),
    ],
)
def test_what_a_stage_is_told_of_the_model_it_loads(stage, settings):
    cfg = Config()
    cfg.model.dtype, cfg.model.trust_remote_code = type(cfg.model.dtype)("bfloat16"), True
    cfg.reward_model.dtype = type(cfg.model.dtype)("float32")
    cfg.dpo.max_length, cfg.pair.columns = 99, {"context": "c"}
    config = stage_config(cfg, stage)
    assert {key: getattr(config, key) for key in settings} == settings
    assert stage_config(cfg, stage, dtype="x").dtype == "x"


def test_steps_lie_in_numbered_folders_and_those_inside_are_not_watched(tmp_path):
    watched = []
    watcher = SimpleNamespace(stage_finished=lambda t, artifact: watched.append((t, artifact)))
    run = Run(tmp_path, Config(), planning=True)
    step = iteration_step(run, 7, "float32", watcher)
    artifact = step.stage("mix", name="sum", config=Config().world, scores=None)
    assert artifact.path == tmp_path / "iteration_007" / "sum" and watched == [(7, artifact)]
    inside = step.inside("held_out").stage("mix", config=Config().world)
    assert inside.path == tmp_path / "iteration_007" / "held_out" / "mix" and len(watched) == 1
    assert step.config("generate").dtype == step.config("dpo").dtype == "float32"
    assert step.config("score").dtype == "auto"


def test_the_dtype_of_a_policy_that_has_yet_to_be_made(tmp_path):
    cfg = Config()
    assert policy_dtype(cfg, Artifact(tmp_path, None)) == UNKNOWN
    cfg.model.dtype = type(cfg.model.dtype)("float32")
    assert policy_dtype(cfg, Artifact(tmp_path, None)) == "float32"
    assert policy_dtype(cfg, Artifact(tmp_path, "d")) == "float32"


@pytest.mark.parametrize(
    ("tokens", "kls", "names"),
    [
        # Against π0, not against the policy before.
        ((10.0, 20.0, 15.1), (0.0, 0.0, 0.0), ["length"]),
        ((10.0, 10.0, 15.0), (0.0, 60.0, 50.0), []),
        ((10.0, 5.0, 10.0), (0.0, 0.0, 50.1), ["kl"]),
        ((0.0, 0.0, 1e-9), (0.0, 0.0, 0.0), []),
        ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), ["length"]),
    ],
)
def test_growth_is_measured_against_the_first_policy(tmp_path, tokens, kls, names):
    place = Artifact(tmp_path, "d")
    rows, evaluations = [], []
    for t, (length, kl) in enumerate(zip(tokens, kls, strict=True)):
        rows.append(figures.Row(t, 0.5, None, None, None, None, length, kl, 0.0, None, {}))
        evaluations.append(figures.Evaluation(t, place, place, place))
    found = list(gates.check_iteration(Config(), rows, evaluations))
    assert [(each.gate, each.iteration) for each in found] == [(name, 2) for name in names]


def test_a_line_of_the_table():
    row = figures.Row(1, 0.25, 0.5, 0.75, 0.5, 1.0, 12.34, 1.005, 0.505, 7, {"b": 1, "a": 2})
    heads, rule, line = table.table([row]).splitlines()
    cells = ["π1", "+0.250", "0.500", "0.750 [0.500, 1.000]", "12.3", "1.00", "50.5 %", "7", "a 2, b 1"]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == cells
    assert heads.split("  ")[0] == "policy" and set(rule) == {"─", " "}
