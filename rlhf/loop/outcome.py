"""What a person gets of a run: the table after each iteration, and at the end the best policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rlhf.config.stage_configs import ExportStage
from rlhf.loop import card
from rlhf.loop.figures import KL_ESTIMATOR, Evaluation, Row, best, rows_of, table, write_summary
from rlhf.loop.gates import Gates
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def verified_rows(run: Run, evaluations: Sequence[Evaluation]) -> list[Row]:
    """The figures of every policy, of files that have their checksums."""
    for evaluation in evaluations:
        run.verify(evaluation.candidates, evaluation.scores, evaluation.gold, evaluation.reference)
        run.verify(*evaluation.others.values())
    return rows_of(evaluations)


def report(run: Run, evaluations: Sequence[Evaluation], gates: Gates) -> None:
    """Print and write the figures so far; a view, always made anew, never an input."""
    if run.planning or run.only is not None:
        return
    rows = verified_rows(run, evaluations)
    run.say("\n" + table(rows) + "\n")
    gates.iteration_finished(rows)
    write_summary(run.folder, rows, rows[best(rows)].iteration, gates.violations)


def conclude(run: Run, evaluations: Sequence[Evaluation], dtype: str) -> Artifact:
    """Link the best iterate as RUN/best, as people serve and share it, and say where everything lies."""
    if run.planning or run.only is not None:
        return evaluations[0].policy
    rows = verified_rows(run, evaluations)
    chosen = evaluations[best(rows)]
    model = chosen.policy
    target = model.path
    if model.path.is_relative_to(run.folder):
        # A model from outside keeps its place and its own card; what the run made is exported.
        policies = [evaluation.policy for evaluation in evaluations]
        facts = card.facts(run.cfg, rows, policies, chosen.iteration, card.licences(run.cfg))
        name = f"iteration_{chosen.iteration:03d}/export"
        model = run.stage("export", name, ExportStage(dtype, facts), {"model": model}).part("model")
        target = Path(os.path.relpath(model.path, run.folder))
    _link_best(run.folder, target)
    if chosen.iteration == 0:
        run.say(
            "No iterate beats π0 on the held-out prompts: best is π0 itself. Look at the table "
            "before going on."
        )
    run.say(f"KL is {KL_ESTIMATOR}. Dropped counts prompts without a pair.")
    run.say(
        f"best policy   {run.folder / 'best'} -> {target} (π{chosen.iteration}, highest held-out mean score)"
    )
    run.say(f"figures       {run.folder / 'summary.json'}")
    run.say(f"everything    {run.folder} (iteration_*/generate, score, pair, reference, dpo, held_out; logs)")
    return model


def _link_best(folder: Path, target: Path) -> None:
    """Point RUN/best at a model; there is no moment without a link, or with half of one."""
    temporary = folder / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, folder / "best")
