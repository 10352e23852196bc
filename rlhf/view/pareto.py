"""Which policies of several runs are on the front: none other is as good at a smaller distance from π0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.loop.figure_text import number
from rlhf.loop.figures import Row
from rlhf.view.same_judge import GOLD, SCORE, Judged, judged, role_of
from rlhf.view.section import Section
from rlhf.view.several_runs import NamedRun


@dataclass(frozen=True)
class Point:
    """A policy: its KL to π0 in nats per response, and how good it is by the front's figure."""

    letter: str
    iteration: int
    kl: float
    value: float


@dataclass
class Front:
    """All policies that have both figures, and which of them (letter, iteration) are on the front.

    `figure` is what they are compared by, empty where no judge scored all runs; `notes` say why it is this
    one, and what is left out.
    """

    figure: str = ""
    points: list[Point] = field(default_factory=list)
    best: set[tuple[str, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def front_of(runs: Sequence[NamedRun]) -> Front:
    """The front over all policies of all runs, by gold where all have the same, else by a second judge, else
    by the score.
    """
    evaluated = [run for run in runs if run.folder.rows]
    front = Front()
    if not evaluated:
        return front
    role_of = _figure_of_all(evaluated, front)
    if not role_of:
        return front
    left_out = []
    for run in evaluated:
        for row in run.folder.rows:
            value = _value(row, role_of[run.letter])
            # Not the log-ratio of other samples, which may stand in its place: it is another quantity.
            if value is None or row.kl is None or not math.isfinite(value) or not math.isfinite(row.kl):
                left_out.append(f"{run.letter} π{row.iteration}")
            else:
                front.points.append(Point(run.letter, row.iteration, row.kl, value))
    for point in front.points:
        if not any(_is_better(other, point) for other in front.points):
            front.best.add((point.letter, point.iteration))
    if left_out:
        front.notes.append(f"Left out, for their {front.figure} or KL is not known: {', '.join(left_out)}.")
    return front


def _figure_of_all(runs: Sequence[NamedRun], front: Front) -> dict[str, str]:
    """The role, in each run by its letter, of the first judge in order that all runs have; {} of none."""
    roles: dict[str, dict[str, str]] = {}
    places: dict[str, int] = {}
    for run in runs:
        for each in judged(run.folder.evaluations[0]):
            if each.identity is not None:
                roles.setdefault(each.identity, {}).setdefault(run.letter, each.role)
                places[each.identity] = max(places.get(each.identity, 0), _place(each))
    common = []
    for identity in sorted(roles, key=places.__getitem__):
        if len(roles[identity]) == len(runs):
            common.append(roles[identity])
    if not common:
        front.notes.append(
            "No judge and no gold scored all runs, so that their policies cannot be put in one order."
        )
        return {}
    chosen = common[0]
    front.figure = next(iter(chosen.values()))
    if front.figure != GOLD:
        front.notes.append(f"By {front.figure}, for the runs have no gold in common.")
    return chosen


def _place(each: Judged) -> int:
    """Gold first; what policies are trained on comes last, for they may have learned to please it."""
    if each.role == GOLD:
        return 0
    if not each.trained_on:
        return 1
    return 2 if each.role == SCORE else 3


def _value(row: Row, role: str) -> float | None:
    if role == SCORE:
        return row.mean_score
    if role == GOLD:
        return row.gold_accuracy
    for name, verdict in row.judges.items():
        if role_of(name) == role:
            return verdict.mean_score
    return None


def _is_better(other: Point, point: Point) -> bool:
    """Whether one is at least as good in both figures, and better in one."""
    as_good = other.value >= point.value and other.kl <= point.kl
    return as_good and (other.value > point.value or other.kl < point.kl)


def front_section(front: Front, runs: Sequence[NamedRun]) -> Section:
    """Every policy of every run, by its KL; those on the front are marked."""
    title = f"Every policy: {front.figure} against KL" if front.figure else "Every policy"
    section = Section(title, ["run", "policy", "KL to π0", front.figure, "front"], notes=list(front.notes))
    section.right = ["KL to π0", front.figure]
    order = [run.letter for run in runs]
    form = ".3f" if front.figure == GOLD else "+.3f"
    points = sorted(front.points, key=lambda point: (order.index(point.letter), point.iteration))
    for point in points:
        mark = "★" if (point.letter, point.iteration) in front.best else ""
        cells = [point.letter, f"π{point.iteration}", number(point.kl, ".2f"), number(point.value, form)]
        section.rows.append([*cells, mark])
    if front.points:
        section.notes.append(f"★ on the front: no other policy has as much {front.figure} at as small a KL.")
    elif not front.notes:
        section.notes.append("No policy of any run is evaluated.")
    return section
