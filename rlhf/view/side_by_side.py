"""Runs side by side: what differs, what came out, who wins against whom, and which policies are on the front.

Docs: docs/comparing.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlhf.errors import ConfigError
from rlhf.loop.figure_text import NOTHING, number, rate, share
from rlhf.loop.figures import Row, distance_text
from rlhf.view.contenders import Contender, contenders_of, judges_of_role, who_text
from rlhf.view.pareto import Front, front_of, front_section
from rlhf.view.same_judge import GOLD, SCORE
from rlhf.view.section import Section
from rlhf.view.settings_table import settings_section
from rlhf.view.several_runs import NamedRun, letter
from rlhf.view.win_rates import win_rate_section


@dataclass(frozen=True)
class Figure:
    """A figure by which runs can be sorted; `best_first` gives a smaller number for a better policy."""

    best_first: Callable[[Row], float | None]
    role: str | None = None
    """Whose scores it is made of; None if of no judge's."""


FIGURES = {
    "score": Figure(lambda row: -row.mean_score, SCORE),
    "gold": Figure(lambda row: None if row.gold_accuracy is None else -row.gold_accuracy, GOLD),
    # A share of comparisons lies on one scale, whoever compares.
    "win_rate": Figure(lambda row: None if row.win_rate is None else -row.win_rate),
    "kl": Figure(lambda row: row.kl),
    "tokens": Figure(lambda row: row.mean_response_tokens),
    "cut": Figure(lambda row: row.truncated),
}


@dataclass
class Comparison:
    """What is shown of several runs, in the order in which they are shown."""

    sections: list[Section]
    front: Front
    runs: list[NamedRun]


def compared_runs(
    runs: Sequence[NamedRun], notes: Sequence[str], iteration: int | None = None, sort: str | None = None
) -> Comparison:
    """Everything that is to be said of several runs.

    Args:
        runs: in the order in which they were named.
        notes: what is to be said of how they were found.
        iteration: the policy that stands for each run; None is its best.
        sort: a name in `FIGURES`; None leaves the order.

    Raises:
        ConfigError: there is no such figure, or its values cannot be compared; no run has that iteration.
    """
    if sort is not None and sort not in FIGURES:
        raise ConfigError(f"sort={sort}: no such figure. Sort by one of {', '.join(FIGURES)}.")
    contenders = contenders_of(runs, iteration)
    if sort is not None:
        contenders = _sorted(contenders, sort)
    ordered = [contender.run for contender in contenders]
    front = front_of(ordered)
    sections = [
        Section("Runs", ["", "run", "stages"], [], notes=list(notes)),
        settings_section(ordered),
        _figures_section(contenders, front),
        win_rate_section(contenders),
        front_section(front, ordered),
    ]
    for run in ordered:
        _add_run(sections[0], run)
    return Comparison(sections, front, ordered)


def _sorted(contenders: Sequence[Contender], sort: str) -> list[Contender]:
    """Contenders by a figure, the best one first; those without it come last, in the order named."""
    figure = FIGURES[sort]
    if figure.role is not None:
        _require_one_judge(contenders, sort, figure.role)

    def place(contender: Contender) -> float:
        value = None if contender.row is None else figure.best_first(contender.row)
        return math.inf if value is None or math.isnan(value) else value

    lettered = []
    for place_in_table, contender in enumerate(sorted(contenders, key=place)):
        # Letters follow the order that is shown.
        lettered.append(replace(contender, run=replace(contender.run, letter=letter(place_in_table))))
    return lettered


def _require_one_judge(contenders: Sequence[Contender], sort: str, role: str) -> None:
    judges = judges_of_role(contenders, role)
    if len(judges) > 1:
        raise ConfigError(
            f"sort={sort}: the runs have it of different judges, whose scores are not comparable: "
            f"{who_text(judges)}. Sort by win_rate, kl, tokens or cut, or compare runs of one judge."
        )


def _add_run(section: Section, run: NamedRun) -> None:
    """A line of the runs' table, and what is wrong with the run."""
    folder = run.folder
    state = f"{len(folder.artifacts)} finished"
    if folder.unfinished:
        state += f", {len(folder.unfinished)} unfinished"
        section.notes.append(f"{run.letter} is unfinished: {', '.join(folder.unfinished)}")
    if folder.damaged:
        state += f", {len(folder.damaged)} cannot be read"
    for name, reason in folder.damaged.items():
        section.notes.append(f"{run.letter}: {name} is left out: {reason}")
    for name, what in folder.removed.items():
        section.notes.append(f"{run.letter}: {name} is finished, and its figures stand; {what}.")
    if not folder.rows:
        section.notes.append(
            f"{run.letter}: no policy is evaluated (π0 first, then the iterates), so there are no figures."
        )
    section.rows.append([run.letter, run.name, state])


def _figures_section(contenders: Sequence[Contender], front: Front) -> Section:
    """The policy of each run, with its figures."""
    heads = ["", "policy", "score", "gold", "win rate vs own π0 (95 %)", "KL to π0", "tokens", "cut", "front"]
    section = Section("What came out", heads, right=["score", "gold", "KL to π0", "tokens", "cut"])
    for contender in contenders:
        row = contender.row
        if row is None:
            section.rows.append([contender.letter, *[NOTHING] * (len(heads) - 1)])
            continue
        cells = [contender.letter, f"π{row.iteration}", number(row.mean_score, "+.3f")]
        cells.append(number(row.gold_accuracy, ".3f"))
        cells.append(rate(row.win_rate, row.win_rate_low, row.win_rate_high))
        cells.append(number(row.kl, ".2f"))
        cells.append(number(row.mean_response_tokens, ".1f"))
        cells.append(share(row.truncated))
        cells.append("★" if (contender.letter, row.iteration) in front.best else "")
        section.rows.append(cells)
    section.notes += _notes_of_figures(contenders)
    return section


def _notes_of_figures(contenders: Sequence[Contender]) -> list[str]:
    """Which of the columns must not be read from top to bottom."""
    notes = []
    roles = [role for role in (SCORE, GOLD) if len(judges_of_role(contenders, role)) > 1]
    if roles:
        notes.append(
            f"{' and '.join(roles)}: not comparable between runs, for it is of different judges (the next "
            "table says which)."
        )
    initial: dict[str, list[str]] = {}
    for contender in contenders:
        row = contender.row
        if row is not None and row.log_ratio is not None:
            notes.append(f"{contender.letter}: {distance_text([row])}: {row.log_ratio:.2f}.")
        if contender.run.folder.evaluations:
            candidates = contender.run.folder.evaluations[0].candidates
            policy = candidates.record["identity"]["inputs"].get("policy", "")
            initial.setdefault(f"π0 {policy[:8]}…", []).append(contender.letter)
        left_out = {} if row is None else row.left_out
        for column, count in left_out.items():
            notes.append(
                f"{contender.letter}: {count} responses have no finite {column}, and it leaves them out."
            )
    if len(initial) > 1:
        notes.append(f"KL and win rate are each run's to its own π0, and those differ: {who_text(initial)}.")
    return notes
