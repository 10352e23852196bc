"""`RUN/report.html`: one page with what a run has so far, of a finished run and of one that is none yet.

What cannot be read is said in the page, and the rest is shown: a report is looked at most when something is
wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlhf import __version__
from rlhf.config.overrides import pasted
from rlhf.data.digest import digest_of
from rlhf.data.json_text import json_text
from rlhf.data.shards import write_atomic
from rlhf.errors import UserError, one_line
from rlhf.loop.card import name_of
from rlhf.loop.figures import Evaluation, Row, row_of
from rlhf.view.report_figures import (
    judge_disagreement,
    kl_frontier,
    pair_plots,
    score_against_length,
    score_spread,
    seconds_plot,
    training_curves,
    win_rates,
)
from rlhf.view.report_greedy import GreedyAnswers, greedy_answers, greedy_section
from rlhf.view.report_library import LIBRARY
from rlhf.view.report_numbers import GOLD, MAIN, HeldOut, Pairs, held_out_of, pairs_of
from rlhf.view.report_page import joined, page, script_json
from rlhf.view.report_plots import Plot
from rlhf.view.report_records import (
    NUM_PAIRS,
    NUM_RECORDS,
    Sample,
    chosen_pairs,
    origins_of,
    records_of,
    shown_pairs,
)
from rlhf.view.report_sections import (
    headline_table,
    lineage_section,
    notices,
    pair_section,
    plot_places,
    record_section,
)
from rlhf.view.report_trend import Trend, judge_title, policy_name, why_best
from rlhf.view.run_folder import RunFolder

_MARK = "a report of rlhf-iterate, made of "
_HEAD_BYTES = 200
"""Of a report: so far stands what it was made of."""
Part = TypeVar("Part")


@dataclass
class _Contents:
    """What is gathered for a page; `notes` say what is missing."""

    trend: Trend | None = None
    plots: list[Plot] = field(default_factory=list)
    records: Sample | None = None
    pairs: Sample | None = None
    greedy: GreedyAnswers | None = None
    iterations_with_pairs: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def part(self, what: str, make: Callable[[], Part]) -> Part | None:
        """A part of the page; None, and a note that says why, where it cannot be made."""
        try:
            return make()
        # Any error: a damaged file may raise what it likes, and must not take the other parts with it.
        except Exception as error:
            self.notes.append(f"{what} cannot be shown: {one_line(str(error) or type(error).__name__)}")
            return None


def write_report(run: RunFolder, target: Path, most: int = NUM_RECORDS, seed: int = 0) -> None:
    """Write the page of a run, as it is now, whole or not at all.

    Args:
        run: its folder.
        target: the file; one that is there is replaced.
        most: held-out prompts that are shown at most.
        seed: of the draw of those, of pairs and of plotted points.

    Raises:
        ConfigError: the library that draws plots is not there.
        StorageError: the file cannot be written.
        UserError: something lies there that is no report.
    """
    if target.exists() and _MARK not in _head_of(target):
        raise UserError(
            f"{target} exists and is no report of this program, and nothing is written over it. Ways out: "
            "name another file (output=….html), or move that one away: "
            f"{pasted('mv', str(target), f'{target}.mine')}"
        )
    LIBRARY.begin()  # while the run is read
    contents = _contents_of(run, most, seed)
    text = _page_of(run, contents, seed)
    write_atomic(target, text.encode())


def is_of_now(target: Path, run: RunFolder) -> bool:
    """Whether a report is there that was made of just what the run has now."""
    return f"{_MARK}{_state_of(run)}" in _head_of(target)


def _head_of(target: Path) -> str:
    """The beginning of a file, where a report says what it was made of; "" of none, or of a folder."""
    try:
        with open(target, "rb") as file:
            return file.read(_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _state_of(run: RunFolder) -> str:
    """A digest of what a report is made of."""
    digests = {name: artifact.digest for name, artifact in run.artifacts.items()}
    state = [__version__, digests, run.damaged, run.unfinished, run.config]
    # Only where there is some: pages that were made before this was known of stay those of now.
    if run.removed:
        state.append(run.removed)
    with contextlib.suppress(OSError):
        state.append((run.path / "summary.json").read_text(encoding="utf-8", errors="replace"))
    return digest_of(json_text(state, default=str))


def _contents_of(run: RunFolder, most: int, seed: int) -> _Contents:
    contents = _Contents()
    contents.notes += _how_far(run)
    contents.trend = contents.part("The trend", partial(_trend_of, run, contents))
    trend = contents.trend
    if trend is not None:
        contents.plots += _plots_of_trend(contents, trend, _is_sum(run), seed)
        origins = contents.part("Sources of prompts", partial(origins_of, run))
        make = partial(records_of, trend.evaluations, trend.policies, trend.judges, most, seed, origins)
        contents.records = contents.part("Records", make)
    contents.greedy = contents.part("Greedy answers", partial(greedy_answers, run))
    found = contents.part("Training curves", partial(training_curves, run))
    if found is not None:
        curves, notes = found
        contents.plots += curves
        contents.notes += notes
    _add_pairs(contents, run, seed)
    spent = contents.part("Seconds by stage", partial(seconds_plot, run))
    contents.plots += [spent] if spent is not None else []
    return contents


def _how_far(run: RunFolder) -> list[str]:
    """What of a run is there, where that is not all of it."""
    if not run.evaluations:
        return ["π0 has no finished evaluation here, and every figure is held against it."]
    wanted = run.config.get("num_iterations")
    last = run.evaluations[-1].iteration
    if isinstance(wanted, int) and last < wanted:
        return [f"The run is at iteration {last} of {wanted}: figures are of the policies so far."]
    return []


def _trend_of(run: RunFolder, contents: _Contents) -> Trend | None:
    """Figures of every policy whose files can be read, π0 first; None without π0's."""
    evaluations: list[Evaluation] = []
    rows: list[Row] = []
    policies: list[HeldOut] = []
    for evaluation in run.evaluations:
        name = policy_name(evaluation.iteration)
        numbers = contents.part(f"{name}'s held-out responses", partial(held_out_of, evaluation))
        if numbers is None and not policies:
            return None  # π0 itself
        if numbers is None:
            continue
        initial = evaluations[0] if evaluations else evaluation
        row = contents.part(f"{name}'s distance to π0", partial(row_of, evaluation, initial))
        if row is None:
            evaluation = replace(evaluation, reference=None)
            initial = evaluation if initial.iteration == evaluation.iteration else initial
            row = row_of(evaluation, initial)
        evaluations.append(evaluation)
        policies.append(numbers)
        rows.append(row)
    return Trend(evaluations, rows, policies) if rows else None


