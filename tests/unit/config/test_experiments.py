"""Every shipped experiment plans to its end with what it names in the local cache; nothing runs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rlhf.command.line import CONFIGS, to_config
from rlhf.config.choices import JudgeKind
from rlhf.config.fields import plain
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.iterate import iterate
from rlhf.loop.gates import Gates
from rlhf.loop.step import stage_config
from rlhf.preflight.devices import named_machine
from rlhf.preflight.forecast import forecast_of
from rlhf.run import hub, sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from rlhf.world.tokenizer import CHAT_TEMPLATE

RECIPES = {
    "inpo": {"dpo.loss", "dpo.beta"},
    "simpo": {"dpo.loss", "dpo.beta"},
    "length_normalized_dpo": {"dpo.loss", "dpo.beta"},
    "rdpo": {"dpo.length_alpha"},
    "score_aware": {"dpo.loss"},
    "replay": {"replay.iterations"},
    "raft": {"method"},
    "best_sigma": {"pair.strategy", "generate.n"},
}
"""Experiments that go with any other, and what they change."""
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return to_config(compose("iterate", list(overrides)))


@pytest.fixture(autouse=True)
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the Hub; a model of one bf16 number answers."""
    names: list[str] = []
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")

    def fetch(repo: str, revision: str | None, key: str, weights: bool = True) -> Path:
        names.append(f"{key}={repo}")
        return folder

    # What scripts/smollm2_data.py makes, where its experiment looks for it.
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "runs" / "smollm2_data"
    made.mkdir(parents=True)
    for name, number in (("prompts.jsonl", 640), ("held_out.jsonl", 192)):
        lines = [json.dumps({"prompt": f"{name} {index}"}) + "\n" for index in range(number)]
        (made / name).write_text("".join(lines), encoding="utf-8")

    monkeypatch.setattr(hub, "fetch_model", fetch)
    monkeypatch.setattr(hub, "fetch_dataset", fetch)
    return names


