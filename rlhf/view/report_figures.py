"""The plots of a report: what each shows of a run, one function for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf.config.choices import TRAINED
from rlhf.loop.figure_text import number
from rlhf.loop.figures import distance_text
from rlhf.loop.gates import METRICS, training_steps
from rlhf.view import report_plots as plots
from rlhf.view.report_numbers import (
    MAIN,
    Pairs,
    disagreement_of,
    histogram,
    means_of,
    spread_of,
    trend_of,
)
from rlhf.view.report_plots import Plot
from rlhf.view.report_trend import Trend, against, judge_title, policy_name
from rlhf.view.run_folder import RunFolder, iteration_of

_POINTS = 300
"""Responses of each policy that a plot shows as points; lines and figures are of all."""
_STEPS = 400
"""Points of one iteration's training curve; more steps than that are averaged."""
_SHOWN_STAGES = 7
"""Stages that have a colour of their own; the rest is summed."""
_OTHERS = "others"
_BEFORE = "before"
"""Where stages stand that belong to no iteration."""


def score_spread(trend: Trend, judge: str, is_sum: bool) -> Plot:
    """How a judge's scores of each policy are spread."""
    groups = {policy_name(policy.iteration): policy.scores[judge].ravel() for policy in trend.policies}
    rows, outside = histogram(groups)
    title = f"Spread of scores: {judge_title(judge, is_sum)}"
    caption = "Share of all held-out responses. A curve that moves right is a policy that scores higher."
    if outside:
        caption += f" {outside:.1%} of the scores lie beyond the ends and count there."
    description = f"{title}: how the scores of {', '.join(groups)} are spread"
    spec = plots.spread_lines(rows, list(groups), "score", description)
    return Plot(f"scores-{judge}", title, caption, spec)


def score_against_length(trend: Trend, judge: str, is_sum: bool, seed: int) -> Plot:
    """Whether longer responses score higher: points, and a line through all responses of each policy."""
    points, lines = [], []
    table = [["", "slope per 100 tokens", "correlation", "mean tokens"]]
    rng = np.random.default_rng(seed)
    for policy in trend.policies:
        name = policy_name(policy.iteration)
        tokens, scores = policy.tokens_PN.ravel(), policy.scores[judge].ravel()
        known = np.flatnonzero(np.isfinite(tokens) & np.isfinite(scores))
        found = trend_of(tokens, scores)
        slope = number(100 * found.slope if found else None, "+.3f")
        correlation = number(found.correlation if found else None, "+.2f")
        mean = float(np.mean(tokens[known])) if len(known) else None
        table.append([name, slope, correlation, number(mean, ".1f")])
        # Drawn, not the first ones: shards stand in the order of their prompts.
        for index in rng.permutation(known)[:_POINTS].tolist():
            points.append({"group": name, "x": float(tokens[index]), "y": _rounded(scores[index])})
        if found:
            # Not to the longest response, where a line through all of them says nothing any more.
            for end in np.quantile(tokens[known], [0.01, 0.99]).tolist():
                lines.append({"group": name, "x": end, "y": _rounded(found.intercept + found.slope * end)})
    title = f"Score against length: {judge_title(judge, is_sum)}"
    caption = (
        "A slope that grows from policy to policy says that the judge is won by length. Lines and figures "
        f"are of all responses, points of at most {_POINTS} of each policy."
    )
    description = f"{title}, with a line for each of {', '.join(trend.names)}"
    spec = plots.points_with_lines(
        points, lines, trend.names, ("tokens of the response", "score"), description
    )
    return Plot(f"length-{judge}", title, caption, spec, table)


def win_rates(trend: Trend, is_sum: bool, previous: bool) -> Plot:
    """Win rates over iterations, against π0 or against the policy before."""
    titles = [judge_title(judge, is_sum) for judge in trend.judges]
    rows: list[dict[str, Any]] = []
    # π0 has nobody before it.
    for place in range(1, len(trend.rows)):
        for judge, title in zip(trend.judges, titles, strict=True):
            mean, low, high = against(trend, judge, place, place - 1 if previous else 0)
            if mean is not None and math.isfinite(mean):
                row = {"policy": trend.names[place], "judge": title, "rate": mean, "low": low, "high": high}
                rows.append(row)
    opponent = "the previous iterate" if previous else "π0"
    title = f"Win rate against {opponent}"
    caption = (
        "Every response against every one of the other policy to the same prompt, a tie half; bars are 95 % "
        "intervals over prompts, the dashed line is a tie."
    )
    spec = plots.rates(rows, titles, f"{title} by {', '.join(titles)}")
    return Plot("wins-previous" if previous else "wins", title, caption, spec)


