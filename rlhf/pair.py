"""Make preference pairs of a file's scored responses: `python -m rlhf.pair input=….jsonl output=….jsonl`.

Writes a line per pair in TRL's conversational preference format (`prompt`, `chosen` and `rejected` as
messages), with scores, ranks, lengths and the margin beside them, in columns that no trainer acts on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf.command.file_tool import read_input, write_file
from rlhf.command.line import main
from rlhf.config.tools import PairTool
from rlhf.data.pair_lines import pair_lines
from rlhf.loop.step import stage_config
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

ROWS_PER_SHARD = 4096
"""Enough that files cost little beside what is in them; at 8 answers of 2,000 characters 70 MB."""


def pair(tool: PairTool) -> None:
    """From scores to pairs."""

    def make(run: Run) -> list[Artifact]:
        scored = read_input(run, tool, "scored", ROWS_PER_SHARD)
        # In the loop two stages make these; here one file holds both.
        inputs = {"candidates": scored.part("candidates"), "scores": scored.part("scores")}
        config = stage_config(run.cfg, "pair")
        pairs = run.stage("pair", "pair", config, inputs)
        return [scored, pairs]

    write_file(tool, make, lines)


def lines(artifacts: Sequence[Artifact]) -> Iterator[str]:
    """The output's rows, as JSON.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}],
         "chosen": [{"role": "assistant", "content": "Hello!"}],
         "rejected": [{"role": "assistant", "content": "Yo."}],
         "penalised_margin": 1.8, "chosen_score": 1.5, "rejected_score": -0.3, …}
    """
    _, pairs = artifacts
    return pair_lines(pairs.path)


if __name__ == "__main__":
    main(pair, "tool", PairTool)
