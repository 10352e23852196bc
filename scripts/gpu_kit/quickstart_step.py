"""The quickstart on one GPU as a user types it, one iteration of it."""

from __future__ import annotations

import time

from gpu_kit import commands
from gpu_kit.figures import NEEDS_GPU, Kit, SkipStepError
from gpu_kit.models import on_gpu
from gpu_kit.step import missing

PACKAGES = commands.PACKAGES


def measure(kit: Kit) -> None:
    """Every stage as it is finished: there may be no time for all."""
    if kit.is_toy and not on_gpu():
        raise SkipStepError(f"{NEEDS_GPU}; the step `iteration` stands for it at toy size")
    run = kit.work / "quickstart"
    settings = ["experiment=quickstart", f"run_dir={run}", "num_iterations=1", "compute.device=cuda"]
    if missing(("vllm",)):
        settings.append("generate.engine=transformers")
    began = time.monotonic()
    log = kit.work / "quickstart.log"
    process = commands.start(settings, log)
    seen: set[str] = set()
    code: int | None = None
    while code is None:
        time.sleep(0.5)
        code = process.poll()
        for name, manifest in commands.manifests(run).items():
            if name not in seen:
                seen.add(name)
                kit.add(f"stage {name}", float(manifest["seconds"]), "s")
    print(log.read_text(encoding="utf-8", errors="replace"))
    if code != 0:
        raise RuntimeError(f"it ended with exit code {code}: {commands.last_words(log)}")
    lowered = int("compute.num_training_ranks=1, not 2" in log.read_text(encoding="utf-8", errors="replace"))
    kit.add("ranks lowered to the GPU, and said", lowered, "(1 is yes)", bar=1)
    kit.add("the command", time.monotonic() - began, "s")
