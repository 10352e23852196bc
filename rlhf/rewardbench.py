"""RewardBench of a judge: `python -m rlhf.rewardbench reward_model.path=… output=report.json`.

Without `input` the benchmark's own data set is fetched from the Hub. `subsets=FILE.json` does the
arithmetic alone, from accuracies per subset, all in percent or all fractions. The output holds the sections
with today's weights (`current`) and with those before 2024-09-10 (`legacy`), accuracies per subset, and both
scores of every row. `version=2` is RewardBench 2, whose output holds the overall score, that of each subset,
and all scores of every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.command.file_tool import check_output, read_input, write_file
from rlhf.command.line import main
from rlhf.config.tools import RewardBenchTool, Version
from rlhf.data.files import resolved
from rlhf.data.json_text import json_text
from rlhf.data.responses import Form
from rlhf.data.shards import read_all_rows, write_atomic
from rlhf.errors import ConfigError, DataError, one_line
from rlhf.evaluation import rewardbench2
from rlhf.evaluation.rewardbench1 import PRIOR_SETS, PUBLISHED, SECTIONS, accuracy, are_fractions, report
from rlhf.loop.judges import scores_of
from rlhf.run.artifact import Artifact
from rlhf.run.output import show
from rlhf.run.plan import Run

Row = dict[str, Any]
"""`{"id": 30, "subset": "alpacaeval-easy", …}`, and the scores of its responses once they are known."""

_DATA = {Version.v1: "allenai/reward-bench:filtered", Version.v2: "allenai/reward-bench-2:test"}
_KNOWN = {name for section in SECTIONS.values() for name in section} | set(PRIOR_SETS)


def rewardbench(tool: RewardBenchTool) -> None:
    """Score the comparisons, or take given accuracies, and add the sections up."""
    is_v2 = tool.version is Version.v2
    if tool.subsets is not None:
        if is_v2:
            raise ConfigError(f"subsets={tool.subsets}: adds up version 1. Leave version=2 out, or subsets.")
        _add_up(tool.subsets, resolved(tool.output, "output"))
        return

    def make(run: Run) -> list[Artifact]:
        # Without an input, the benchmark's own data.
        tool.input = tool.input or _DATA[tool.version]
        what = "best_of_n" if is_v2 else "comparisons"
        rows = read_input(run, tool, what)
        scores = scores_of(run, rows.part("candidates"))
        return [rows, scores]

    write_file(tool, make, result_v2 if is_v2 else result_v1, Form.object)
    # Read back: what is shown is what is in the file.
    output = Path(tool.output).expanduser()
    figures = json.loads(output.read_text(encoding="utf-8"))
    text = table_v2(figures) if is_v2 else table_v1(figures)
    show(text)


def _add_up(subsets: str, output: Path) -> None:
    """Version 1's arithmetic alone: nothing runs, so there is no work folder to go on from."""
    check_output(output, ".json")
    accuracies = read_accuracies(resolved(subsets, "subsets"))
    if are_fractions(accuracies):
        show(f"subsets={subsets}: no value is above 1, so they are read as fractions")
        accuracies = {name: 100 * value for name, value in accuracies.items()}
    figures = report(accuracies)
    text = json_text(figures, indent=1) + "\n"
    write_atomic(output, text.encode())
    show(table_v1(figures))


def read_accuracies(path: Path) -> dict[str, Any]:
    """`{subset: accuracy}` of a JSON file.

    Raises:
        DataError: there is no such file, or something else is in it.

    Example:
        {"alpacaeval-easy": 98.0, "donotanswer": 79.4}
    """
    try:
        accuracies = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"subsets={path}: cannot be read ({error}). It must hold {{subset: accuracy, …}}."
        ) from error
    if not isinstance(accuracies, dict) or not accuracies:
        raise DataError(
            f"subsets={path}: must hold an object {{subset: accuracy, …}} with one subset at least."
        )
    return accuracies


