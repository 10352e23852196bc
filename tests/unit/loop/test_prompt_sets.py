"""Which prompts an iteration gets: slices of one set, or a set for each; and whether a machine can run the
models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.config.choices import Device
from rlhf.config.schema import Config, PromptsConfig
from rlhf.data.shards import read_rows
from rlhf.errors import ConfigError
from rlhf.loop.prompt_sets import prompt_sets
from rlhf.preflight import capacity
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from tests.unit.run.test_plan import InProcess


def write(path: Path, names: range) -> None:
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in names))


def texts(artifact: Artifact) -> set[int]:
    return {int(row["messages"][0]["content"].split()[1]) for row in read_rows(artifact.path)}


def config(tmp_path: Path, path: str, num_iterations: int = 3, size: int = 6) -> Config:
    cfg = Config(num_iterations=num_iterations)
    cfg.prompts.path, cfg.prompts.num_held_out, cfg.prompts.num_per_iteration = str(tmp_path / path), 4, size
    return cfg


def test_one_set_is_cut_in_slices(tmp_path: Path) -> None:
    write(tmp_path / "all.jsonl", range(30))
    sets = prompt_sets(config(tmp_path, "all.jsonl"), Run(tmp_path / "run", Config(), InProcess()))
    assert sets.of(1) == (sets.sets[0], [0, 6]) and sets.of(3) == (sets.sets[0], [12, 18])
    with pytest.raises(ConfigError, match=r"num_per_iteration=8, num_iterations=2.*\{iteration\}"):
        prompt_sets(config(tmp_path, "all.jsonl", size=10), Run(tmp_path / "other", Config(), InProcess()))


def test_a_list_of_files_is_one_set(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", range(6))
    rows = ["question", *(f"question {i}" for i in range(6, 10))]
    (tmp_path / "b.csv").write_text("\n".join(rows) + "\n")
    cfg = config(tmp_path, "a.jsonl", num_iterations=1)
    cfg.prompts.path = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")]
    sets = prompt_sets(cfg, Run(tmp_path / "run", Config(), InProcess()))
    assert texts(sets.sets[0]) | texts(sets.held_out) == set(range(10))


def test_a_set_for_each_iteration_has_no_prompt_twice(tmp_path: Path) -> None:
    write(tmp_path / "set1.jsonl", range(20))
    write(tmp_path / "set2.jsonl", range(30))
    write(tmp_path / "set3.jsonl", range(25, 40))
    run = Run(tmp_path / "run", Config(), InProcess())
    sets = prompt_sets(config(tmp_path, "set{iteration}.jsonl"), run)
    held_out, (one, two, three) = texts(sets.held_out), map(texts, sets.sets)
    assert len(held_out) == 4 and held_out | one == set(range(20))
    assert two == set(range(20, 30)) and three == set(range(30, 40))
    assert sets.of(2) == (sets.sets[1], [0, 6])
    counts = run.made["iteration_002/prompts"].counts
    assert counts["dropped/in_held_out"] == 4 and counts["dropped/in_earlier_iteration"] == 16
    assert run.made["iteration_003/prompts"].counts["dropped/in_earlier_iteration"] == 5


def test_more_iterations_leave_the_earlier_sets_alone(tmp_path: Path) -> None:
    for t in (1, 2, 3):
        write(tmp_path / f"set{t}.jsonl", range(20 * t))
    launcher = InProcess()
    prompt_sets(config(tmp_path, "set{iteration}.jsonl", 2), Run(tmp_path / "run", Config(), launcher))
    prompt_sets(config(tmp_path, "set{iteration}.jsonl", 3), Run(tmp_path / "run", Config(), launcher))
    assert [name for name, _ in launcher.ran] == ["prompts", "iteration_002/prompts", "iteration_003/prompts"]


def offline(tmp_path: Path, **prompts: object) -> Config:
    cfg = Config(num_iterations=1)
    cfg.pair.data = str(tmp_path / "pairs.jsonl")
    cfg.prompts.num_held_out = 4
    for name, value in prompts.items():
        setattr(cfg.prompts, name, value)
    return cfg


@pytest.mark.parametrize("path", [PromptsConfig().path, None])
def test_given_pairs_with_held_out_prompts_need_no_others(tmp_path: Path, path: str | None) -> None:
    write(tmp_path / "held_out.jsonl", range(9))
    cfg = offline(tmp_path, path=path, held_out_path=str(tmp_path / "held_out.jsonl"))
    run = Run(tmp_path / "run", cfg, InProcess())
    sets = prompt_sets(cfg, run)
    assert list(run.made["prompts"].record["identity"]["inputs"]) == ["held_out"]
    assert len(texts(sets.held_out)) == 4 and texts(sets.sets[0]) == set()


def test_given_pairs_without_a_held_out_file_need_prompts_to_hold_out_and_no_more(tmp_path: Path) -> None:
    write(tmp_path / "few.jsonl", range(3))
    cfg = offline(tmp_path, path=str(tmp_path / "few.jsonl"))
    sets = prompt_sets(cfg, Run(tmp_path / "run", cfg, InProcess()))
    assert texts(sets.held_out) == {0, 1, 2}
    cfg.pair.data = None
    with pytest.raises(ConfigError, match="none is left to train on"):
        prompt_sets(cfg, Run(tmp_path / "other", cfg, InProcess()))


def test_a_path_that_was_set_is_read_with_given_pairs_as_ever(tmp_path: Path) -> None:
    """Runs that were made so have it among the inputs of their prompts."""
    write(tmp_path / "all.jsonl", range(5))
    write(tmp_path / "held_out.jsonl", range(9))
    cfg = offline(tmp_path, path=str(tmp_path / "all.jsonl"), held_out_path=str(tmp_path / "held_out.jsonl"))
    run = Run(tmp_path / "run", cfg, InProcess())
    prompt_sets(cfg, run)
    assert sorted(run.made["prompts"].record["identity"]["inputs"]) == ["held_out", "prompts"]


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("some/Mixtral-8x7B-v0.1", 7e9),
        ("Qwen/Qwen3-0.6B", 0.6e9),
        ("sfairXC/FsfairX-LLaMA3-RM-v0.1", None),
        ("some/model-8bit", None),
    ],
)
def test_sizes_from_names(path: str, size: float | None) -> None:
    assert capacity.approximate_size(path) == size


def test_a_large_model_needs_a_gpu_or_a_clear_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "visible_gpus", list)
    cfg = Config()
    with pytest.raises(
        ConfigError, match=r"(?s)no NVIDIA GPU.*8 billion.*experiment=quickstart.*compute\.device=cpu"
    ):
        capacity.check_capacity(cfg)
    cfg.compute.device = Device.cpu
    capacity.check_capacity(cfg)
    cfg.compute.device = Device.auto
    monkeypatch.setattr(capacity, "visible_gpus", lambda: ["0"])
    capacity.check_capacity(cfg)
