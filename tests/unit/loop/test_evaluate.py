"""How prompts are cut in shards: by the GPUs there are, and once for a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig, Config
from rlhf.data.digest import sealed
from rlhf.launch.machine import gpu_workers
from rlhf.loop.shard_sizes import held_out_shard_size, train_shard_size
from rlhf.run.plan import Run

FINISHED = "iteration_000/held_out/generate/artifact.json"
BEGUN = "iteration_000/held_out/.generate.partial/.identity.json"
LATER = "iteration_002/held_out/generate/artifact.json"


def record(run: Path, name: str, shard_size: int) -> None:
    """What a stage of a run leaves of what it was told."""
    told = {"shard_size": shard_size}
    identity: dict[str, Any] = {"schema": 1, "stage": "generate", "seed": 0, "config": told, "inputs": {}}
    path = run / name
    path.parent.mkdir(parents=True)
    path.write_bytes(
        sealed(identity if name == BEGUN else {"identity": identity, "digest": "d", "files": {}})
    )


def size(folder: Path, num_workers: int, **values: Any) -> int:
    cfg = Config(reuse=values.pop("reuse", []))
    cfg.prompts.num_held_out = values.pop("num_held_out", 256)
    cfg.generate.shard_size = values.pop("shard_size", 256)
    return held_out_shard_size(cfg, Run(folder, cfg, planning=True), num_workers)


@pytest.mark.parametrize(
    ("num_held_out", "num_workers", "shard_size", "expected"),
    [
        (256, 1, 256, 256),
        (256, 8, 256, 32),
        (257, 8, 256, 33),
        (1000, 1, 256, 256),
        (1000, 8, 80, 80),
        (64, 8, 256, 8),
        (20, 8, 256, 8),
        (20, 8, 5, 5),
    ],
)
def test_every_worker_of_a_new_run_has_a_shard(
    tmp_path: Path, num_held_out: int, num_workers: int, shard_size: int, expected: int
) -> None:
    assert size(tmp_path, num_workers, num_held_out=num_held_out, shard_size=shard_size) == expected


@pytest.mark.parametrize("name", [FINISHED, BEGUN, LATER])
def test_a_run_goes_on_as_its_first_evaluation_began(tmp_path: Path, name: str) -> None:
    record(tmp_path, name, 256)
    assert size(tmp_path, num_workers=8) == 256
    record(tmp_path / "with_gpus", name, 32)
    assert size(tmp_path / "with_gpus", num_workers=1) == 32


def test_a_changed_limit_is_no_less_refused_than_before(tmp_path: Path) -> None:
    record(tmp_path, FINISHED, 256)
    assert size(tmp_path, num_workers=1, shard_size=100) == 100


def test_the_shards_of_a_run_that_is_reused_fit(tmp_path: Path) -> None:
    record(tmp_path / "old", FINISHED, 256)
    reuse = [str(tmp_path / "gone"), str(tmp_path / "old")]
    assert size(tmp_path / "new", num_workers=8, reuse=reuse) == 256
    record(tmp_path / "new", BEGUN, 32)
    assert size(tmp_path / "new", num_workers=8, reuse=reuse) == 32


def test_a_damaged_record_is_left_to_the_stage_itself(tmp_path: Path) -> None:
    record(tmp_path, FINISHED, 100)
    (tmp_path / FINISHED).write_text("{}")
    assert size(tmp_path, num_workers=8) == 32
    record(tmp_path, LATER, 256)
    assert size(tmp_path, num_workers=8) == 256


class Said:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("settled", "asked_for", "num_workers", "is_said"),
    [
        (256, 512, 1, True),
        (256, 256, 1, False),
        (32, 256, 1, True),
        (256, 100, 1, False),
        (32, 256, 8, False),
    ],
)
def test_shards_that_cannot_grow_any_more_are_told_of_once(
    tmp_path: Path, settled: int, asked_for: int, num_workers: int, is_said: bool
) -> None:
    record(tmp_path, FINISHED, settled)
    console = Said()
    cfg = Config()
    cfg.prompts.num_held_out = 4096 if asked_for > 256 else 256
    cfg.generate.shard_size = asked_for
    run = Run(tmp_path, cfg, console=console)  # type: ignore[arg-type]
    for _ in range(3):
        held_out_shard_size(cfg, run, num_workers)
    assert len(console.lines) == is_said
    if is_said:
        assert f"shards of {settled} prompts" in console.lines[0]
        assert f"generate.shard_size={asked_for}" in console.lines[0]


def train_size(folder: Path, num_workers: int, num_prompts: int, shard_size: int = 256) -> int:
    cfg = Config()
    cfg.prompts.num_per_iteration = num_prompts
    cfg.generate.shard_size = shard_size
    return train_shard_size(cfg, Run(folder, cfg, planning=True), num_workers)


@pytest.mark.parametrize(
    ("num_prompts", "num_workers", "shard_size", "expected"),
    [
        # As every run on a CPU or one GPU was cut, and the full recipe on eight.
        (100, 1, 256, 256),
        (20000, 1, 256, 256),
        (20000, 8, 256, 256),
        (320, 1, 80, 80),
        # Two shards of 256 would leave six of eight GPUs idle.
        (512, 8, 256, 16),
        (1000, 2, 256, 125),
        (100, 8, 256, 8),
        (100, 8, 5, 5),
    ],
)
def test_no_gpu_is_idle_in_an_iteration(
    tmp_path: Path, num_prompts: int, num_workers: int, shard_size: int, expected: int
) -> None:
    assert train_size(tmp_path, num_workers, num_prompts, shard_size) == expected


def test_an_iteration_goes_on_as_the_first_one_was_cut(tmp_path: Path) -> None:
    record(tmp_path, "iteration_001/generate/artifact.json", 256)
    assert train_size(tmp_path, num_workers=8, num_prompts=512) == 256
    record(tmp_path / "with_gpus", "iteration_001/generate/artifact.json", 16)
    assert train_size(tmp_path / "with_gpus", num_workers=1, num_prompts=512) == 16
    # Held-out prompts are cut otherwise.
    record(tmp_path / "new", FINISHED, 32)
    assert train_size(tmp_path / "new", num_workers=8, num_prompts=512) == 16


@pytest.mark.parametrize(
    ("visible", "compute", "tensor_parallel", "expected"),
    [
        ("", {}, 1, 1),
        ("", {"num_inference_workers": 4}, 1, 1),
        ("", {"device": Device.cuda}, 1, 1),
        ("0,1,2,3", {}, 1, 4),
        ("0,1,2,3", {}, 2, 2),
        ("0,1,2,3", {}, 8, 1),
        ("0,1,2,3", {"num_gpus": 2}, 1, 2),
        ("0,1,2,3", {"num_inference_workers": 3}, 1, 3),
        ("0,1,2,3", {"device": Device.cpu}, 1, 1),
    ],
)
def test_workers_count_where_they_have_gpus_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    compute: dict[str, Any],
    tensor_parallel: int,
    expected: int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_workers(ComputeConfig(**compute), tensor_parallel) == expected


@pytest.mark.parametrize(
    ("num_prompts", "shard_size", "expected"),
    [(1_000_000, 256, 256), (1_000_000, 16, 200), (2_000_000, 256, 400), (5000, 1, 1), (5001, 1, 2)],
)
def test_no_folder_holds_more_than_five_thousand_shards(
    tmp_path: Path, num_prompts: int, shard_size: int, expected: int
) -> None:
    assert train_size(tmp_path, 1, num_prompts, shard_size) == expected
    # As many workers as there may be would like smaller ones.
    assert train_size(tmp_path, 10_000, num_prompts, shard_size) == max(
        min(8, shard_size), -(-num_prompts // 5000)
    )
    assert size(tmp_path, 1, num_held_out=num_prompts, shard_size=shard_size) == expected


def test_a_run_begun_with_more_shards_keeps_them_and_another_number_is_said(tmp_path: Path) -> None:
    record(tmp_path / "old", "iteration_001/generate/artifact.json", 16)
    assert train_size(tmp_path / "old", 1, 1_000_000, 16) == 16
    record(tmp_path / "new", "iteration_001/generate/artifact.json", 200)
    assert train_size(tmp_path / "new", 1, 1_000_000, 16) == 200
    console = Said()
    cfg = Config()
    cfg.prompts.num_per_iteration, cfg.generate.shard_size = 1_000_000, 16
    run = Run(tmp_path, cfg, console=console)  # type: ignore[arg-type]
    for _ in range(3):
        train_shard_size(cfg, run, 1)
    assert len(console.lines) == 1
    assert "shards of 200 prompts, not generate.shard_size=16" in console.lines[0]
    assert "62500 shards" in console.lines[0]
