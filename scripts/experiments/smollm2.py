"""What runs of `experiment=smollm2` have brought, as Markdown.

    python scripts/experiments/smollm2.py runs/smollm2 [runs/other …] [greedy=30] [out=greedy.md]

For each run: strict gold of π0 and the last policy, on the kinds of instructions that are trained on and on
those held out, with a 95 % interval of the difference over prompts; then judges, KL, length and how much is
repeated and refused. `greedy=N` also lets π0 and the last policy answer N held-out prompts greedily
(`rlhf.generate`), and writes them side by side to `RUN.out`. Nothing in the runs is changed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.data.shards import read_all_rows  # noqa: E402
from rlhf.evaluation.judge_quality import figure  # noqa: E402
from rlhf.run.console import show  # noqa: E402
from rlhf.world.instructions import instructions_of, passed, words  # noqa: E402

REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry|sorry|i apologi[sz]e|i (?:can['’]?t|cannot|am (?:not able|unable))|as an ai|"
    r"unfortunately)\b",
    re.IGNORECASE,
)
"""How a response begins that refuses to answer."""

Row = dict[str, Any]
"""Of one held-out prompt: `messages` and `texts`."""


def policies_of(run: Path) -> list[Path]:
    """The folders of the finished evaluations, π0's first."""
    return sorted(run.glob("iteration_*/held_out/gold"))


def rows_of(evaluation: Path) -> list[Row]:
    """Held-out prompts with the texts of one policy."""
    rows = []
    for row in read_all_rows(evaluation.parent / "generate", ["messages", "candidates.list.element.text"]):
        texts = [candidate["text"] for candidate in row["candidates"]]
        rows.append({"messages": row["messages"], "texts": texts})
    return rows


def is_held_out(row: Row) -> bool:
    """Whether the prompt's kinds of instructions are not trained on."""
    return any(instruction.kind.is_held_out for instruction in instructions_of(row["messages"]))


def share_passed(row: Row) -> float:
    """The share of a prompt's responses that follow all its instructions."""
    return fmean(passed(row["messages"], text) for text in row["texts"])


def change(before: Sequence[float], after: Sequence[float]) -> str:
    """Two means and their difference with its 95 % interval over prompts."""
    changes = []
    for old, new in zip(before, after, strict=True):
        changes.append(100 * (new - old))
    points = figure(changes)
    assert points is not None, "there are prompts"
    mean, low, high = points["mean"], points["low"], points["high"]
    return f"{fmean(before):.3f} → {fmean(after):.3f}, {mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams, of all texts together; 0 of texts without any."""
    grams = []
    for text in texts:
        found = [word.casefold() for word in words(text)]
        grams += [tuple(found[place : place + n]) for place in range(len(found) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def sense(texts: Sequence[str]) -> dict[str, float]:
    """How long texts are, how much they repeat, and how many refuse."""
    return {
        "words": fmean(len(words(text)) for text in texts),
        "distinct-1": distinct(texts, 1),
        "distinct-2": distinct(texts, 2),
        "refusals": fmean(bool(REFUSAL.match(text)) for text in texts),
        "empty": fmean(not text.strip() for text in texts),
    }


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
    evaluations = policies_of(run)
    all_rows = [rows_of(evaluation) for evaluation in evaluations]
    lines = [f"## {run.name}", ""]
    sets: dict[str, Callable[[Row], bool]] = {
        "kinds trained on": lambda row: not is_held_out(row),
        "kinds held out": is_held_out,
    }
    for name, belongs in sets.items():
        shares = []
        for rows in all_rows:
            shares.append([share_passed(row) for row in rows if belongs(row)])
        if len(shares[0]) < 2:
            continue
        path = " → ".join(f"{fmean(share):.3f}" for share in shares)
        lines.append(f"- {name} ({len(shares[0])} prompts): {path}; {change(shares[0], shares[-1])}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))["iterations"]
    for row in summary:
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
        figures = ", ".join(f"{name} {value:.3f}" for name, value in sense(texts).items())
        lines.append(f"- π{place} at T = 1: {figures}")
    return [*lines, "", *by_kind(all_rows[0], all_rows[-1]), ""]


def answered_greedily(model: Path, dtype: str, rows: Sequence[Row], output: Path) -> list[str]:
    """The greedy answers of a model to the prompts of some rows, by `rlhf.generate`."""
    asked = output.with_suffix(".prompts.jsonl")
    asked.write_text(
        "".join(json_text({"messages": row["messages"]}) + "\n" for row in rows), encoding="utf-8"
    )
    if not output.exists():
        settings = ["n=1", "temperatures=[0]", "max_new_tokens=128"]
        command = [sys.executable, "-m", "rlhf.generate", f"model.path={model}", f"model.dtype={dtype}"]
        command += [f"input={asked}", f"output={output}", *(f"generate.{setting}" for setting in settings)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment)
    lines = output.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["responses"][0] for line in lines if line]


def greedy_page(run: Path, number: int, out: Path) -> list[str]:
    """Write the greedy answers of π0 and the last policy side by side; returns what to say of them."""
    evaluations = policies_of(run)
    rows = rows_of(evaluations[0])
    held_out = [row for row in rows if is_held_out(row)][: number // 3]
    seen = [row for row in rows if not is_held_out(row)][: number - len(held_out)]
    rows = [*seen, *held_out]
    told = json.loads((run / "iteration_001" / "generate" / "artifact.json").read_text(encoding="utf-8"))
    last = int(evaluations[-1].parents[1].name.removeprefix("iteration_"))
    models = {"π0": Path(told_model(run)), f"π{last}": run / f"iteration_{last:03d}" / "dpo" / "model"}
    answers = {}
    for place, (name, model) in enumerate(models.items()):
        output = out.with_suffix(f".{place}.jsonl")
        answers[name] = answered_greedily(model, told["config"]["dtype"], rows, output)
    lines = []
    for place, row in enumerate(rows):
        lines += [
            f"### {place + 1}",
            "",
            *(f"> {line}" for line in row["messages"][-1]["content"].split("\n")),
        ]
        for name, texts in answers.items():
            mark = "followed" if passed(row["messages"], texts[place]) else "not followed"
            lines += ["", f"{name} ({mark}):", "", "```", texts[place], "```"]
        lines.append("")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = []
    for name, texts in answers.items():
        share = fmean(passed(row["messages"], text) for row, text in zip(rows, texts, strict=True))
        figures = ", ".join(f"{key} {value:.3f}" for key, value in sense(texts).items())
        said.append(f"- {name}, greedy, {len(rows)} prompts: gold {share:.3f}, {figures}")
    return said


def told_model(run: Path) -> str:
    """The path of π0, as the run was told it."""
    from omegaconf import OmegaConf

    cfg: Any = OmegaConf.load(run / "config.yaml")
    return str(cfg.model.path)


def main(arguments: list[str]) -> int:
    """Say what the runs have brought."""
    values = {"greedy": "0", "out": "greedy.md"}
    runs = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in values:
            values[key] = value
        else:
            runs.append(Path(argument).expanduser())
    if not runs or not values["greedy"].isdecimal():
        show(str(__doc__), error=True)
        return 2
    for run in runs:
        show("\n".join(told_of(run)))
        if int(values["greedy"]):
            out = Path(values["out"])
            show("\n".join(greedy_page(run, int(values["greedy"]), out.with_name(f"{run.name}.{out.name}"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
