"""What a command costs before and between its work: `--cfg job`, a resume with nothing to do, a look, and the
quickstart's seconds that are no engine work.

    python -m benchmarks.startup run=FOLDER     the table of a run that is finished, stage by stage

**Engine work** is the time inside the function of a stage that loads, trains or asks a model: `world`,
`sft`, `reward_model`, `generate`, `score` with a model, `reference` and `dpo`. What an engine takes to load
its model is in it, for that is the engine's. Everything else is not: the driver, the start of every process,
imports (also those of `world`, which begins to count with the first file it writes), the stages without a
model (`prompts`, `pair`, `score` with a rule, `export`), evaluation's arithmetic, checksums, commits, and the
end of every process. Ranks and workers of a stage work side by side: it counts from the first that begins to
the last that ends.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import Cost, Row, cost_of_command, in_turn, median
from rlhf.launch.machine import num_cores
from rlhf.run.stage_table import needs_engine

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ["-c", "import hydra, pyarrow"]
"""What every command is held against, in the same run: machines differ, and busy hours too."""
REFERENCE_SECONDS = 0.2
"""Of that on the idle machine on which the commands took as long as `COMMANDS` says."""
QUICKSTART_SECONDS = 125
NO_ENGINE_SECONDS = 6
MISSED = {
    "quickstart_no_engine": (
        "no worker imports the driver's main module, stages without an engine wait for no import of one, "
        "vLLM looks at a model's class in the worker: 29 s became 7.4",
        "imports of world without garbage collection and on a core of their own: 2.8 s of torch and "
        "transformers are left, in front of the first stage, where nothing hides them",
        "hashing side by side, never twice; vLLM's cache on a CPU takes no more than can run at once, in the "
        "quickstart half of its gigabyte, of which each costs the system half a second",
        "figures of finished policies are not worked out again, and no module of the driver imports Arrow "
        "before a shard is read",
    ),
    "cfg_job": (
        "the plan beside what was spent is imported when a run ends, and not before",
        "Arrow and NumPy are imported by the first that reads a shard: 0.60 s of processor became 0.44",
        "the preflight is imported by a run that has something to do; Hydra's own imports and its two "
        "compositions are what is left",
    ),
    "resume_nothing_to_do": (
        "the plan beside what was spent reads no samples, and is imported at its end: 1.07 s became 0.91",
        "files are hashed side by side, links not again; no engine's imports where nothing is pending",
        "the figures of a policy are worked out once, not after every later iteration again; what another "
        "run in the folder would be called is read only for an error",
        "the preflight is not imported where nothing is pending; the bar is of a loop that checked less",
    ),
    "check": (
        "what calls rules is on its way while the rest is looked at: 1.17 s became 0.89",
        "from a server that imports what calls a rule and nothing else, without Arrow and pandas: 0.78 s of "
        "processor became 0.64",
        "the bar is of a look that called no rule and read no training file, as this one does since",
    ),
}
"""Of bars that are missed: what was tried."""
_AT_WORK = re.compile(r"^\S+, rank \d+: at work from ([\d.]+) to ([\d.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class StageSeconds:
    """A finished stage of a run: all its seconds, and those of them that its engine was at work."""

    name: str
    seconds: float
    engine: float


def stage_seconds(run: Path) -> list[StageSeconds]:
    """The stages of a finished run that was never resumed, in the order in which they were finished."""
    manifests = sorted(run.rglob("artifact.json"), key=lambda path: path.stat().st_mtime)
    stages = []
    for manifest in manifests:
        record = json.loads(manifest.read_bytes())
        name = manifest.parent.relative_to(run).as_posix()
        stage = record["identity"]["stage"]
        engine = 0.0
        if stage == "world" or needs_engine(stage, record["identity"]["config"]):
            began, ended = _at_work(run, name)
            if stage == "world":
                began = (manifest.parent / "sft.jsonl").stat().st_mtime
            engine = ended - began
        stages.append(StageSeconds(name, record["seconds"], engine))
    return stages


def _at_work(run: Path, name: str) -> tuple[float, float]:
    """When the first worker of a stage began to work, and when the last one had done; seconds since 1970."""
    spans = []
    for log in (run / "logs").glob(f"{name.replace('/', '.')}.rank*.log"):
        for began, ended in _AT_WORK.findall(log.read_text(encoding="utf-8", errors="replace")):
            spans.append((float(began), float(ended)))
    if not spans:
        raise RuntimeError(f"{run / 'logs'}: no worker of {name} says there when it was at work")
    return min(began for began, _ in spans), max(ended for _, ended in spans)


def no_engine(stages: list[StageSeconds], wall: float) -> float:
    """Seconds of a run in which no engine was at work."""
    return wall - sum(stage.engine for stage in stages)


def table(stages: list[StageSeconds]) -> str:
    """A line for each stage: its seconds, those of its engine, and the rest."""
    lines = [f"{'stage':<32} {'seconds':>8} {'engine':>8} {'rest':>8}"]
    for stage in stages:
        rest = stage.seconds - stage.engine
        lines.append(f"{stage.name:<32} {stage.seconds:8.2f} {stage.engine:8.2f} {rest:8.2f}")
    seconds = sum(stage.seconds for stage in stages)
    engine = sum(stage.engine for stage in stages)
    lines.append(f"{'all':<32} {seconds:8.2f} {engine:8.2f} {seconds - engine:8.2f}")
    return "\n".join(lines)


def _command(words: list[str]) -> Cost:
    environment = {"PYTHONPATH": str(ROOT)}
    return cost_of_command([sys.executable, *words], environment)


def quickstart(run: Path, cache: Path) -> Cost:
    """The whole quickstart, as on a machine on which vLLM was never used; the proof is its stages.

    Raises:
        RuntimeError: it failed, or did not come to what it is to show: a policy better than π0.
    """
    words = ["-m", "rlhf.iterate", "experiment=quickstart", f"run_dir={run}"]
    environment = {"PYTHONPATH": str(ROOT), "VLLM_CACHE_ROOT": str(cache)}
    cost = cost_of_command([sys.executable, *words], environment)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_bytes())
    first, *_, last = [row["mean_score"] for row in summary["iterations"]]
    if not last > first:
        raise RuntimeError(f"the quickstart's last policy scores {last}, and π0 {first}")
    return Cost(cost.processor_seconds, cost.wall_seconds, cost.peak_gigabytes, proof=stage_seconds(run))


def rows(runs: int) -> list[Row]:
    """The rows of start-up: three commands in turn with the reference, and one quickstart."""
    with tempfile.TemporaryDirectory(prefix="rlhf_startup_") as name:
        run = Path(name) / "run"
        whole = quickstart(run, Path(name) / "vllm")
        return [*_quickstart_rows(whole), *_command_rows(run, runs)]


def _quickstart_rows(whole: Cost) -> list[Row]:
    stages: list[StageSeconds] = whole.proof
    rest = no_engine(stages, whole.wall_seconds)
    in_stages = sum(stage.seconds - stage.engine for stage in stages)
    where = (
        f"{whole.wall_seconds:.0f} s on {num_cores()} cores, {whole.processor_seconds:.0f} s of processor; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    between = rest - in_stages
    missed = MISSED["quickstart_no_engine"] if rest > NO_ENGINE_SECONDS else ()
    made_of = f"{in_stages:.1f} s within {len(stages)} stages, {between:.1f} s before and between them"
    return [
        Row("startup/quickstart_seconds", whole.wall_seconds, QUICKSTART_SECONDS, "s", True, where),
        Row("startup/quickstart_no_engine", rest, NO_ENGINE_SECONDS, "s", True, made_of, missed),
    ]


def _command_rows(run: Path, runs: int) -> list[Row]:
    """Each command's wall seconds over those of the reference, both medians of the same rounds."""
    # Seconds on the idle machine, and the words.
    commands = {
        "cfg_job": (0.46, ["-m", "rlhf.iterate", "experiment=quickstart", "--cfg", "job"]),
        "resume_nothing_to_do": (0.69, ["-m", "rlhf.iterate", "experiment=quickstart", f"run_dir={run}"]),
        "check": (0.54, ["-m", "rlhf.check", "experiment=quickstart"]),
    }
    subjects: dict[str, Callable[[], Cost]] = {"reference": partial(_command, REFERENCE)}
    for name, (_, words) in commands.items():
        subjects[name] = partial(_command, words)
    for subject in subjects.values():
        subject()  # what is on the disk comes into memory
    taken = in_turn(subjects, runs)
    if not all("0 to do" in cost.proof for cost in taken["resume_nothing_to_do"]):
        raise RuntimeError("the resume found something to do")
    reference = median(taken["reference"], "wall_seconds")
    measured = []
    for name, (seconds, _) in commands.items():
        wall = median(taken[name], "wall_seconds")
        detail = f"{wall:.2f} s against {reference:.2f} s of python -c '{REFERENCE[1]}'"
        bar = round(seconds / REFERENCE_SECONDS, 2)
        missed = MISSED[name] if wall / reference > bar else ()
        row = Row(f"startup/{name}", wall / reference, bar, "× the imports", True, detail, missed)
        measured.append(row)
    return measured


def main(words: list[str]) -> None:
    """Print the table of a finished run."""
    key, _, value = " ".join(words).partition("=")
    if key != "run" or not value:
        sys.exit(f"error: {' '.join(words)!r}: say run=FOLDER, of a run that is finished.")
    print(table(stage_seconds(Path(value))))


if __name__ == "__main__":
    main(sys.argv[1:])
