"""What other settings of `pair` would have given, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf.config.fields import plain
from rlhf.config.schema import PairSettings
from rlhf.loop.figure_text import NOTHING, number, share
from rlhf.view.best_of import BestOf, OfK
from rlhf.view.other_pairs import Tried, written
from rlhf.view.pair_lab import Outcome
from rlhf.view.section import Section

_HEADS = (
    "settings",
    "pairs",
    "yield",
    "margin",
    "quartiles",
    "Δ tokens",
    "Δ chars",
    "longer",
    "as now",
    "prompts dropped",
)
_LEGEND = (
    "yield: prompts that give a pair; margin: mean of chosen less rejected, on the scores that choose "
    "(penalised), and its quartiles; Δ: mean length of chosen less rejected; longer: pairs whose chosen "
    "response has more tokens; as now: the run's own pairs that come out again."
)


def pair_section(
    title: str, tried: Sequence[Tried], outcomes: Sequence[Outcome], num_present: int
) -> Section:
    """A line for each choice of settings.

    Args:
        title: of the table.
        tried: what was tried.
        outcomes: of each.
        num_present: pairs that the run has.
    """
    section = Section(title, _HEADS)
    section.right = [head for head in _HEADS if head not in ("settings", "quartiles", "prompts dropped")]
    for each, outcome in zip(tried, outcomes, strict=True):
        section.rows.append([each.name, *_cells(outcome, num_present)])
    return section


def _cells(outcome: Outcome, num_present: int) -> list[str]:
    counts = outcome.counts
    num_pairs = outcome.pairs
    cells = [str(num_pairs), share(counts["prompts_with_pairs"] / max(1, counts["prompts"]))]
    if num_pairs:
        margins = np.concatenate(outcome.margins)
        quartiles = [number(float(value), ".2f") for value in np.quantile(margins, (0.25, 0.5, 0.75))]
        cells += [number(float(margins.mean()), ".3f"), " ".join(quartiles)]
        cells += [f"{outcome.token_gap / num_pairs:+.1f}", f"{outcome.char_gap / num_pairs:+.1f}"]
        cells.append(share(outcome.longer / num_pairs))
    else:
        cells += [NOTHING] * 5
    kept = f"{outcome.shared} ({share(outcome.shared / num_present)})" if num_present else NOTHING
    reasons = [f"{reason} {count}" for reason, count in sorted(outcome.prompts_without.items())]
    return [*cells, kept, ", ".join(reasons) or NOTHING]


def best_of_section(best_of: BestOf) -> Section:
    """A line for each k: what would have been lost against all n."""
    section = Section("Fewer responses: best of k", ["k", "best score", "lost", "margin", "yield"])
    section.right = section.heads
    all_n = best_of.of[-1]
    for each in best_of.of:
        best, margin = _means(each)
        lost = _means(all_n)[0] - best
        cells = [str(each.k), number(best, "+.3f"), number(lost, ".3f"), number(margin, ".3f")]
        section.rows.append([*cells, share(each.num_with_pairs / max(1, each.num_draws))])
    how = "every choice of k is looked at"
    if not best_of.is_exact:
        how = f"{best_of.draws} random choices a prompt stand for all of them, where there are more"
    section.notes.append(
        f"k of the n responses drawn without replacement: the expected best score (raw), what it loses "
        f"against n, the expected best less worst, and the share that gives a pair by the run's own settings "
        f"({how})."
    )
    return section


def _means(each: OfK) -> tuple[float, float]:
    if not each.num_scored:
        return float("nan"), float("nan")
    return each.best / each.num_scored, each.margin / each.num_scored


def legend(own: PairSettings) -> list[str]:
    """What the columns mean, and what the run's own settings are."""
    settings = " ".join(f"{key}={written(value)}" for key, value in plain(own).items())
    return [_LEGEND, f"own: {settings}"]
