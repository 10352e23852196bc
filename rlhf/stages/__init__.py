"""The stages that are no training: one function `run(job, worker)` each, named in `rlhf.run.stage_table`."""

from __future__ import annotations

import sys

from rlhf.run.output import prepare_output, show


def _answer_the_old_spelling(command: list[str]) -> None:
    """A stage used to be run as `python -m rlhf.stages.dpo`; say how it is now, and end with exit code 2.

    Python imports this package before it looks for the module that follows `-m`.
    """
    # A `-m` at the very end is an argument and has no module behind it.
    if "-m" not in command[:-1]:
        return
    module = command[command.index("-m") + 1]
    if not module.startswith("rlhf.stages."):
        return
    stage = module.removeprefix("rlhf.stages.")
    prepare_output()
    show(f"error: python -m {module} is now: python -m rlhf.stage {stage} run_dir=RUN …", error=True)
    sys.exit(2)


_answer_the_old_spelling(sys.orig_argv)
