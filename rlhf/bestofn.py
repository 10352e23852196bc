"""Is a judge good enough to pick pairs? `python -m rlhf.bestofn reward_model.path=… input=….jsonl output=….json`.

Each line of the input holds `prompt`, `responses`, and `qualities`: what each response is really worth, by people or a
much stronger judge. Without `reward_model.path` the line's own `rewards` (of `python -m rlhf.score`) are judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.command.file_tool import ROWS_PER_SHARD, write_file
from rlhf.command.line import main
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import BestOfNTool
from rlhf.data.responses import Form, to_number
from rlhf.data.shards import read_all_rows
from rlhf.errors import DataError
from rlhf.evaluation.judge_quality import Judged, best_of_n
from rlhf.loop.judges import scores_of
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def bestofn(tool: BestOfNTool) -> None:
    """From responses of known quality to what the judge's choices are worth."""

    def make(run: Run) -> list[Artifact]:
        file = sources.data_file(run, tool.input, "input")
        read = run.stage("read", "read", ReadStage("qualities", ROWS_PER_SHARD), {"file": file})
        if not (tool.reward_model.path or tool.reward_model.rule):
            return [read]
        return [read, scores_of(run, read.part("candidates"))]

    write_file(tool, make, result, Form.object)
    print(table(json.loads(Path(tool.output).expanduser().read_text(encoding="utf-8"))), flush=True)


def result(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The one object that is written; responses without a finite score and quality are left out and counted."""
    read, *scores = made
    left_out = 0
    prompts = []
    scored = read_all_rows(scores[0].path) if scores else None
    for row, known in zip(read_all_rows(read.path / "candidates"), read_all_rows(read.path / "scores"), strict=True):
        values = next(scored)["scores"] if scored else own_rewards(row)
        lengths = [len(candidate["text"]) for candidate in row["candidates"]]
        kept = [
            each
            for each in zip(values, known["scores"], lengths, strict=True)
            if math.isfinite(each[0]) and math.isfinite(each[1])
        ]
        left_out += len(values) - len(kept)
        if kept:
            prompts.append(Judged(*(list(column) for column in zip(*kept, strict=True))))
    if not prompts:
        raise DataError(
            f"None of {left_out} responses has a finite score and quality. Look at `qualities` and the judge."
        )
    yield best_of_n(prompts) | {"responses_left_out": left_out}


def own_rewards(row: dict[str, Any]) -> list[float]:
    """The `rewards` that a line brought along.

    Raises:
        DataError: it has none, or not one for each response.
    """
    rewards, prompt = json.loads(row["extra"]).get("rewards"), f"The prompt {row['messages'][-1]['content']!r:.80}"
    if not isinstance(rewards, list) or len(rewards) != len(row["candidates"]):
        raise DataError(
            f"{prompt} has no list `rewards` of {len(row['candidates'])}: name a judge in reward_model.path, or score "
            "the file first with python -m rlhf.score."
        )
    try:
        return [to_number(reward, "rewards") for reward in rewards]
    except DataError as error:
        raise DataError(f"{prompt}: {error} Mend that line, or name a judge in reward_model.path.") from None


def table(found: dict[str, Any]) -> str:
    """The figures as text."""

    def show(figure: dict[str, float] | None) -> str:
        return "–" if figure is None else f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    lines = [f"{found['prompts']} prompts, {found['responses']} responses, {found['responses_left_out']} left out"]
    lines += [f"{name.replace('_', ' '):<30}{show(found[name])}" for name in ("pair_agreement", "best_worst_agreement")]
    lines += [f"quality of the {name:<15}{show(figure)}" for name, figure in found["quality"].items()]
    gain = found["gain"]
    lines.append(f"{'gain over random, oracle = 1':<30}{'–' if gain is None else f'{gain:.3f}'}")
    for name in ("score_length_correlation", "quality_length_correlation"):
        both = {key: "–" if value is None else f"{value:+.3f}" for key, value in found[name].items()}
        lines.append(f"{name.replace('_', ' '):<30}{both['over_all']} over all, {both['within']} within prompts")
    return "\n".join(lines)


if __name__ == "__main__":
    main(bestofn, "tool", BestOfNTool)
