"""A run that is killed in DPO, and the same command again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from gpu_kit import commands
from gpu_kit.figures import Kit

PACKAGES = commands.PACKAGES

_AFTER_DPO = ("iteration_001/dpo", "iteration_001/held_out", "iteration_001/export", "best", "summary.json")


def measure(kit: Kit) -> None:
    """The run of the step `iteration`, without what DPO and those after it have made."""
    settings = commands.require_run(kit)
    run = kit.work / "run"
    before = losses(run)
    for name in _AFTER_DPO:
        forget(run / name)
    sizes, step = kill_after_a_checkpoint(kit, settings, run)
    kit.add("killed with the checkpoint of step", step)
    kit.add("size of a checkpoint", sizes / 1e9, "GB")
    seconds = commands.run(settings, kit.work / "resumed.log")
    kit.add("resumed to the end in", seconds, "s")
    said = (kit.work / "resumed.log").read_text(encoding="utf-8", errors="replace")
    after = losses(run)
    detail = f"{len(after)} steps"
    kit.add("steps after the resume, of those before", len(after) / len(before), "", 1, detail=detail)
    largest = max(abs(one - other) for one, other in zip(before, after, strict=False))
    kit.add("largest change of a step's loss", largest, "", 1e-2, lower_is_better=True)
    kit.add("stages done again", said.count("✓ iteration_001/generate"), "of generate")


def forget(path: Path) -> None:
    """Delete a file, folder or link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def losses(run: Path) -> list[float]:
    """Of every step of DPO."""
    import json

    text = (run / "iteration_001" / "dpo" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["loss"] for line in text.splitlines()]


def kill_after_a_checkpoint(kit: Kit, settings: list[str], run: Path) -> tuple[int, int]:
    """Kill the run once a checkpoint is sealed.

    Returns:
        Bytes of the checkpoint, and its step.
    """
    log = kit.work / "killed.log"
    process = commands.start(settings, log)
    partial = run / "iteration_001" / ".dpo.partial"
    while process.poll() is None:
        sealed = sorted(partial.glob("checkpoint-*/sealed.json"))
        if sealed:
            folder = sealed[-1].parent
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            commands.kill(process)
            return size, int(folder.name.rpartition("-")[2])
        time.sleep(0.02)
    print(log.read_text(encoding="utf-8", errors="replace"))
    raise RuntimeError(f"no checkpoint was seen before the command ended: {commands.last_words(log)}")