def _plots_of_trend(contents: _Contents, trend: Trend, is_sum: bool, seed: int) -> list[Plot]:
    """What the evaluations show, in the order in which a person asks."""
    makers: list[tuple[str, Callable[[], Plot]]] = []
    if len(trend.rows) > 1:
        makers.append(("Win rates", partial(win_rates, trend, is_sum, False)))
    if len(trend.rows) > 2:
        makers.append(("Win rates against the policy before", partial(win_rates, trend, is_sum, True)))
    makers.append(("The spread of scores", partial(score_spread, trend, MAIN, is_sum)))
    makers.append(("Score against length", partial(score_against_length, trend, MAIN, is_sum, seed)))
    if len(trend.rows) > 1:
        for judge in trend.judges:
            makers.append(("Score against distance", partial(kl_frontier, trend, judge, is_sum)))
    others = [judge for judge in trend.judges if judge != MAIN]
    for judge in others:
        if judge != GOLD:  # which has two values
            makers.append(("The spread of scores", partial(score_spread, trend, judge, is_sum)))
    if others:
        makers.append(("The judges' disagreement", partial(judge_disagreement, trend, is_sum)))
    made = [contents.part(what, make) for what, make in makers]
    return [plot for plot in made if plot is not None]


def _add_pairs(contents: _Contents, run: RunFolder, seed: int) -> None:
    """The training pairs of every iteration: plots, and some of them to read."""
    found: list[Pairs] = []
    chosen: list[dict[str, Any]] = []
    for iteration in run.iterations:
        artifact = run.artifact(iteration, "pair") or run.artifact(iteration, "preferences")
        if artifact is None:
            continue
        what = f"The pairs of iteration {iteration}"
        pairs = contents.part(f"{what} as figures", partial(pairs_of, iteration, artifact.path))
        if pairs is None:
            continue
        found.append(pairs)
        texts = contents.part(
            f"{what} as texts", partial(chosen_pairs, pairs, artifact.path, NUM_PAIRS, seed)
        )
        chosen += texts or []
    contents.iterations_with_pairs = [pairs.iteration for pairs in found]
    if found:
        plots = contents.part("Margins and lengths", partial(pair_plots, found))
        contents.plots += plots or []
        total = sum(len(pairs.margins) for pairs in found)
        contents.pairs = shown_pairs(chosen, total)


def _page_of(run: RunFolder, contents: _Contents, seed: int) -> str:
    trend = contents.trend
    is_sum = _is_sum(run)
    headline = contents.part("The table of figures", partial(headline_table, trend, is_sum))
    lineage = contents.part("Lineage", partial(lineage_section, run))
    data = {
        "plots": [{"key": plot.key, "spec": plot.spec} for plot in contents.plots],
        "policies": trend.names if trend else [],
        "judges": [judge_title(judge, is_sum) for judge in trend.judges] if trend else [],
        "best": why_best(trend)[0] if trend else None,
        "records": contents.records.shown if contents.records else [],
        "pairs": contents.pairs.shown if contents.pairs else [],
    }
    parts = {
        "made_of": f"{_MARK}{_state_of(run)}",
        "title": f"Report of {run.path.name}",
        "subtitle": _subtitle(run),
        "headline": headline or "",
        "plots": plot_places(contents.plots),
        "records": joined([record_section(trend, contents.records, seed), greedy_section(contents.greedy)]),
        "pairs": pair_section(contents.pairs, contents.iterations_with_pairs, seed, run.trains_by_raft),
        "lineage": lineage or "",
        "footer": f"Made by rlhf-iterate {__version__} from the files of the run alone.",
        "data": script_json(data),
        "notices": notices(run, contents.notes),
    }
    return page(parts, LIBRARY.script())


def _is_sum(run: RunFolder) -> bool:
    """Whether the scores that count are a sum of several judges."""
    return run.artifact(0, "held_out/mix") is not None


def _subtitle(run: RunFolder) -> str:
    """Which models and prompts, as far as the settings tell; no places, for a page is passed on."""
    parts = []
    for section, what in (("model", "policy"), ("reward_model", "judge"), ("prompts", "prompts")):
        values = run.config.get(section)
        if not isinstance(values, dict):
            continue
        named = values.get("rule") or values.get("path")
        if isinstance(named, str):
            parts.append(f"{what} {name_of(named)}")
    return " · ".join(parts)
