"""Write the tables of docs/performance.md: `python -m benchmarks.document [--check]`.

One is of what was measured (`benchmarks/results/latest.json`), one of what the full recipe costs on paper
(`rlhf.plan`). Each stands between two marks, and nothing else of the page is touched. With `--check` nothing
is written, and the exit code is 1 where the page has other tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS
from rlhf.config.schema import Config
from rlhf.preflight.devices import named_machine
from rlhf.preflight.forecast import Forecast, forecast_of
from rlhf.run.stopwatch import duration

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MEASURED = "measured"
PLANNED = "planned"
_NOT_MEASURED = "Not measured yet: `make bench` measures, and `python -m benchmarks.document` writes it here."
_HARDWARE = ("8xA100", "8xH100")
_STAGES = ("generate", "score", "pair", "reference", "dpo", "held_out")


def measured_table(results: dict[str, Any] | None) -> str:
    """What was measured, as Markdown: on what, a row for each claim, and what was tried for a miss.

    Args:
        results: what `latest.json` holds; None where nothing was measured.
    """
    if results is None:
        return _NOT_MEASURED
    machine = results["machine"]
    lines = [
        f"{machine['cores']} cores of {machine['processor']}; {_when(results['rows'])}.",
        "",
        "| claim | reached | bar | met | unit | how |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append("| " + " | ".join(_cells(row)) + " |")
    for row in results["rows"]:
        if row.get("attempts"):
            lines += ["", f"Tried for {_plain(row['name'])}: {_plain('; '.join(row['attempts']))}."]
    return "\n".join(lines)


def _when(rows: list[dict[str, Any]]) -> str:
    """Days, repetitions, and how busy the machine was when each topic began.

    Example:
        "2026-11-27, medians of 5 runs, load 0.2 to 1.9"
    """
    dates = sorted({row["date"] for row in rows})
    runs = " or ".join(str(number) for number in sorted({row["runs"] for row in rows}))
    loads = [row["load"] for row in rows]
    return f"{' to '.join(dates)}, medians of {runs} runs, load {min(loads)} to {max(loads)}"


def _cells(row: dict[str, Any]) -> list[str]:
    if row["reached"] is None:
        # Why is in the file; a traceback makes no cell.
        return [_plain(row["name"]), "failed", "–", "**no**", "", ""]
    sign = "≤" if row.get("lower_is_better") else "≥"
    return [
        _plain(row["name"]),
        f"{row['reached']:.2f}",
        f"{sign} {row['bar']:g}",
        "yes" if row["met"] else "**no**",
        _plain(row["unit"]),
        _plain(row.get("detail", "")),
    ]


def _plain(text: str) -> str:
    """A text as it fits into a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def planned_table() -> str:
    """What the defaults, the full recipe's, cost on two machines: an iteration by stage, and all."""
    plans = [forecast_of(Config(), named_machine(hardware)) for hardware in _HARDWARE]
    heads = ["stage"]
    for plan in plans:
        heads += [f"{plan.machine.name}: floor", "planned", "GPU hours"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for stage in (*_STAGES, "one iteration", "the whole run"):
        cells = [stage]
        for plan in plans:
            cells += _sums(plan, stage)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sums(plan: Forecast, stage: str) -> list[str]:
    """Floor, planned time and GPU hours of a stage in iteration 1, of all of it, or of the whole run."""
    times = []
    for each in plan.stages:
        step, _, rest = each.name.partition("/")
        in_iteration = step == "iteration_001" and stage in (rest.partition("/")[0], "one iteration")
        if in_iteration or stage == "the whole run":
            times.append(each.time)
    planned = sum(time.planned for time in times)
    floor = sum(time.floor for time in times)
    return [duration(floor), duration(planned), f"{planned / 3600 * plan.machine.num_devices:.1f}"]


def documented(page: str, results: dict[str, Any] | None) -> str:
    """The page with both tables between their marks.

    Raises:
        ValueError: it lacks one of the marks.
    """
    for name, table in ((MEASURED, measured_table(results)), (PLANNED, planned_table())):
        begin = f"<!-- {name}: written by python -m benchmarks.document -->"
        end = f"<!-- {name}: end -->"
        before, found, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"{PAGE}: has no {begin} … {end}")
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


def latest() -> dict[str, Any] | None:
    """What was measured last; None where nothing was."""
    if not RESULTS.is_file():
        return None
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def main(words: list[str]) -> int:
    """Write the page, or with `--check` say whether it has to be."""
    if words not in ([], ["--check"]):
        sys.exit(f"error: {' '.join(words)}: the only option is --check.")
    page = PAGE.read_text(encoding="utf-8")
    wanted = documented(page, latest())
    if words:
        print("the tables are up to date" if page == wanted else "run python -m benchmarks.document")
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"{PAGE}: {'as it was' if page == wanted else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
