"""Stages of the loop on plain files: from a file to a file, by way of a work folder beside the output.

The work folder is a run folder like any other: finished shards are kept, the same command goes on, and what
was begun with other settings is refused. The output appears whole or not at all; then the work folder is
removed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.limits import check_stages
from rlhf.config.overrides import pasted
from rlhf.config.schema import Config
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import FileTool, as_config
from rlhf.data.files import resolved
from rlhf.data.records import dropped
from rlhf.data.responses import Form, write_rows
from rlhf.data.shards import fsync_dir
from rlhf.errors import ConfigError, RunInUse, UserError
from rlhf.launch.choose import on_a_cluster, watched_launcher
from rlhf.launch.server import HEAVY, LIGHT, RULES
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.aside import remove_aside, set_aside
from rlhf.run.console import Console
from rlhf.run.lock import hold_run, require_ours
from rlhf.run.output import show
from rlhf.run.plan import Run
from rlhf.view.live import drawn_lines

ROWS_PER_SHARD = 256
"""Rows that are read, scored or paired together: at most so many are done again after a kill."""
_ELSEWHERE = "output=<another file>"

Make = Callable[[Run], Sequence[Artifact]]
"""Asks for the stages of a tool in order, the one that reads the input first."""
Rows = Callable[[Sequence[Artifact]], Iterator[dict[str, Any]] | Iterator[str]]
"""The output's rows, or what they are as JSON, of the finished artifacts."""


def read_input(run: Run, tool: FileTool, what: str, rows_per_shard: int = ROWS_PER_SHARD) -> Artifact:
    """The rows of a tool's input, validated and in shards: the first stage of every tool.

    Args:
        run: of the tool.
        tool: whose `input` (a file or a data set on the Hub) is read, by its `columns`.
        what: the rows that are expected (`rlhf.config.stage_configs.ReadStage`).
        rows_per_shard: at most so many in one.
    """
    file = sources.data_file(run, tool.input, "input")
    config = ReadStage(what, rows_per_shard, tool.columns)
    return run.stage("read", "read", config, {"file": file})


def write_file(tool: FileTool, make: Make, rows: Rows, form: Form = Form.lines) -> None:
    """Run a tool's stages and write its output.

    Raises:
        UserError: the output exists, or the input or a setting is wrong.
        RunChanged: work towards this output was begun with other settings or another input.
    """
    output = resolved(tool.output, "output")
    work = output.with_name(f".{output.name}.work")
    suffix = ".jsonl" if form is Form.lines else ".json"
    check_output(output, suffix, work)
    check_stages(as_config(tool))
    try:
        _write(tool, output, work, make, rows, form)
    finally:
        if not remove_aside(work):
            # A network file system keeps files that are open, and these have their log open.
            for server in (LIGHT, HEAVY, RULES):
                server.stop()
            remove_aside(work)


def _write(tool: FileTool, output: Path, work: Path, make: Make, rows: Rows, form: Form) -> None:
    """Run the stages in the work folder, and set it aside when the output is in its place."""
    cfg = as_config(tool)
    with (
        hold_run(work, show, _ELSEWHERE, tool.take_over, on_a_cluster(cfg)) as token,
        Console(work, drawn_lines) as console,
    ):
        launcher = watched_launcher(cfg, work, token, console)
        unfinished = work / output.name
        try:
            plan = _planned(cfg, work, make)
            if plan.pending:
                launcher.warm_up(bool(plan.needing_engines))
            console.say(f"{output}: {_todo(plan)}")
            console.plan(list(plan.made), {name: 0.0 for name in plan.made if name not in plan.pending})
            run = Run(work, cfg, launcher, console=console, elsewhere=_ELSEWHERE, token=token)
            artifacts = make(run)
            # Stages verify what they read; what the output is made of is read here.
            run.verify(*artifacts)
            num_rows = write_rows(unfinished, rows(artifacts), form)
            require_ours(work, token)
        except RunInUse:
            raise  # what lies there is another command's
        except UserError:
            unfinished.unlink(missing_ok=True)
            if not any(work.rglob("*.parquet")):
                set_aside(work)  # nothing was made, so nothing is left behind
            raise
        check_output(output, output.suffix, work)  # it may have come from elsewhere meanwhile
        os.replace(unfinished, output)
        # The rename must be on disk before the work is removed: a power cut between the two would lose both.
        fsync_dir(output.parent)
        console.say(f"{account(artifacts)}; {num_rows} written to {output}")
        set_aside(work)


def _planned(cfg: Config, work: Path, make: Make) -> Run:
    """What is finished in the work folder and what is to do; RunChanged for other settings or input."""
    plan = Run(work, cfg, planning=True, elsewhere=_ELSEWHERE)
    make(plan)
    plan.refuse_changes()
    return plan


def _todo(plan: Run) -> str:
    num_pending = len(plan.pending)
    num_done = len(plan.made) - num_pending
    if num_done:
        return f"{num_done} stages are finished, {num_pending} to do"
    return f"{num_pending} to do"


def account(artifacts: Sequence[Artifact]) -> str:
    """What became of every row of the input: "9 rows = 7 kept + 2 dropped (duplicate 1, empty 1)"."""
    num_dropped = Counter[str]()
    for artifact in artifacts:
        num_dropped.update(dropped(artifact.counts))
    counts = artifacts[0].counts
    # A row of preferences may hold several comparisons, each of which is kept or dropped by itself.
    num_rows = counts.get("comparisons", counts["rows"])
    total = num_dropped.total()
    text = f"{num_rows} rows = {num_rows - total} kept + {total} dropped"
    reasons = [f"{reason} {number}" for reason, number in sorted(num_dropped.items())]
    if not reasons:
        return text
    return f"{text} ({', '.join(reasons)})"


def check_output(output: Path, suffix: str, work: Path | None = None) -> None:
    """Refuse an output of the wrong kind, and one that exists.

    Raises:
        ConfigError: its suffix is another one.
        UserError: it exists.
    """
    if output.suffix != suffix:
        raise ConfigError(f"output={output}: this tool writes {suffix}; name the file so.")
    if not output.exists():
        return
    left = ""
    if work is not None and work.exists():
        # A command that was killed between the rename and the end of its work.
        left = f" but {pasted('rm', '-r', str(work))}"
    raise UserError(
        f"output={output}: exists already, and nothing is written over it. If this very command made it, "
        f"there is nothing left to do{left}. Ways out: name another output, or remove it first: "
        f"{pasted('rm', str(output))}"
    )
