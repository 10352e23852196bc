"""What only a GPU can tell, in one command of at most 8 minutes.

    python scripts/gpu_check.py [size=full|toy] [out=FOLDER] [only=preload,shapes] [minutes=8]

Steps in order of value, each in a process of its own with a time limit of its own. What was measured is
written after every step, so a kill leaves it: `out` gets `result.json`, `table.txt` and `log.txt` (what the
steps printed). A step that fails, hangs or cannot be done here has its line with the reason. `size=toy` takes
the same way with tiny shapes on a CPU. docs/gpu.md says how to read the result.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# From a plain checkout: the project need not be installed.
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_kit.figures import FULL, TOY, as_text, read_lines, table  # noqa: E402
from gpu_kit.step import SKIPPED, missing  # noqa: E402

from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.launch.machine import starting_environment, visible_gpus  # noqa: E402
from rlhf.run.processes import adopt_orphans, end_children  # noqa: E402


@dataclass(frozen=True)
class Step:
    """A step: the module `gpu_kit.<name>_step`, and its share of the time."""

    name: str
    what: str
    share: float
    """Seconds of 8 minutes. What a step leaves, those after it may use."""


STEPS = (
    Step("machine", "versions, GPU, driver, what is missing", 15),
    Step("preload", "preload, then a forked child allocates on CUDA", 35),
    Step("shapes", "DPO at 1B and 8B shapes: tokens/s, MFU, peak memory, TRL beside it", 150),
    Step("gradient", "one step's gradient in bf16, added up in bf16 and fp32, against fp32", 20),
    Step("iteration", "one iteration of a random 1B Llama through the command", 80),
    Step("engine", "vLLM: start, seeds, log-probabilities beside transformers", 50),
    Step("tests", "tests/gpu", 40),
    Step("kill", "kill in DPO and resume, sizes of checkpoints", 45),
    Step("scoring", "scoring at 8B shapes on both engines", 25),
    Step("quickstart", "the quickstart on one GPU, one iteration", 20),
)
"""In order of value: without the first nothing works, and the bars are in `shapes`."""

_WITH_ALL_GPUS = ("machine", "tests")

_LAST_OF_LOG = 200_000
"""Bytes kept of what one step prints."""
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
"""How the last line of a traceback begins."""
_SECONDS_OF_A_SKIPPED_STEP = 2.0
_GRACE_SECONDS = 10.0
"""Before the end, for a last step that has to be ended and written down."""


@dataclass
class Settings:
    """What the command line may say."""

    size: str = FULL
    out: str = "runs/gpu_check"
    only: str = ""
    minutes: float = 8.0


def settings_from(words: list[str]) -> Settings:
    """`key=value` words."""
    settings = Settings()
    for word in words:
        key, _, value = word.partition("=")
        if key not in vars(settings):
            raise SystemExit(f"error: {word}: there is no {key!r}; say {', '.join(vars(settings))}.")
        if key == "minutes":
            try:
                settings.minutes = float(value)
            except ValueError:
                raise SystemExit(f"error: {word}: minutes are a number, such as minutes=8.") from None
        else:
            setattr(settings, key, value)
    if not 0 < settings.minutes < 1440:
        raise SystemExit(f"error: minutes={settings.minutes:g}: say more than 0, and less than a day.")
    if settings.size not in (FULL, TOY):
        raise SystemExit(f"error: size={settings.size}: say {FULL} or {TOY}.")
    return settings


def chosen_steps(only: str) -> tuple[Step, ...]:
    """The steps that `only` names, in their own order; all where it names none."""
    names = [name for name in only.split(",") if name]
    known = [step.name for step in STEPS]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"error: only={only}: no step {', '.join(unknown)}; there are {', '.join(known)}.")
    return tuple(step for step in STEPS if not names or step.name in names)


def seconds_of(step: Step) -> float:
    """Its share; where a package is missing, and the step says so and ends, a second."""
    module = importlib.import_module(f"gpu_kit.{step.name}_step")
    return _SECONDS_OF_A_SKIPPED_STEP if missing(module.PACKAGES) else step.share


def limits(shares: list[float], minutes: float) -> list[float]:
    """Seconds from the start by which each step has to be done, if all before it took theirs."""
    total = sum(shares)
    ends = []
    passed = 0.0
    for share in shares:
        passed += share
        ends.append(max(1.0, 60 * minutes - _GRACE_SECONDS) * passed / total)
    return ends


def environment_of(step: Step) -> dict[str, str]:
    """What a step runs in: one GPU, but for those that look at all of them."""
    gpus = visible_gpus()
    if step.name not in _WITH_ALL_GPUS:
        # Trainers that see several take them all by themselves, and memory is asked of the first.
        gpus = gpus[:1]
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **starting_environment("auto"),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        # Nothing is fetched: without a network each try would take a minute.
        "HF_HUB_OFFLINE": "1",
    }


def run_step(step: Step, settings: Settings, work: Path, seconds: float, log: Path) -> dict[str, Any]:
    """A step's part of the result; `seconds` is when it is ended."""
    began = time.monotonic()
    figures = work / f"{step.name}.jsonl"
    printed = work / f"{step.name}.log"
    command = [sys.executable, "-m", "gpu_kit.step", step.name, settings.size, str(work), str(figures)]
    with printed.open("wb") as stream:
        process = subprocess.Popen(
            [*command, str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment_of(step),
            cwd=work,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
    # Also what it has started, so that no memory of a GPU is missing for the next step.
    end_children()
    text = printed.read_bytes()[-_LAST_OF_LOG:].decode("utf-8", errors="replace")
    with log.open("a", encoding="utf-8") as whole:
        whole.write(f"===== {step.name}\n{text}\n")
    rows = read_lines(figures)
    status, reason = how_it_went(code, rows, text)
    return {
        "name": step.name,
        "what": step.what,
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "limit": round(seconds, 1),
        "figures": [row for row in rows if "skipped" not in row],
    }


def how_it_went(code: int | None, rows: list[dict[str, Any]], text: str) -> tuple[str, str]:
    """Status and reason; `code` is None where the time ran out."""
    if code == 0:
        return "done", ""
    if code == SKIPPED:
        return "skipped", next(row["skipped"] for row in rows if "skipped" in row)
    if code is None:
        return "out of time", "what is below was measured before" if rows else "nothing was measured"
    printed = [line.strip() for line in text.splitlines() if line.strip()]
    # Of a traceback's message, which may have more lines, the first.
    errors = [line for line in printed if _ERROR.match(line)]
    last = (errors or printed or ["nothing was printed"])[-1]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return "failed", f"{how}, {last[:300]}"


def write(out: Path, settings: Settings, steps: list[dict[str, Any]], seconds: float) -> None:
    """Both files, whole or as they were."""
    result = {
        "size": settings.size,
        "minutes": settings.minutes,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "steps": steps,
    }
    text_of_result = json_text(result, indent=1, ascii_only=False) + "\n"
    texts = {"result.json": text_of_result, "table.txt": table(steps)}
    for name, text in texts.items():
        partial = out / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)


def main(words: list[str]) -> int:
    """Take every step; 1 where one failed or a bar is missed, 2 where nothing can be done."""
    settings = settings_from(words)
    steps = chosen_steps(settings.only)
    if settings.size == FULL and not visible_gpus():
        raise SystemExit(
            "error: no NVIDIA GPU is visible here. See that nvidia-smi lists one and that "
            "CUDA_VISIBLE_DEVICES does not hide it, or say size=toy: the same way with tiny shapes on a CPU."
        )
    adopt_orphans()
    # As Ctrl-C does: what was begun is ended and removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out = Path(settings.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_text("", encoding="utf-8")
    ends = limits([seconds_of(step) for step in steps], settings.minutes)
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    work = Path(tempfile.mkdtemp(prefix="gpu_check."))
    try:
        for step, end in zip(steps, ends, strict=True):
            seconds = max(1.0, began + end - time.monotonic())
            results.append(run_step(step, settings, work, seconds, log))
            write(out, settings, results, time.monotonic() - began)
            print("\n".join(as_text(results[-1])), flush=True)
    finally:
        end_children()
        shutil.rmtree(work, ignore_errors=True)
    missed = sum(figure["met"] is False for result in results for figure in result["figures"])
    failed = sum(result["status"] in ("failed", "out of time") for result in results)
    print(f"{len(results)} steps, {failed} failed or out of time, {missed} bars missed; {out}")
    return 1 if failed or missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            sys.exit(2)
        raise
