"""Bad input as a table: a command on files that are made in an empty folder, and what its one error must
say."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from safetensors.numpy import save_file

from rlhf import stage
from rlhf.command.line import main
from rlhf.config import tools as tools_config
from rlhf.config import view_tools
from rlhf.config.schema import Config
from rlhf.launch.local import LocalLauncher
from rlhf.run.stage_table import stage_function

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS: dict[str, tuple[str, str, Any]] = {
    "iterate": ("execute", "iterate", Config),
    "generate": ("generate", "tool", tools_config.GenerateTool),
    "score": ("score", "tool", tools_config.ScoreTool),
    "pair": ("pair", "tool", tools_config.PairTool),
    "answer": ("answer", "tool", tools_config.AnswerTool),
    "rewardbench": ("rewardbench", "tool", tools_config.RewardBenchTool),
    "bestofn": ("bestofn", "tool", tools_config.BestOfNTool),
    "check": ("check", "iterate", tools_config.CheckConfig),
    "plan": ("plan", "iterate", tools_config.PlanConfig),
    "report": ("report", "tool", view_tools.ReportTool),
    "compare": ("compare", "tool", view_tools.CompareTool),
    "whatif": ("whatif", "tool", view_tools.WhatIfTool),
    "status": ("status", "tool", view_tools.StatusTool),
    "gc": ("gc", "tool", view_tools.GcTool),
}
Content = bytes | str | list[Any] | dict[str, Any]
"""Bytes and text as they are; rows as JSON lines, an object as JSON."""


@dataclass
class Case:
    """`said`: what is wrong, where, the value, a way out: phrases of the error, in any order."""

    name: str
    command: str
    said: list[str]
    files: dict[str, Content] = field(default_factory=dict)
    make: Callable[[Path], Any] | None = None


def cases(*table: Case) -> Any:
    """The table as parameters of a test, each under its name."""
    assert all(len(case.said) >= 2 for case in table), "one phrase does not make an error clear"
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name.replace(" ", "_")) for case in table]
    )


def jsonl(rows: list[Any]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "surrogatepass"
    )


def model(folder: Path, **config: Any) -> Path:
    """A model folder as far as the driver looks: a config and the weights of nobody."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 512} | config)
    )
    save_file({"w": np.zeros(8, dtype=np.float32)}, folder / "model.safetensors")
    return folder


class _Worker:
    rank, world_size, num_threads = 0, 1, 1

    def __init__(self, shards: list[int]) -> None:
        self._shards = shards

    def shards(self) -> Any:
        return iter(self._shards)

    shards_ahead = shards

    def made(self, index: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def keep(self, engine: object) -> None:
        pass

    def progress(self, done: float, total: float, note: str = "") -> None:
        pass


def _launch_here(self: Any, job: Any, kind: Any, shards: list[int]) -> Any:
    return stage_function(job.stage)(job, _Worker(shards))


def run_here(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """Run a command line in this process; stages too, and what they raise but must not comes through."""
    module, *arguments = command.split(" ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [module, *(argument.replace("␣", " ") for argument in arguments)])
    monkeypatch.setattr(LocalLauncher, "launch", _launch_here)
    monkeypatch.setattr(LocalLauncher, "warm_up", lambda self, engines=True: None)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        if module == "stage":
            stage.main(sys.argv[1:])
        function, config_name, schema = SCHEMAS[module]
        main(getattr(importlib.import_module(f"rlhf.{module}"), function), config_name, schema)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        ConfigStore.instance().store(name="schema", node=Config)
        for number, handler in handlers:
            signal.signal(number, handler)


def run_for_real(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as a person does."""
    module, *arguments = command.split(" ")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    return subprocess.run(
        [sys.executable, "-m", f"rlhf.{module}", *(argument.replace("␣", " ") for argument in arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )


def prepare(case: Case, folder: Path) -> None:
    """Make the files of a case."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list | dict):
            content = jsonl(content) if isinstance(content, list) else json.dumps(content)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if case.make is not None:
        case.make(folder)


def check_message(case: Case, said: str) -> None:
    """One error, with all its phrases, and nothing a terminal could take for a command."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    assert not [phrase for phrase in case.said if phrase not in said], said
    assert not any(ord(c) < 32 and c not in "\n\t" for c in said), repr(said)


def finished(folder: Path) -> list[Path]:
    """Folders of finished artifacts."""
    return [path.parent for path in folder.rglob("artifact.json")]


def left_behind(before: set[Path], folder: Path) -> list[str]:
    """What is new in the folder but locks, logs, the run's config, remembered digests and finished
    artifacts."""
    kept = {".driver.lock", ".workers.lock", ".digests.json", "config.yaml", "driver.log"}
    done = finished(folder)
    new = [path for path in folder.rglob("*") if path not in before and not path.is_dir()]
    new += list(folder.rglob(".*.partial"))
    return [
        str(path.relative_to(folder))
        for path in new
        if path.name not in kept and not any(path.is_relative_to(each) for each in done)
    ]


def refuse(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one clear error, nothing half-written."""
    prepare(case, folder)
    before = set(folder.rglob("*"))
    monkeypatch.chdir(folder)
    code = run_here(monkeypatch, case.command)
    said = capsys.readouterr().err
    assert code == 2, said
    check_message(case, said)
    assert not left_behind(before, folder)