def plan(cfg: Config, tmp_path: Path) -> list[str]:
    run = Run(tmp_path / "run", cfg, planning=True)
    iterate(cfg, run)
    assert run.refusals == []
    return run.pending


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_plans_to_its_end(name: str, tmp_path: Path, fetched: list[str]) -> None:
    cfg = composed(f"experiment={name}")
    pending = plan(cfg, tmp_path)
    assert pending[-1] == f"iteration_{cfg.num_iterations:03d}/held_out/reference"
    assert f"iteration_{cfg.num_iterations:03d}/{cfg.method.value}" in pending
    if name == "quickstart":
        assert fetched == []
    elif name.startswith("smollm2"):
        # Its prompts are a file that scripts/smollm2_data.py makes.
        trained = ["data/reward_model.data", "reward_model"] if name == "smollm2_judge" else []
        assert [p for p in pending if p.endswith(("reward_model", ".data"))] == trained
        assert not any(asked.startswith("prompts") for asked in fetched)
        assert "iteration_000/held_out/score_other_kinds" in pending
    elif cfg.reward_model.kind is JudgeKind.generative:
        assert not any(asked.startswith("reward_model.path") for asked in fetched), "a server's, or π0"
    else:
        assert f"reward_model.path={cfg.reward_model.path}" in fetched
        trained = ["sft", "reward_model"] if name == "rlhf_workflow_from_base" else []
        assert [p for p in pending if p in ("sft", "reward_model")] == trained
        made = [p for p in pending if p.startswith("data/")]
        assert sorted(made) == sorted(
            [f"data/{stage}.data" for stage in trained] + [f"data/prompts.path.{t}" for t in (1, 2, 3)]
        )
        assert cfg.dpo.batch_size == 128


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"experiment={name}"] for name in EXPERIMENTS),
        ["experiment=rlhf_workflow", "+evaluate.judges.second=some/judge-8B", "evaluate.gold=m:f"],
        ["experiment=rlhf_workflow", "+reward_model.others={s: {path: some/judge-1B}, r: {rule: 'm:f'}}"],
        ["experiment=rlhf_workflow", "reward_model.rule=m:f", "prompts.path=some/prompts"],
        ["experiment=rlhf_workflow", "prompts.path=[some/prompts, some/others]", "num_iterations=2"],
        ["experiment=rlhf_workflow", "prompts.held_out_path=some/held_out", "compute.zero_stage=3"],
        ["experiment=offline_dpo", "pair.data=some/pairs:train_prefs", "num_iterations=1"],
        *([f"experiment=[quickstart,{name}]"] for name in RECIPES),
        *(
            [f"experiment={name}", "replay={iterations: 2, data: some/pairs-30k}"]
            for name in ("inpo", "simpo")
        ),
        ["replay={iterations: 2, data: some/pairs-30k}", "dpo.reference=previous", "num_iterations=4"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_plan_on_paper_has_the_stages_of_the_loop(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "function_source", lambda rule, key: "")
    cfg = composed(*overrides)
    run = Run(tmp_path / "run", cfg, planning=True)
    iterate(cfg, run)
    forecast = forecast_of(cfg, named_machine("8xH100"))
    names = [stage.name for stage in forecast.stages]
    assert names == [*run.made, f"iteration_{cfg.num_iterations:03d}/export"]
    for stage in forecast.stages:
        assert stage.time.planned > 0 and stage.time.floor >= 0, stage
        assert stage.time.floor <= stage.time.planned, stage
        assert stage.devices <= 8, stage


def differing(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Keys in which two configs differ."""
    if not hasattr(one, "__dataclass_fields__"):
        return {prefix} if one != other else set()
    return {
        key
        for name in one.__dataclass_fields__
        for key in differing(getattr(one, name), getattr(other, name), f"{prefix}.{name}".lstrip("."))
    }


@pytest.mark.parametrize(
    ("name", "base", "keys"),
    [
        ("llama3_8b_instruct", None, {"model.dtype", "reward_model.dtype"}),
        ("rlhf_workflow", None, {"model.path", "model.dtype", "reward_model.dtype"}),
        (
            "rlhf_workflow_scripts",
            "rlhf_workflow",
            {"generate.temperatures", "pair.truncated", "dpo.reference", "dpo.warmup_ratio"},
        ),
        ("concise", "rlhf_workflow", {"pair.length_penalty"}),
        ("offline_dpo", "rlhf_workflow", {"generate.policy"}),
        (
            "rlhf_workflow_from_base",
            "rlhf_workflow",
            {
                "model.path",
                "sft.data",
                "sft.chat_template",
                "reward_model.path",
                "reward_model.data",
                "reward_model.trainer_args",
            },
        ),
    ],
)
def test_an_experiment_changes_what_its_name_says_and_no_more(
    name: str, base: str | None, keys: set[str]
) -> None:
    before = composed(f"experiment={base}") if base else composed()
    assert differing(composed(f"experiment={name}"), before) == keys


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_with_the_quickstart_and_changes_nothing_else(name: str) -> None:
    assert differing(composed(f"experiment={name}"), composed()) == RECIPES[name]
    both = composed(f"experiment=[quickstart,{name}]")
    assert differing(both, composed("experiment=quickstart")) == RECIPES[name]


LOSS = ("loss", "beta", "label_smoothing", "length_alpha", "score_scale", "simpo_gamma", "initial_share")
"""Settings of `dpo` that make a loss."""


@pytest.mark.parametrize("later", RECIPES)
@pytest.mark.parametrize("earlier", [*RECIPES, "rlhf_workflow_scripts", "smollm2", "self_rewarding"])
def test_of_two_recipes_the_later_one_wins_whole(earlier: str, later: str) -> None:
    both, alone = composed(f"experiment=[{earlier},{later}]"), composed(f"experiment={later}")
    for key in RECIPES[later] | {"method"}:
        assert value_at(both, key) == value_at(alone, key), key
    if "loss" in str(RECIPES[later]) or later == "rdpo":
        assert [getattr(both.dpo, key) for key in LOSS] == [getattr(alone.dpo, key) for key in LOSS]


def test_a_newer_judge_trains_and_the_papers_watches() -> None:
    cfg = composed("experiment=skywork_judge")
    assert differing(cfg, composed("experiment=rlhf_workflow")) == {"reward_model.path", "evaluate.judges"}
    assert list(cfg.evaluate.judges.values()) == [Config().reward_model.path]


def test_the_chat_template_of_the_base_model_is_llama_3s() -> None:
    assert composed("experiment=rlhf_workflow_from_base").sft.chat_template == CHAT_TEMPLATE


def test_offline_samples_every_iteration_from_the_initial_policy(tmp_path: Path) -> None:
    cfg = composed("experiment=offline_dpo")
    assert "policy" not in plain(stage_config(cfg, "generate"))  # its weights are an input, by content


def test_given_pairs_take_the_place_of_samples(tmp_path: Path) -> None:
    pairs = ["pair.data=some/pairs:train_prefs", "num_iterations=1"]
    pending = plan(composed("experiment=offline_dpo", *pairs), tmp_path)
    assert "data/pair.data" in pending and "iteration_001/preferences" in pending
    assert "iteration_001/generate" not in pending and "iteration_001/pair" not in pending


def test_given_pairs_with_held_out_prompts_fetch_no_others(tmp_path: Path, fetched: list[str]) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "q"}\n')
    given = [
        "pair.data=some/pairs",
        "num_iterations=1",
        f"prompts.held_out_path={tmp_path / 'held_out.jsonl'}",
    ]
    pending = plan(composed("experiment=offline_dpo", *given), tmp_path)
    assert "prompts" in pending and "data/pair.data" in pending
    assert not [name for name in fetched if name.startswith("prompts.")]


def test_a_judge_that_the_run_trains_is_shown_to_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, str]] = []

    def remember(self: Gates, iteration: int, artifact: Artifact) -> None:
        shown.append((iteration, artifact.path.name))

    monkeypatch.setattr(Gates, "stage_finished", remember)
    plan(composed("experiment=rlhf_workflow_from_base"), tmp_path)
    assert shown[0] == (0, "reward_model")
    shown.clear()
    plan(composed("experiment=rlhf_workflow"), tmp_path / "ready")
    assert "reward_model" not in [name for _, name in shown]


def test_other_judges_score_every_policy(tmp_path: Path, fetched: list[str]) -> None:
    cfg = composed("experiment=rlhf_workflow", "+evaluate.judges.second=some/judge@v1")
    pending = plan(cfg, tmp_path)
    assert "evaluate.judges.second=some/judge" in fetched
    assert [p for p in pending if p.endswith("score_second")] == [
        f"iteration_{t:03d}/held_out/score_second" for t in range(4)
    ]


@pytest.mark.parametrize(("visible", "expected"), [("", 256), ("0,1,2,3,4,5,6,7", 32)])
def test_every_gpu_has_held_out_prompts_to_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    told: dict[str, Any] = {}
    stage = Run.stage

    def telling(run: Run, stage_name: str, name: str, config: Any, *rest: Any, **named: Any) -> Any:
        told[name] = config
        return stage(run, stage_name, name, config, *rest, **named)

    monkeypatch.setattr(Run, "stage", telling)
    plan(composed("experiment=rlhf_workflow"), tmp_path)
    for t in range(4):
        assert told[f"iteration_{t:03d}/held_out/generate"].shard_size == expected
    assert told["iteration_001/generate"].shard_size == 256
