"""What runs of `experiment=smollm2` have brought, as Markdown.

    python scripts/experiments/smollm2.py runs/smollm2 [runs/other …]

For each run: strict gold of all policies, on the kinds of instructions that are trained on and on those held
out, with a 95 % interval over prompts of what the last policy and the run's best have gained over π0, and the
same where a response that was cut at the limit of tokens counts as failed; judges, KL, length, how much is
repeated and refused, at T = 1 and greedily (the texts stand in the report); and gold by kind of instruction.
Nothing in the runs is changed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlhf.data.shards import read_all_rows  # noqa: E402
from rlhf.evaluation.diversity import distinct_n  # noqa: E402
from rlhf.evaluation.judge_quality import figure  # noqa: E402
from rlhf.run.output import prepare_output, show  # noqa: E402
from rlhf.world.instructions import instructions_of, passed, words  # noqa: E402

REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry|sorry|i apologi[sz]e|i (?:can['’]?t|cannot|am (?:not able|unable))|as an ai|"
    r"unfortunately)\b",
    re.IGNORECASE,
)
"""How a response begins that refuses to answer."""

Row = dict[str, Any]
"""Of one held-out prompt: `messages`, `texts`, and `ended`, whether each text came to its end."""


def policies_of(run: Path) -> list[Path]:
    """The candidates of the finished evaluations, π0's first."""
    found = []
    for gold in sorted(run.glob("iteration_*/held_out/gold")):
        found.append(gold.with_name("generate"))
    return found


def rows_of(candidates: Path) -> list[Row]:
    """Held-out prompts with the texts of one policy."""
    rows = []
    of_candidates = ["text", "finish_reason"]
    columns = [f"candidates.list.element.{name}" for name in of_candidates]
    for row in read_all_rows(candidates, ["messages", *columns]):
        texts = [candidate["text"] for candidate in row["candidates"]]
        ended = [candidate["finish_reason"] != "length" for candidate in row["candidates"]]
        rows.append({"messages": row["messages"], "texts": texts, "ended": ended})
    return rows


def is_held_out(row: Row) -> bool:
    """Whether the prompt's kinds of instructions are not trained on."""
    return any(instruction.kind.is_held_out for instruction in instructions_of(row["messages"]))


def share_passed(row: Row) -> float:
    """The share of a prompt's responses that follow all its instructions."""
    return fmean(passed(row["messages"], text) for text in row["texts"])


def share_passed_and_ended(row: Row) -> float:
    """The same where a response that was cut counts as failed: "at least 30 words" is easy without an end."""
    shares = []
    for text, has_ended in zip(row["texts"], row["ended"], strict=True):
        shares.append(passed(row["messages"], text) if has_ended else 0.0)
    return fmean(shares)


def change(before: Sequence[float], after: Sequence[float]) -> str:
    """Two means and their difference with its 95 % interval over prompts."""
    changes = []
    for old, new in zip(before, after, strict=True):
        changes.append(100 * (new - old))
    points = figure(changes)
    assert points is not None, "there are prompts"
    mean, low, high = points["mean"], points["low"], points["high"]
    return f"{fmean(before):.3f} → {fmean(after):.3f}, {mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def sense(texts: Sequence[str]) -> str:
    """How long texts are, how much they repeat, and how many refuse."""
    figures = {
        "words": fmean(len(words(text)) for text in texts),
        "distinct-1": distinct_n(texts, 1),
        "distinct-2": distinct_n(texts, 2),
        "refusals": fmean(bool(REFUSAL.match(text)) for text in texts),
        "empty": fmean(not text.strip() for text in texts),
    }
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def by_kind(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """A line for each kind of instruction: how often it was followed, alone or among others."""
    found: dict[str, tuple[list[bool], list[bool]]] = {}
    for place, rows in enumerate((before, after)):
        for row in rows:
            for instruction in instructions_of(row["messages"]):
                sides = found.setdefault(instruction.kind.name, ([], []))
                sides[place].extend(instruction.grade(text) == 1 for text in row["texts"])
    lines = ["| kind | responses | π0 | last |", "|---|---|---|---|"]
    for name, (first, last) in sorted(found.items()):
        lines.append(f"| {name} | {len(first)} | {fmean(first):.2f} | {fmean(last):.2f} |")
    return lines


def told_of(run: Path) -> list[str]:
    """The figures of one run."""
    all_rows = [rows_of(candidates) for candidates in policies_of(run)]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    best = [row["iteration"] for row in summary["iterations"]].index(summary["best_iteration"])
    lines = [f"## {run.name}", ""]
    sets: dict[str, Callable[[Row], bool]] = {
        "kinds trained on": lambda row: not is_held_out(row),
        "kinds held out": is_held_out,
    }
    for name, belongs in sets.items():
        for judged, share_of in (("", share_passed), (", and ended", share_passed_and_ended)):
            shares = []
            for rows in all_rows:
                shares.append([share_of(row) for row in rows if belongs(row)])
            if len(shares[0]) < 2:
                continue
            path = " → ".join(f"{fmean(share):.3f}" for share in shares)
            lines.append(f"- {name}{judged} ({len(shares[0])} prompts): {path}")
            lines.append(f"  - the last: {change(shares[0], shares[-1])}")
            lines.append(f"  - the best, π{summary['best_iteration']}: {change(shares[0], shares[best])}")
    for row in summary["iterations"]:
        told = [f"score {row['mean_score']:.3f}", f"KL {row['kl']:.2f}"]
        told += [f"tokens {row['mean_response_tokens']:.1f}", f"cut {100 * row['truncated']:.0f} %"]
        for name, judge in row["judges"].items():
            told.append(f"{name} {judge['mean_score']:+.3f}")
            if judge["win_rate"] is not None:
                interval = f"[{judge['win_rate_low']:.3f}, {judge['win_rate_high']:.3f}]"
                told.append(f"win rate {judge['win_rate']:.3f} {interval}")
        lines.append(f"- π{row['iteration']}: {', '.join(told)}")
    for place, rows in enumerate(all_rows):
        texts = [text for row in rows for text in row["texts"]]
        lines.append(f"- π{place} at T = 1: {sense(texts)}")
    lines += told_of_greedy(run)
    return [*lines, "", *by_kind(all_rows[0], all_rows[-1]), ""]


def told_of_greedy(run: Path) -> list[str]:
    """The figures of the answers at temperature 0, where the run has some (`evaluate.greedy`)."""
    lines = []
    for place, folder in enumerate(sorted(run.glob("iteration_*/held_out/greedy"))):
        rows = rows_of(folder)
        gold = fmean(share_passed(row) for row in rows)
        texts = [row["texts"][0] for row in rows]
        lines.append(f"- π{place}, greedy, {len(rows)} prompts: gold {gold:.3f}, {sense(texts)}")
    return lines


def main(runs: list[str]) -> int:
    """Say what the runs have brought."""
    if not runs:
        show(str(__doc__), error=True)
        return 2
    prepare_output()  # `| head` ends it in peace
    for run in runs:
        show("\n".join(told_of(Path(run).expanduser())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
