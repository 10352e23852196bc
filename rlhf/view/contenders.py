"""The policy that stands for a run where runs are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.errors import ConfigError
from rlhf.loop.figures import Evaluation, Row, best
from rlhf.view.same_judge import Judged, judged
from rlhf.view.several_runs import NamedRun


@dataclass(frozen=True)
class Contender:
    """A run and the policy that stands for it; of a run without such a policy, the run alone."""

    run: NamedRun
    row: Row | None = None
    evaluation: Evaluation | None = None

    @property
    def letter(self) -> str:
        """Of the run."""
        return self.run.letter

    @property
    def judged(self) -> list[Judged]:
        """Who scored the policy's responses."""
        return judged(self.evaluation) if self.evaluation is not None else []


def contenders_of(runs: Sequence[NamedRun], iteration: int | None) -> list[Contender]:
    """Each run with its best policy, or with that of an iteration.

    Raises:
        ConfigError: no run has evaluated that iteration.
    """
    contenders = [_contender(run, iteration) for run in runs]
    if iteration is None or any(contender.row is not None for contender in contenders):
        return contenders
    evaluated = set()
    for run in runs:
        evaluated |= {row.iteration for row in run.folder.rows}
    there = ", ".join(map(str, sorted(evaluated))) or "none"
    raise ConfigError(
        f"iteration={iteration}: no run has evaluated that policy. Evaluated: {there}. Without iteration= "
        "each run's best one stands for it."
    )


def _contender(run: NamedRun, iteration: int | None) -> Contender:
    rows = run.folder.rows
    if not rows:
        return Contender(run)
    wanted = rows[best(rows)].iteration if iteration is None else iteration
    for row, evaluation in zip(rows, run.folder.evaluations, strict=True):
        if row.iteration == wanted:
            return Contender(run, row, evaluation)
    return Contender(run)


def judges_of_role(contenders: Sequence[Contender], role: str) -> dict[str, list[str]]:
    """The letters of the runs that each judge of a role scored, by what it is called.

    More than one judge: what is made of their scores cannot be compared.

    Example:
        {"the model 87405a2d…": ["A", "C"], "the model 1f0e22b1…": ["B"]}
    """
    name_of: dict[str, str] = {}
    letters: dict[str, list[str]] = {}
    for contender in contenders:
        for each in contender.judged:
            if each.role != role:
                continue
            # Without an identity it is comparable with nothing, not even with its like.
            key = each.identity or contender.letter
            name_of.setdefault(key, each.who)
            letters.setdefault(key, []).append(contender.letter)
    found = {}
    for key, who in name_of.items():
        name = who if who not in found else f"{who} ({', '.join(letters[key])})"
        found[name] = letters[key]
    return found


def who_text(runs_of: dict[str, list[str]]) -> str:
    """What `judges_of_role` gives as text: "the model 87405a2d… in A, C; the model 1f0e22b1… in B"."""
    return "; ".join(f"{who} in {', '.join(letters)}" for who, letters in runs_of.items())
