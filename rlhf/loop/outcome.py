"""What a person gets of a run: the table after each iteration, and at the end the best policy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf.config.choices import Method
from rlhf.config.stage_configs import ExportStage
from rlhf.loop import card
from rlhf.loop.best import link_best
from rlhf.loop.figures import Evaluation, Row, best, distance_text, measured, rows_of, write_summary
from rlhf.loop.gates import Gates
from rlhf.loop.table import headline, table
from rlhf.run.artifact import Artifact
from rlhf.run.engine_choice import as_begun
from rlhf.run.plan import Run


def verified_rows(run: Run, evaluations: Sequence[Evaluation]) -> list[Row]:
    """The figures of every policy, of files that have their checksums."""
    for evaluation in evaluations:
        run.verify(*measured(evaluation))
    return rows_of(evaluations)


def report(run: Run, evaluations: Sequence[Evaluation], gates: Gates) -> list[Row]:
    """Print, write and return the figures so far, [] while planning; a view, always made anew."""
    if run.planning or run.only is not None:
        return []
    rows = verified_rows(run, evaluations)
    run.say("\n" + table(rows) + "\n")
    if run.console is not None:
        run.console.figures([headline(vars(rows[-1]))])
    gates.iteration_finished(rows)
    write_summary(run.folder, rows, rows[best(rows)].iteration, gates.violations)
    run.publish()
    return rows


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
        # The card says which engine scored, not that it was left open.
        cfg = replace(run.cfg, score=as_begun(run.cfg.score, run.made.values()))
        facts = card.facts(cfg, rows, policies, chosen.iteration, card.licences(cfg))
        name = f"iteration_{chosen.iteration:03d}/export"
        model = run.stage("export", name, ExportStage(dtype, facts), {"model": model}).part("model")
        run.verify(model)  # people take it from here, and their programs look at no manifest
        target = Path(os.path.relpath(model.path, run.folder))
    link_best(run.folder, target, run.say)
    if not math.isfinite(rows[best(rows)].mean_score):
        run.say("No policy has a finite score on the held-out prompts: best is π0 for want of another.")
    elif chosen.iteration == 0:
        run.say(
            "No iterate beats π0 on the held-out prompts: best is π0 itself. Look at the table "
            "before going on."
        )
    lacking = "a response to train on" if run.cfg.method is Method.raft else "a pair"
    run.say(f"{distance_text(rows)}. Dropped counts prompts without {lacking}{_dropped_pairs(rows)}.")
    run.say(
        f"best policy   {run.folder / 'best'} -> {target} (π{chosen.iteration}, highest held-out mean score)"
    )
    run.say(f"figures       {run.folder / 'summary.json'}")
    run.say(f"everything    {run.folder} ({_stages(run)}logs)")
    return model


def _stages(run: Run) -> str:
    """The stages of an iteration, as they lie in its folder; nothing of a run without iterations."""
    names = [name.partition("/")[2] for name in run.made if name.startswith("iteration_001/")]
    # Those of the evaluation lie in one folder, and the export only in the best iteration's.
    stages = dict.fromkeys(name.partition("/")[0] for name in names if name != "export")
    return f"iteration_*/{', '.join(stages)}; " if stages else ""


def _dropped_pairs(rows: Sequence[Row]) -> str:
    """What to add where DPO dropped pairs too."""
    if any("long_prompt" in row.dropped for row in rows):
        return " (long_prompt: pairs whose prompt fills dpo.max_length)"
    return ""
