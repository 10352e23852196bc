"""A run that is killed in DPO, and the same command again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from gpu_kit import commands
from gpu_kit.figures import Kit
from gpu_kit.models import require_disk, small

PACKAGES = commands.PACKAGES

_OF_DPO = ("iteration_001/dpo", "iteration_001/held_out", "iteration_001/export", "best", "summary.json")
"""In a run folder: what DPO makes, and what is made of it."""


def measure(kit: Kit) -> None:
    """A run of a small model, whose checkpoints the disk has room for; the toy takes that of `iteration`."""
    shape = small(kit)
    # Two checkpoints of 14 bytes a weight, in case the newer one is not finished.
    require_disk(kit.work, 2 * 14 * shape.num_parameters)
    run = kit.work / ("run" if kit.is_toy else "killed_run")
    settings = commands.settings_of_iteration(kit, run, shape, "transformers")
    settings.append("until=iteration_001/dpo")
    before: list[float] = []
    if (run / "iteration_001" / "dpo").is_dir():
        before = losses(run)
        for name in _OF_DPO:
            forget(run / name)
    size, step = kill_after_a_checkpoint(kit, [*settings, "dpo.save_steps=2"], run)
    kit.add("killed with the checkpoint of step", step)
    detail = f"{size / shape.num_parameters:.1f} bytes a weight, {shape.num_parameters / 1e6:.1f} M weights"
    kit.add("size of a checkpoint", size / 1e9, "GB", detail=detail)
    log = kit.work / "resumed.log"
    seconds = commands.run([*settings, "dpo.save_steps=50"], log)
    kit.add("resumed to the end in", seconds, "s")
    after = losses(run)
    again = log.read_text(encoding="utf-8", errors="replace").count("✓ iteration_001/generate")
    kit.add("times that it sampled again", again, "", 0, lower_is_better=True)
    if before:
        detail = f"{len(after)} steps, of {len(before)} before"
        kit.add("steps of DPO, beside an undisturbed run", len(after) / len(before), "", 1, detail=detail)
        largest = max(abs(one - other) for one, other in zip(before, after, strict=False))
        kit.add("largest change of a step's loss", largest, "", 1e-2, lower_is_better=True)
    else:
        kit.add("steps of DPO", len(after), "", bar=step + 1)


def forget(path: Path) -> None:
    """Delete a file, folder or link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def losses(run: Path) -> list[float]:
    """Of every step of DPO."""
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
            print(log.read_text(encoding="utf-8", errors="replace"))
            return size, int(folder.name.rpartition("-")[2])
        time.sleep(0.02)
    print(log.read_text(encoding="utf-8", errors="replace"))
    raise RuntimeError(f"no checkpoint was seen before the command ended: {commands.last_words(log)}")