def kl_frontier(trend: Trend, judge: str, is_sum: bool) -> Plot:
    """What every nat of distance from π0 has bought, by one judge."""
    rows: list[dict[str, Any]] = []
    for place, (row, policy) in enumerate(zip(trend.rows, trend.policies, strict=True)):
        mean = spread_of(policy.scores[judge]).mean
        if row.distance is None or not math.isfinite(row.distance) or not math.isfinite(mean):
            continue
        rows.append({"policy": trend.names[place], "place": place, "distance": row.distance, "score": mean})
    what = "KL to π0" if trend.rows[0].log_ratio is None else "mean log π/π0"
    title = f"Score against distance to π0: {judge_title(judge, is_sum)}"
    caption = (
        "A judge that falls where the one that trains rises says that the latter is being exploited: take "
        f"the iterate before. {distance_text(trend.rows)}."
    )
    spec = plots.frontier(rows, f"{what}, nats per response", title)
    return Plot(f"frontier-{judge}", title, caption, spec)


def judge_disagreement(trend: Trend, is_sum: bool) -> Plot:
    """How often other judges order a prompt's responses differently than the one that trains."""
    others = [judge for judge in trend.judges if judge != MAIN]
    rows: list[dict[str, Any]] = []
    for policy in trend.policies:
        for judge in others:
            shares = disagreement_of(policy.scores[MAIN], policy.scores[judge])
            share = means_of(shares[None, :])[0]
            if math.isfinite(share):
                rows.append({"policy": policy_name(policy.iteration), "group": judge, "share": float(share)})
    main = judge_title(MAIN, is_sum)
    title = f"Disagreement with the {main}"
    caption = (
        "Share of a prompt's pairs of responses that the other judge orders the other way round than the "
        f"{main}; ties do not count. At 0.5 the two have nothing to do with each other."
    )
    spec = plots.bars(
        rows, others, ("share", "share of pairs"), ("policy", ""), f"{title}: {', '.join(others)}", False
    )
    return Plot("disagreement", title, caption, spec)


def training_curves(run: RunFolder) -> tuple[list[Plot], list[str]]:
    """Loss, accuracy, margin and gradient norm over the steps of all iterations; and what cannot be read."""
    rows: list[dict[str, Any]] = []
    notes = []
    groups = []
    start = 0
    for name, artifact in run.artifacts.items():
        iteration = iteration_of(name)
        if iteration is None or name.partition("/")[2] not in TRAINED:
            continue
        try:
            steps = training_steps(artifact.path / METRICS)
        except Exception as error:  # whatever is wrong with one file, the others are shown
            notes.append(f"{name}/{METRICS} cannot be read: {error}")
            continue
        groups.append(str(iteration))
        for step in _thinned(steps):
            rows.append(step | {"step": start + step["step"], "iteration": str(iteration)})
        start += len(steps)
    if not rows:
        return [], notes
    shown = [
        ("loss", "Training loss", "loss"),
        ("rewards/accuracies", "Training accuracy", "share of pairs"),
        ("rewards/margins", "Training margin", "implicit reward, chosen − rejected"),
        ("grad_norm", "Gradient norm", "norm before clipping"),
    ]
    curves = []
    for field, title, axis in shown:
        key = field.replace("/", "_")
        for row in rows:
            row[key] = _rounded(row.get(field))
        # RAFT has no pairs, and so neither accuracy nor margin.
        if all(row[key] is None for row in rows):
            continue
        spec = plots.curve(rows, groups, key, axis, f"{title} over {start} steps of all iterations")
        curves.append(Plot(f"training-{key}", title, "", spec))
    return curves, notes


