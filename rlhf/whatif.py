"""What other settings of `pair` would have given: `python -m rlhf.whatif run_dir=… pair.strategy=a,b …`.

From the candidates and scores that a run has stored, on a CPU in seconds; every value is tried with every
value of the other settings. Nothing is written. docs/comparing.md says what each column means.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rlhf.command.line import main
from rlhf.config.view_tools import WhatIfTool
from rlhf.errors import StorageError
from rlhf.run.output import output_error, show
from rlhf.view.best_of import BestOf
from rlhf.view.other_pairs import tried_settings
from rlhf.view.pair_lab import Outcome, outcomes_of
from rlhf.view.pair_tables import best_of_section, legend, pair_section
from rlhf.view.run_folder import open_run
from rlhf.view.scored_runs import read_of, scored_iterations
from rlhf.view.section import Section, as_text
from rlhf.view.sound import sound


def whatif(tool: WhatIfTool) -> None:
    """Print a table for each iteration, one for all of them, and one of fewer responses."""
    began = time.monotonic()
    run = sound(open_run(tool.run_dir), read_of)
    iterations, notes = scored_iterations(run, tool.iterations)
    first = iterations[0]
    tried, left_out = tried_settings(tool.pair, first.settings, first.num_candidates)
    num_prompts = sum(each.candidates.counts["prompts"] for each in iterations)
    best_of = BestOf(first.num_candidates, first.settings, first.seed, num_prompts)
    sections = []
    together = [Outcome() for _ in tried]
    num_present_together = 0
    for scored in iterations:
        settings = [replace(scored.settings, **each.changes) for each in tried]
        outcomes = outcomes_of(scored, settings, best_of)
        num_present = outcomes[0].pairs if scored.pairs is None else scored.pairs.counts["pairs"]
        num_present_together += num_present
        section = pair_section(f"Iteration {scored.iteration}", tried, outcomes, num_present)
        if scored.pairs is None:
            section.notes.append("It has no pairs to read; those of the run's own settings stand for them.")
        elif outcomes[0].shared != num_present or outcomes[0].pairs != num_present:
            section.notes.append("The run's own settings now give others than its pairs: look at versions.")
        sections.append(section)
        for total, outcome in zip(together, outcomes, strict=True):
            total.merge(outcome)
    if len(iterations) > 1:
        sections.append(pair_section("All of them", tried, together, num_present_together))
    sections.append(best_of_section(best_of))
    seconds = time.monotonic() - began
    said = [*legend(first.settings), *left_out, *notes]
    said.append(f"{num_prompts} prompts × {first.num_candidates} responses in {seconds:.1f} s")
    show(as_text([*sections, Section("Notes", notes=said)]))
    lost = output_error()
    if lost is not None:
        raise StorageError(f"The tables cannot be written to standard output: {lost.strerror}. Make room.")


if __name__ == "__main__":
    main(whatif, "tool", WhatIfTool)
