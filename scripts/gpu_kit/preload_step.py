"""Whether workers can be forked from a process that has everything imported, and use a GPU then."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from gpu_kit.figures import Kit

PACKAGES = ("torch",)

_CODE = """
import json, os, sys, time
from pathlib import Path
began = time.monotonic()
import rlhf.launch.preload as preload
seconds = time.monotonic() - began
import torch
from rlhf.data.json_text import json_text
tasks = Path("/proc/self/task")
threads = sorted((task / "comm").read_text().strip() for task in tasks.iterdir())
# Not by the kernel's own list of children, which not every kernel has.
from rlhf.run.processes import children_of
names = []
for child in children_of(os.getpid()):
    names.append(Path(f"/proc/{child}/comm").read_text().strip())
said = {
    "seconds": seconds,
    "missing": [name for name in preload.MODULES if name not in sys.modules],
    "threads": threads,
    "children": names,
    "initialized": torch.cuda.is_initialized(),
    "forks": [],
}
device = "cuda" if torch.cuda.is_available() else "cpu"
# Asking whether there is a GPU must not use it either.
said["initialized"] = said["initialized"] or torch.cuda.is_initialized()
for _ in range(2):
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            began = time.monotonic()
            total = torch.ones(1 << 20, device=device, dtype=torch.float32).sum().item()
            answer = {"sum": total, "seconds": time.monotonic() - began, "error": ""}
        except BaseException as error:
            answer = {"sum": 0.0, "seconds": 0.0, "error": f"{type(error).__name__}: {error}"[:400]}
        os.write(here, json_text(answer).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    said["forks"].append(json.loads(text) if text else {"sum": 0, "seconds": 0, "error": "the child died"})
print("SAID" + json_text(said))
"""
"""Two children, one after another: the first one's end must leave the GPU usable for the next."""


def measure(kit: Kit) -> None:
    """As the launcher does it, but that its server is this program."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Threads of torch's own would not be those of the preload.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    if not lines:
        print(done.stdout)
        raise RuntimeError(f"the preloading process ended with exit code {done.returncode}")
    said = json.loads(lines[0].removeprefix("SAID"))
    kit.add("seconds of the preload", said["seconds"], "s")
    kit.add("modules not preloaded", ", ".join(said["missing"]) or "none")
    kit.add("threads of the preloading process", ", ".join(said["threads"]))
    children = len(said["children"])
    names = ", ".join(said["children"])
    kit.add("children of it", children, "processes", bar=0, lower_is_better=True, detail=names)
    used = int(said["initialized"])
    kit.add("GPU used by it", used, "(0 is no)", bar=0, lower_is_better=True)
    _forks(kit, said["forks"])


def _forks(kit: Kit, forks: list[dict[str, object]]) -> None:
    from gpu_kit.models import on_gpu

    where = "CUDA" if on_gpu() else "the CPU"
    for number, fork in enumerate(forks, start=1):
        right = int(fork["sum"] == 1 << 20)
        detail = str(fork["error"]) or f"{fork['seconds']:.2f} s"
        kit.add(f"forked child {number} computes on {where}", right, "(1 is yes)", bar=1, detail=detail)
    if not on_gpu():
        kit.needs_gpu("forked child computes on CUDA")