def _thinned(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `_STEPS` of an iteration's steps; of more, means of some that follow each other."""
    size = -(-len(steps) // _STEPS)
    thinned = []
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        mean: dict[str, Any] = {"step": start + len(part)}
        for name in ("loss", "rewards/accuracies", "rewards/margins", "grad_norm"):
            known = [step[name] for step in part if isinstance(step.get(name), int | float)]
            known = [value for value in known if math.isfinite(value)]
            mean[name] = sum(known) / len(known) if known else None
        thinned.append(mean)
    return thinned


def pair_plots(pairs: Sequence[Pairs]) -> list[Plot]:
    """How the margins of training pairs are spread, and how much longer the chosen response is."""
    margins = {str(each.iteration): each.margins for each in pairs}
    longer = {str(each.iteration): each.chosen_chars - each.rejected_chars for each in pairs}
    table = [["iteration", "pairs", "margin", "chosen", "rejected"]]
    for each in pairs:
        means = [each.margins, each.chosen_chars, each.rejected_chars]
        mean = [float(values.mean()) if len(values) else None for values in means]
        line = [number(mean[0], ".3f"), number(mean[1], ".1f"), number(mean[2], ".1f")]
        table.append([str(each.iteration), f"{len(each.margins):,}", *line])
    margin_rows, _ = histogram(margins)
    longer_rows, _ = histogram(longer)
    groups = list(margins)
    margin_spec = plots.spread_lines(
        margin_rows,
        groups,
        "margin",
        "How the margins of training pairs are spread, by iteration",
        "iteration",
    )
    longer_spec = plots.spread_lines(
        longer_rows,
        groups,
        "characters, chosen − rejected",
        "How much longer chosen responses are than rejected ones, by iteration",
        "iteration",
    )
    return [
        Plot(
            "margins",
            "Margins of the training pairs",
            "Score of the chosen response less that of the rejected one, as pairs were selected. Below: "
            "means, of lengths in characters.",
            margin_spec,
            table,
        ),
        Plot(
            "longer",
            "How much longer the chosen response is",
            "Right of 0 the chosen response is longer. A hump there trains for length.",
            longer_spec,
        ),
    ]


def seconds_plot(run: RunFolder) -> Plot | None:
    """Where the time went: seconds of every stage by iteration, and the tokens that were sampled."""
    seconds: Counter[tuple[str, str]] = Counter()
    by_stage: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for name, artifact in run.artifacts.items():
        iteration = iteration_of(name)
        where = _BEFORE if iteration is None else f"iteration {iteration}"
        stage = _stage_title(name)
        spent = artifact.record.get("seconds", 0)
        seconds[where, stage] += spent
        by_stage[stage] += spent
        tokens[stage] += artifact.counts.get("response_tokens", 0)
    total = sum(by_stage.values())
    if not total:
        return None
    stages = [stage for stage, _ in by_stage.most_common()]
    shown = stages[:_SHOWN_STAGES]
    groups = [*shown, _OTHERS] if len(stages) > len(shown) else shown
    summed: Counter[tuple[str, str]] = Counter()
    for (where, stage), spent in seconds.items():
        summed[where, stage if stage in shown else _OTHERS] += spent
    rows = []
    for (where, group), spent in summed.items():
        rows.append(
            {"where": where, "group": group, "seconds": round(spent, 2), "place": groups.index(group)}
        )
    table = [["stage", "seconds", "share", "response tokens", "tokens/s"]]
    for stage in stages:
        per_second = tokens[stage] / by_stage[stage] if tokens[stage] and by_stage[stage] else None
        line = [f"{by_stage[stage]:,.1f}", f"{by_stage[stage] / total:.1%}"]
        table.append([stage, *line, number(tokens[stage] or None, ",d"), number(per_second, ",.0f")])
    caption = f"{total:,.0f} seconds of finished stages, with all their attempts. Tokens are those sampled."
    description = f"Seconds of each stage by iteration; the most went into {stages[0]}"
    spec = plots.bars(rows, groups, ("seconds", "seconds"), ("where", ""), description)
    return Plot("seconds", "Where the time went", caption, spec, table, is_wide=True)


def _stage_title(name: str) -> str:
    """A stage's name without its iteration: what belongs together over all of them."""
    return "/".join(part for part in name.split("/") if not part.startswith("iteration_"))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
