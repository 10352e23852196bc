"""One iteration of a Llama of random weights through the command as it is, judge and prompts made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gpu_kit import commands
from gpu_kit.figures import Kit
from gpu_kit.models import on_gpu, one_billion
from gpu_kit.step import missing

PACKAGES = commands.PACKAGES

_LARGEST_OFF = 2e-2
"""Of the first loss in bf16: policy and reference have the same weights, but other batches."""


def measure(kit: Kit) -> None:
    """Seconds of the command and of each stage, and the first loss."""
    shape = one_billion(kit)
    run = kit.work / "run"
    engine = "transformers" if kit.is_toy or missing(("vllm",)) else "vllm"
    settings = commands.settings_of_iteration(kit, run, shape, engine)
    parameters = f"{shape.num_parameters / 1e9:.2f} B parameters, vocabulary {shape.vocabulary}"
    stages: dict[str, float] = {}

    def say_finished_stages() -> None:
        # As they end: where the time runs out, those before were measured.
        for name, manifest in commands.manifests(run).items():
            if name not in stages:
                stages[name] = float(manifest["seconds"])
                kit.add(f"stage {name}", stages[name], "s")

    seconds = commands.run(settings, kit.work / "iterate.log", say_finished_stages)
    kit.add("the command", seconds, "s", detail=f"{parameters}, sampled by {engine}")
    kit.add("beside the stages", seconds - sum(stages.values()), "s")
    beside_plan(kit, run / "summary.json")
    rows = (run / "iteration_001" / "dpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(rows[0])["loss"]
    dtype = "bf16" if on_gpu() else "fp32"
    detail = f"{first:.6f} in {dtype}, {len(rows)} steps"
    kit.add("first loss off ln 2", abs(first - math.log(2)), "", _LARGEST_OFF, True, detail)


def beside_plan(kit: Kit, summary: Path) -> None:
    """What each kind of stage took beside what the run had planned for it, where the summary says both."""
    figures = json.loads(summary.read_text(encoding="utf-8"))
    planned = figures.get("planned_seconds", {})
    spent = figures.get("spent_seconds", {})
    # A plan of assumptions: half as long again is what would change a decision. On two busy cores it is none.
    bar = 1.5 if on_gpu() else None
    for kind, seconds in planned.items():
        if seconds > 0 and kind in spent:
            detail = f"planned {seconds:.1f} s, spent {spent[kind]:.1f} s"
            kit.add(f"{kind}, time over plan", spent[kind] / seconds, "×", bar, True, detail)
    if not planned:
        kit.add("time over plan", None, detail="the run planned none")
