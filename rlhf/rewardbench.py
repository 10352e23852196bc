"""RewardBench of a judge: `python -m rlhf.rewardbench reward_model.path=… output=report.json`.

Without `input` the benchmark's own data set is fetched from the Hub. `subsets=FILE.json` does the arithmetic alone,
from accuracies in percent per subset. The output holds the sections with today's weights (`current`) and with those
before 2024-09-10 (`legacy`), accuracies per subset, and both scores of every row. `version=2` is RewardBench 2, whose
output holds the overall score, that of each subset, and all scores of every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf.command.file_tool import ROWS_PER_SHARD, check_output, write_file
from rlhf.command.line import main
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import RewardBenchTool, Version
from rlhf.data.files import resolved
from rlhf.data.responses import Form
from rlhf.data.shards import read_all_rows, write_atomic
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation import rewardbench2
from rlhf.evaluation.rewardbench1 import PRIOR_SETS, PUBLISHED, SECTIONS, accuracy, report
from rlhf.loop.judges import scores_of
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

_DATA = {Version.v1: "allenai/reward-bench:filtered", Version.v2: "allenai/reward-bench-2:test"}
_KNOWN = {name for section in SECTIONS.values() for name in section} | set(PRIOR_SETS)


def rewardbench(tool: RewardBenchTool) -> None:
    """Score the comparisons, or take given accuracies, and add the sections up."""
    second = tool.version is Version.v2
    if tool.subsets is not None:
        if second:
            raise ConfigError(f"subsets={tool.subsets}: adds up version 1. Leave version=2 out, or subsets.")
        output = resolved(tool.output, "output")
        check_output(output, ".json")
        found = report(read_accuracies(resolved(tool.subsets, "subsets")))
        write_atomic(output, (json.dumps(found, indent=1) + "\n").encode())
        print(table(found), flush=True)
        return

    def make(run: Run) -> list[Artifact]:
        file = sources.data_file(run, tool.input or _DATA[tool.version], "input")
        what = "best_of_n" if second else "comparisons"
        read = run.stage("read", "read", ReadStage(what, ROWS_PER_SHARD), {"file": file})
        return [read, scores_of(run, read.part("candidates"))]

    write_file(tool, make, result2 if second else result, Form.object)
    found = json.loads(Path(tool.output).expanduser().read_text(encoding="utf-8"))
    print(table2(found) if second else table(found), flush=True)


def read_accuracies(path: Path) -> dict[str, Any]:
    """`{subset: percent}` of a JSON file.

    Raises:
        DataError: there is no such file, or something else is in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"subsets={path}: cannot be read ({error}). It must hold {{subset: percent, …}}.") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f"subsets={path}: must hold an object {{subset: percent, …}} with one subset at least.")
    return found


def result(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The one object that is written."""
    rows = [about | dict(zip(("chosen", "rejected"), scores, strict=True)) for about, scores in _scored(made)]
    subsets = {
        name: _subset([row for row in rows if row["subset"] == name]) for name in sorted({r["subset"] for r in rows})
    }
    known = {name: figures["accuracy"] for name, figures in subsets.items() if name in _KNOWN}
    yield report(known) | {"subsets": subsets, "rows": rows}


def result2(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """As `result`, of version 2."""
    rows = [about | {"scores": scores} for about, scores in _scored(made)]
    yield rewardbench2.report(rows) | {"rows": rows}


def _scored(made: Sequence[Artifact]) -> Iterator[tuple[dict[str, Any], list[float | None]]]:
    """What is known of each row and its scores, None for one that is not finite."""
    read, scores = made
    pairs = zip(read_all_rows(read.path / "candidates", ["id", "extra"]), read_all_rows(scores.path), strict=True)
    for row, scored in pairs:
        assert row["id"] == scored["id"], "scores and rows are out of step"
        yield json.loads(row["extra"]), [score if math.isfinite(score) else None for score in scored["scores"]]


def _subset(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [tuple(math.nan if row[side] is None else row[side] for side in ("chosen", "rejected")) for row in rows]
    pairs = [(chosen, rejected) for chosen, rejected in scores]
    return {
        "rows": len(rows),
        "accuracy": accuracy(pairs),
        "accuracy_half_credit": accuracy(pairs, half_credit=True),
        "ties": sum(chosen == rejected for chosen, rejected in pairs),
        "non_finite": sum(not (math.isfinite(chosen) and math.isfinite(rejected)) for chosen, rejected in pairs),
    }


def table(found: dict[str, Any]) -> str:
    """The sections beside published rows, and the subsets, as text."""
    lines = [f"{'percent':<38}" + "".join(f"{section:>11}" for section in SECTIONS) + f"{'mean':>11}"]
    rows: dict[str, dict[str, float | None]] = {
        "this judge (current weights)": found["current"] | {"mean": found["overall"]["current"]},
        "this judge (legacy weights)": found["legacy"] | {"mean": found["overall"]["legacy"]},
        **PUBLISHED,
    }
    for name, row in rows.items():
        values = [row.get(column) for column in (*SECTIONS, "mean")]
        lines.append(f"{name:<38}" + "".join(f"{'–' if value is None else f'{value:.2f}':>11}" for value in values))
    return "\n".join([*lines, *_subset_lines(found.get("subsets", {}), "accuracy")])


def table2(found: dict[str, Any]) -> str:
    """The subsets and their mean, as text."""
    overall = "–" if found["overall"] is None else f"{found['overall']:.2f}"
    lines = _subset_lines(found["subsets"], "score")
    return "\n".join(["percent", *lines, f"  {'mean of the six subsets':<28}{overall:>8}"])


def _subset_lines(subsets: dict[str, Any], key: str) -> Iterator[str]:
    for name, figures in subsets.items():
        ties = f", {figures['ties']} ties" if figures.get("ties") else ""
        value = "–" if figures[key] is None else f"{figures[key]:.2f}"
        yield f"  {name:<28}{value:>8}  of {figures['rows']} rows{ties}"


if __name__ == "__main__":
    main(rewardbench, "tool", RewardBenchTool)
