"""Score the responses of a file: `python -m rlhf.score reward_model.path=… input=….jsonl output=….jsonl`.

Writes each usable line again with `rewards`, the judge's raw scores in the order of `responses`; null where one is
not finite. Other keys are carried along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf.command.file_tool import ROWS_PER_SHARD, write_file
from rlhf.command.line import main
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import ScoreTool
from rlhf.data.responses import scored_line
from rlhf.data.shards import read_all_rows
from rlhf.loop.judges import scores_of
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def score(tool: ScoreTool) -> None:
    """From candidates to scores."""

    def make(run: Run) -> list[Artifact]:
        file = sources.data_file(run, tool.input, "input")
        read = run.stage("read", "read", ReadStage("responses", ROWS_PER_SHARD), {"file": file})
        return [read, scores_of(run, read.part("candidates"))]

    write_file(tool, make, lines)


def lines(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The output's rows."""
    read, scores = made
    pairs = zip(read_all_rows(read.path / "candidates"), read_all_rows(scores.path), strict=True)
    return (scored_line(row, scored["scores"]) for row, scored in pairs)


if __name__ == "__main__":
    main(score, "tool", ScoreTool)
