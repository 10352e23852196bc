"""Who wins against whom, on the held-out prompts that two runs have in common."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.loop.figure_text import NOTHING, rate
from rlhf.loop.figures import finite, scores_by_prompt, win_rate
from rlhf.view.contenders import Contender, judges_of_role, who_text
from rlhf.view.same_judge import Judged
from rlhf.view.section import Section

_ALL_PAIRS = 5
"""Of more runs than so many, each is held against the first one alone: pairs grow with the square."""

Scores = dict[str, list[float]]
"""Of each prompt's responses, by the prompt's id."""


@dataclass(frozen=True)
class _Player:
    """A run's policy: the prompts that it answered, and its scores by the identity of each judge."""

    name: str
    ids: set[str]
    scores: dict[str, Scores]


def win_rate_section(contenders: Sequence[Contender]) -> Section:
    """A line for each two runs, a column for each judge that any two of them have.

    Every response of one is compared with every response of the other to the same prompt, a tie counts half;
    the 95 % interval is over prompts (`rlhf.loop.figures.win_rate`).
    """
    there = [contender for contender in contenders if contender.evaluation is not None]
    section = Section("Win rate of one against the other")
    if len(there) < 2:
        section.notes.append("Fewer than two runs have an evaluated policy: nobody to win against.")
        return section
    columns = _columns(there)
    players = [_player(contender, columns) for contender in there]
    pairs = list(itertools.combinations(players, 2))
    # Pairs grow with the square of the runs: of twenty there would be 190 lines.
    if len(players) > _ALL_PAIRS:
        section.notes.append(
            f"Each against {players[0].name}, the first one: {len(players) - 1} of {len(pairs)} pairs. "
            f"Of {_ALL_PAIRS} runs or fewer all pairs are shown; sort= says which is the first."
        )
        pairs = [(players[0], other) for other in players[1:]]
    section.heads = ["run", "against", "common prompts", *(f"by {name} (95 %)" for name in columns.values())]
    for one, other in pairs:
        section.rows.append([one.name, other.name, *_pair_cells(one, other, list(columns))])
        section.notes += _notes_of_pair(one, other, columns)
    section.notes += _notes_of_judges(there, columns)
    return section


def _player(contender: Contender, columns: dict[str, str]) -> _Player:
    assert contender.row is not None, "only those with a policy are compared"
    ids: set[str] = set()
    scores = {}
    for each in contender.judged:
        by_prompt = scores_by_prompt(each.scores)
        ids |= set(by_prompt)
        if each.identity in columns:
            scores[each.identity] = by_prompt
    return _Player(f"{contender.letter} π{contender.row.iteration}", ids, scores)


def _columns(contenders: Sequence[Contender]) -> dict[str, str]:
    """The judges that at least two runs have: what the column is called, by identity."""
    num_runs: dict[str, int] = {}
    names: dict[str, str] = {}
    for contender in contenders:
        for identity in {each.identity for each in contender.judged if each.identity is not None}:
            num_runs[identity] = num_runs.get(identity, 0) + 1
        for each in contender.judged:
            if each.identity is not None:
                names.setdefault(each.identity, each.role)
    columns: dict[str, str] = {}
    for identity, name in names.items():
        # What only one run has been scored by says nothing of another.
        if num_runs[identity] < 2:
            continue
        # Two runs may call different judges by one name.
        others = sum(used == name or used.startswith(f"{name} #") for used in columns.values())
        columns[identity] = f"{name} #{others + 1}" if others else name
    return columns


def _pair_cells(one: _Player, other: _Player, judges: list[str]) -> list[str]:
    num_common = len(one.ids & other.ids)
    is_same = one.ids == other.ids
    cells = [str(num_common) if is_same else f"{num_common} of {len(one.ids)} and {len(other.ids)}"]
    for judge in judges:
        if judge in one.scores and judge in other.scores and num_common:
            cells.append(rate(*win_rate(one.scores[judge], other.scores[judge])))
        else:
            cells.append(NOTHING)
    return cells


def _notes_of_pair(one: _Player, other: _Player, columns: dict[str, str]) -> list[str]:
    """That two runs have no prompt in common, or how many of those a judge gave no number for."""
    between = f"{one.name} and {other.name}"
    common = one.ids & other.ids
    if not common:
        return [f"{between} have no held-out prompt in common, so neither can win against the other."]
    notes = []
    for judge, name in columns.items():
        if judge not in one.scores or judge not in other.scores:
            continue
        own, others = one.scores[judge], other.scores[judge]
        silent = [key for key in common if not finite(own[key]) or not finite(others[key])]
        if silent:
            notes.append(
                f"{between}: {len(silent)} common prompts are left out of {name}, for one of the two has no "
                "response with a finite score."
            )
    return notes


def _notes_of_judges(contenders: Sequence[Contender], columns: dict[str, str]) -> list[str]:
    """Who judges each column, which judges have none and why, and whether one was asked in different ways."""
    notes = []
    for identity, name in columns.items():
        of_runs = []
        for contender in contenders:
            each = _by_identity(contender, identity)
            if each is not None:
                of_runs.append((contender.letter, each))
        called = ", ".join(f"{letter}'s {each.role}" for letter, each in of_runs)
        notes.append(f"{name} is {of_runs[0][1].who}: {called}.")
        notes += _told_differently(name, of_runs)
    for role in dict.fromkeys(each.role for contender in contenders for each in contender.judged):
        judges = judges_of_role(contenders, role)
        if len(judges) > 1:
            notes.append(
                f"{role}: no win rate between runs of different judges, whose scores are not comparable: "
                f"{who_text(judges)}."
            )
    if not columns:
        notes.append("No judge scored the responses of two runs, so nobody can say which are better.")
    return notes


def _by_identity(contender: Contender, identity: str) -> Judged | None:
    return next((each for each in contender.judged if each.identity == identity), None)


def _told_differently(name: str, of_runs: Sequence[tuple[str, Judged]]) -> list[str]:
    """What one judge was told in one way in one run and in another way in another, such as `max_tokens`."""
    keys: dict[str, None] = {}
    for _, each in of_runs:
        keys |= dict.fromkeys(each.told)
    notes = []
    for key in keys:
        values = {letter: each.told.get(key, "default") for letter, each in of_runs}
        if len(set(map(str, values.values()))) > 1:
            written = ", ".join(f"{value} in {letter}" for letter, value in values.items())
            notes.append(f"{name} was not asked in the same way: {key} is {written}.")
    return notes