def result_v1(artifacts: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The one object that is written."""
    rows = []
    rows_of_subset: dict[str, list[Row]] = {}
    for about, (chosen, rejected) in _scored_rows(artifacts):
        row = about | {"chosen": chosen, "rejected": rejected}
        rows.append(row)
        rows_of_subset.setdefault(row["subset"], []).append(row)
    subsets = {}
    accuracies = {}
    for name in sorted(rows_of_subset):
        subsets[name] = _subset(rows_of_subset[name])
        # Subsets of the user's own are shown, and are in no section.
        if name in _KNOWN:
            accuracies[name] = subsets[name]["accuracy"]
    yield report(accuracies) | {"subsets": subsets, "rows": rows}


def result_v2(artifacts: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """As `result_v1`, of version 2."""
    rows = []
    for about, scores in _scored_rows(artifacts):
        rows.append(about | {"scores": scores})
    yield rewardbench2.report(rows) | {"rows": rows}


def _scored_rows(artifacts: Sequence[Artifact]) -> Iterator[tuple[Row, list[float | None]]]:
    """What is known of each row and its scores, None for one that is not finite.

    Example:
        ({"id": 30, "subset": "alpacaeval-easy"}, [1.5, -0.3])
    """
    read, judged = artifacts
    # Two columns: the texts were for the judge, and are not needed again.
    rows = read_all_rows(read.path / "candidates", ["id", "extra"])
    for row, scored in zip(rows, read_all_rows(judged.path), strict=True):
        assert row["id"] == scored["id"], "scores and rows are out of step"
        about = json.loads(row["extra"])
        scores = []
        for score in scored["scores"]:
            # JSON has no NaN.
            scores.append(score if math.isfinite(score) else None)
        yield about, scores


def _subset(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of the rows of one subset.

    Example:
        [{"id": 30, "subset": "mine", "chosen": 1.5, "rejected": -0.3}] gives
        {"rows": 1, "accuracy": 100.0, "accuracy_half_credit": 100.0, "ties": 0, "non_finite": 0}
    """
    pairs = []
    ties = 0
    non_finite = 0
    for row in rows:
        chosen = _or_nan(row["chosen"])
        rejected = _or_nan(row["rejected"])
        pairs.append((chosen, rejected))
        if chosen == rejected:
            ties += 1
        if not math.isfinite(chosen) or not math.isfinite(rejected):
            non_finite += 1
    return {
        "rows": len(rows),
        "accuracy": accuracy(pairs),
        # A tie counts nothing in the benchmark; a half is what chance would give it.
        "accuracy_half_credit": accuracy(pairs, half_credit=True),
        "ties": ties,
        "non_finite": non_finite,
    }


def _or_nan(score: float | None) -> float:
    if score is None:
        return math.nan
    return score


def table_v1(figures: Mapping[str, Any]) -> str:
    """The sections beside published rows, and the subsets, as text."""
    columns = (*SECTIONS, "mean")
    titles = "".join(f"{column:>11}" for column in columns)
    lines = [f"{'percent':<38}{titles}"]
    overall = figures["overall"]
    rows: dict[str, dict[str, float | None]] = {
        "this judge (current weights)": figures["current"] | {"mean": overall["current"]},
        "this judge (legacy weights)": figures["legacy"] | {"mean": overall["legacy"]},
        **PUBLISHED,
    }
    for name, row in rows.items():
        # Published rows have no mean of their own.
        values = "".join(f"{_percent(row.get(column)):>11}" for column in columns)
        lines.append(f"{name:<38}{values}")
    # Given accuracies are all there is: no rows, and so no subsets to show.
    lines += _subset_lines(figures.get("subsets", {}), "accuracy")
    return "\n".join(lines)


def table_v2(figures: Mapping[str, Any]) -> str:
    """The subsets and their mean, as text."""
    mean = _percent(figures["overall"])
    lines = ["percent"]
    lines += _subset_lines(figures["subsets"], "score")
    lines.append(f"  {'mean of the six subsets':<28}{mean:>8}")
    return "\n".join(lines)


def _subset_lines(subsets: Mapping[str, Any], key: str) -> Iterator[str]:
    for name, figures in subsets.items():
        value = _percent(figures[key])
        num_rows = figures["rows"]
        line = f"  {one_line(name):<28}{value:>8}  of {num_rows} rows"
        # Version 2 has ties of its own kind, and counts none here.
        num_ties = figures.get("ties")
        if num_ties:
            line += f", {num_ties} ties"
        yield line


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}"


if __name__ == "__main__":
    main(rewardbench, "tool", RewardBenchTool)
