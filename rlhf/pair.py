"""Make preference pairs of the scored responses of a file: `python -m rlhf.pair input=….jsonl output=….jsonl`.

Writes a line per pair in TRL's conversational preference format (`prompt`, `chosen` and `rejected` as messages), with
scores, ranks, lengths and the margin beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf.command.file_tool import ROWS_PER_SHARD, write_file
from rlhf.command.line import main
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import PairTool
from rlhf.data.responses import pair_line
from rlhf.data.shards import read_all_rows
from rlhf.loop.step import stage_config
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def pair(tool: PairTool) -> None:
    """From scores to pairs."""

    def make(run: Run) -> list[Artifact]:
        file = sources.data_file(run, tool.input, "input")
        read = run.stage("read", "read", ReadStage("scored", ROWS_PER_SHARD), {"file": file})
        inputs = {name: read.part(name) for name in ("candidates", "scores")}
        return [read, run.stage("pair", "pair", stage_config(run.cfg, "pair"), inputs)]

    write_file(tool, make, lines)


def lines(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The output's rows."""
    return map(pair_line, read_all_rows(made[-1].path))


if __name__ == "__main__":
    main(pair, "tool", PairTool)
