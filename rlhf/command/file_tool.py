"""Stages of the loop on plain files: from a file to a file, by way of a work folder beside the output.

The work folder is a run folder like any other: finished shards are kept, the same command goes on, and what was begun
with other settings is refused. The output appears whole or not at all; then the work folder is removed.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.config.limits import check_stages
from rlhf.config.tools import FileTool, as_config
from rlhf.data.files import resolved
from rlhf.data.records import dropped
from rlhf.data.responses import Form, write_rows
from rlhf.data.shards import fsync_dir
from rlhf.errors import ConfigError, UserError
from rlhf.launch.local import LocalLauncher
from rlhf.run.artifact import Artifact
from rlhf.run.console import Console
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run

ROWS_PER_SHARD = 256
_ELSEWHERE = "output=<another file>"

Make = Callable[[Run], Sequence[Artifact]]
"""Asks for the stages of a tool in order, the one that reads the input first."""
Rows = Callable[[Sequence[Artifact]], Iterator[dict[str, Any]]]
"""The output's rows, of the finished artifacts."""


def write_file(tool: FileTool, make: Make, rows: Rows, form: Form = Form.lines) -> None:
    """Run a tool's stages and write its output.

    Raises:
        UserError: the output exists, or the input or a setting is wrong.
        RunChanged: work towards this output was begun with other settings or another input.
    """
    output = resolved(tool.output, "output")
    work = output.with_name(f".{output.name}.work")
    check_output(output, ".jsonl" if form is Form.lines else ".json", work)
    cfg = as_config(tool)
    check_stages(cfg)
    with hold_run(work, partial(print, flush=True), _ELSEWHERE) as token:
        console = Console(work)
        launcher = LocalLauncher(
            work, token, cfg.compute.preload, cfg.compute.device.value, console.progress, console.say
        )
        try:
            plan = Run(work, cfg, planning=True, elsewhere=_ELSEWHERE)
            make(plan)
            plan.refuse_changes()
            if plan.pending:
                launcher.warm_up()
            done = len(plan.made) - len(plan.pending)
            console.say(f"{output}: {f'{done} stages are finished, ' if done else ''}{len(plan.pending)} to do")
            run = Run(work, cfg, launcher, console=console, elsewhere=_ELSEWHERE)
            made = make(run)
            run.verify(*made)
            written = write_rows(work / output.name, rows(made), form)
        except UserError:
            (work / output.name).unlink(missing_ok=True)
            if not any(work.rglob("*.parquet")):
                shutil.rmtree(work)  # nothing was made, so nothing is left behind
            raise
        check_output(output, output.suffix, work)  # it may have come from elsewhere meanwhile
        os.replace(work / output.name, output)
        fsync_dir(output.parent)
        console.say(f"{account(made)}; {written} written to {output}")
        shutil.rmtree(work)


def account(made: Sequence[Artifact]) -> str:
    """What became of every row of the input: kept ones, and dropped ones by reason."""
    lost = Counter[str]()
    for artifact in made:
        lost.update(dropped(artifact.counts))
    rows = made[0].counts.get("comparisons", made[0].counts["rows"])
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(lost.items()))
    kept = rows - lost.total()
    return f"{rows} rows = {kept} kept + {lost.total()} dropped{f' ({reasons})' if reasons else ''}"


def check_output(output: Path, suffix: str, work: Path | None = None) -> None:
    """Refuse an output of the wrong kind, and one that exists.

    Raises:
        ConfigError: its suffix is another one.
        UserError: it exists.
    """
    if output.suffix != suffix:
        raise ConfigError(f"output={output}: this tool writes {suffix}; name the file so.")
    if output.exists():
        left = f" but rm -r {work}" if work and work.exists() else ""
        raise UserError(
            f"output={output}: exists already, and nothing is written over it. If this very command made it, there is "
            f"nothing left to do{left}. Ways out: name another output, or "
            f"remove it first: rm {output}"
        )
