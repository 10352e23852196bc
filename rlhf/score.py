"""Score the responses of a file: `python -m rlhf.score reward_model.path=… input=….jsonl output=….jsonl`.

Writes each usable line again with `rewards`, the judge's raw scores in the order of `responses`; null where
one is not finite. Other keys are carried along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf.command.file_tool import read_input, write_file
from rlhf.command.line import main
from rlhf.config.tools import ScoreTool
from rlhf.data.responses import scored_line
from rlhf.data.shards import read_all_rows
from rlhf.loop.judges import scores_of
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def score(tool: ScoreTool) -> None:
    """From candidates to scores."""

    def make(run: Run) -> list[Artifact]:
        # Rewards that rows may hold are not read: they are another judge's, and are written anew.
        responses = read_input(run, tool.input, "responses")
        scores = scores_of(run, responses.part("candidates"))
        return [responses, scores]

    write_file(tool, make, lines)


def lines(artifacts: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The output's rows.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello!", "Yo."],
         "rewards": [1.5, -0.3]}
    """
    responses, scores = artifacts
    rows = read_all_rows(responses.path / "candidates")
    scored_rows = read_all_rows(scores.path)
    # The stage `score` keeps rows and their order; strict, so that a row too few is no silent shift.
    for row, scored in zip(rows, scored_rows, strict=True):
        yield scored_line(row, scored["scores"])


if __name__ == "__main__":
    main(score, "tool", ScoreTool)
