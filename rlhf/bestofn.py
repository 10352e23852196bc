"""Is a judge good enough to pick pairs?

`python -m rlhf.bestofn reward_model.path=… input=….jsonl output=….json`

Each line of the input holds `prompt`, `responses`, and `qualities`: what each response is really worth, by
people or a much stronger judge. Without `reward_model.path` the line's own `rewards` are judged, those of
`python -m rlhf.score`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.command.file_tool import read_input, write_file
from rlhf.command.line import main
from rlhf.config.tools import BestOfNTool
from rlhf.data.responses import Form, to_number
from rlhf.data.shards import read_all_rows
from rlhf.errors import DataError
from rlhf.evaluation.judge_quality import Judged, best_of_n
from rlhf.loop.judges import scores_of
from rlhf.run.artifact import Artifact
from rlhf.run.output import show
from rlhf.run.plan import Run


def bestofn(tool: BestOfNTool) -> None:
    """From responses of known quality to what the judge's choices are worth."""

    # Without a judge nothing is scored: the arithmetic is done on the rewards that the rows bring.
    def make(run: Run) -> list[Artifact]:
        responses = read_input(run, tool, "qualities")
        judge = tool.reward_model
        if not judge.path and not judge.rule:
            return [responses]
        scores = scores_of(run, responses.part("candidates"))
        return [responses, scores]

    write_file(tool, make, result, Form.object)
    # Read back: after a resumed run, too, the table shows what is in the file.
    output = Path(tool.output).expanduser()
    show(table(json.loads(output.read_text(encoding="utf-8"))))


def result(artifacts: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The one object that is written; responses without a finite score and quality are only counted."""
    # In memory, since intervals and correlations need all of them: three numbers for each response.
    prompts = []
    left_out = 0
    for row, scores, qualities in _judged_rows(artifacts):
        judged = _finite(row, scores, qualities)
        left_out += len(scores) - len(judged.scores)
        if judged.scores:
            prompts.append(judged)
    if not prompts:
        raise DataError(
            f"None of {left_out} responses has a finite score and quality. Look at `qualities` and the judge."
        )
    yield best_of_n(prompts) | {"responses_left_out": left_out}


def _judged_rows(artifacts: Sequence[Artifact]) -> Iterator[tuple[dict[str, Any], list[float], list[float]]]:
    """Each row of candidates with the judge's scores and the known qualities of its responses.

    Args:
        artifacts: what was read, and a named judge's scores; without them the row's own rewards count.
    """
    responses, *judge_scores = artifacts
    rows = read_all_rows(responses.path / "candidates")
    # The stage `read` writes the numbers of a row as `scores`: here they are its qualities.
    known_rows = read_all_rows(responses.path / "scores")
    if not judge_scores:
        for row, known in zip(rows, known_rows, strict=True):
            yield row, own_rewards(row), known["scores"]
        return
    scored_rows = read_all_rows(judge_scores[0].path)
    for row, known, scored in zip(rows, known_rows, scored_rows, strict=True):
        yield row, scored["scores"], known["scores"]


def _finite(row: Mapping[str, Any], scores: Sequence[float], qualities: Sequence[float]) -> Judged:
    """The responses of a prompt whose score and quality are both finite."""
    finite_scores = []
    finite_qualities = []
    lengths = []
    for candidate, score, quality in zip(row["candidates"], scores, qualities, strict=True):
        # A judge's NaN would win or lose every comparison by the order they happen to be made in.
        if math.isfinite(score) and math.isfinite(quality):
            finite_scores.append(score)
            finite_qualities.append(quality)
            lengths.append(len(candidate["text"]))
    return Judged(finite_scores, finite_qualities, lengths)


def own_rewards(row: Mapping[str, Any]) -> list[float]:
    """The `rewards` that a line brought along.

    Raises:
        DataError: it has none, or not one for each response.

    Example:
        {"messages": [{"role": "user", "content": "Hi"}], "candidates": [{"text": "Yo.", …}],
        "extra": '{"rewards": [1.5]}', …} gives [1.5]
    """
    rewards = json.loads(row["extra"]).get("rewards")
    last_turn = row["messages"][-1]["content"]
    prompt = f"The prompt {last_turn!r:.80}"
    num_responses = len(row["candidates"])
    if not isinstance(rewards, list) or len(rewards) != num_responses:
        raise DataError(
            f"{prompt} has no list `rewards` of {num_responses}: name a judge in reward_model.path, or score "
            "the file first with python -m rlhf.score."
        )
    try:
        return [to_number(reward, "rewards") for reward in rewards]
    except DataError as error:
        raise DataError(f"{prompt}: {error} Mend that line, or name a judge in reward_model.path.") from None


def table(figures: Mapping[str, Any]) -> str:
    """What `rlhf.evaluation.judge_quality.best_of_n` found, as text."""
    # A dash stands for what could not be measured: all qualities equal, say, or one response to each prompt.
    num_prompts = figures["prompts"]
    num_responses = figures["responses"]
    left_out = figures["responses_left_out"]
    lines = [f"{num_prompts} prompts, {num_responses} responses, {left_out} left out"]
    for name in ("pair_agreement", "best_worst_agreement"):
        lines.append(_line(name.replace("_", " "), _interval(figures[name])))
    for name, figure in figures["quality"].items():
        lines.append(_line(f"quality of the {name}", _interval(figure)))
    gain = _number(figures["gain"], ".3f")
    lines.append(_line("gain over random, oracle = 1", gain))
    for name in ("score_length_correlation", "quality_length_correlation"):
        over_all = _number(figures[name]["over_all"], "+.3f")
        within = _number(figures[name]["within"], "+.3f")
        text = f"{over_all} over all, {within} within prompts"
        lines.append(_line(name.replace("_", " "), text))
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name:<30}{text}"


def _interval(figure: Mapping[str, float] | None) -> str:
    """A mean with the bounds of its 95 % interval, as "0.650 [0.575, 0.725]"."""
    if figure is None:
        return "–"
    mean = figure["mean"]
    low = figure["low"]
    high = figure["high"]
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float | None, spec: str) -> str:
    if value is None:
        return "–"
    return format(value, spec)


if __name__ == "__main__":
    main(bestofn, "tool", BestOfNTool)
