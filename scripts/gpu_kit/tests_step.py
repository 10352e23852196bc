"""`tests/gpu` by pytest, each test's outcome as soon as it is known."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gpu_kit.figures import NEEDS_GPU, Kit
from gpu_kit.models import on_gpu
from gpu_kit.step import die_with_parent

PACKAGES = ("torch", "transformers", "pytest")

ROOT = Path(__file__).resolve().parents[2]
_TAKEN_ELSEWHERE = ("tests/gpu/test_machine_on_gpu.py::test_the_quickstarts_processes_fit_one_gpu",)
"""It takes minutes, and the step `quickstart` looks at the same."""
_OUTCOME = re.compile(r"^tests/gpu/(\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_FILES = (
    "tests/gpu/test_machine_on_gpu.py",
    "tests/gpu/test_training_on_gpu.py",
    "tests/gpu/test_loop_on_gpu.py",
)
"""In order of value; files that are not named here come after them."""


def measure(kit: Kit) -> None:
    """A line for each test that ran; those that need a GPU are counted where there is none."""
    # The project's own settings ask for a newer pytest than a machine may have.
    settings = kit.work / "pytest.ini"
    text = f"[pytest]\naddopts = --import-mode=importlib\npythonpath = {ROOT}\n"
    settings.write_text(text, encoding="utf-8")
    files = list(_FILES)
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        name = f"tests/gpu/{path.name}"
        if name not in files:
            files.append(name)
    command = [sys.executable, "-m", "pytest", "-c", str(settings), f"--rootdir={ROOT}", "-v", "--tb=short"]
    command += ["-p", "no:cacheprovider", "--color=no", f"--basetemp={kit.work / 'pytest'}"]
    command += [f"--deselect={name}" for name in _TAKEN_ELSEWHERE]
    command += files
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    passed = 0
    others: dict[str, int] = {}
    for line in process.stdout:
        print(line, end="", flush=True)
        found = _OUTCOME.match(line)
        if found is None:
            continue
        name, outcome = found.groups()
        if outcome == "PASSED":
            passed += 1
            kit.add(name, 1.0, "(1 is passed)", 1)
        elif outcome in ("FAILED", "ERROR"):
            kit.add(name, 0.0, "(1 is passed)", 1, detail=outcome)
        else:
            others[outcome] = others.get(outcome, 0) + 1
    code = process.wait()
    if others:
        text = ", ".join(f"{count} {outcome.lower()}" for outcome, count in others.items())
        kit.add("tests that did not run", text if on_gpu() else f"{text}: {NEEDS_GPU}")
    # 1 is said by the lines of the tests that failed; 5 would be no test at all.
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {code}")
