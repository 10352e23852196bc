"""The part of a report that says where a run goes: the table of figures, and one function for each plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.loop.figures import Evaluation, Row, best, distance_text, scores_by_prompt, win_rate
from rlhf.loop.gates import METRICS, training_steps
from rlhf.view import report_plots as plots
from rlhf.view.report_numbers import (
    GOLD,
    MAIN,
    HeldOut,
    Pairs,
    disagreement_of,
    histogram,
    means_of,
    spread_of,
    trend_of,
)
from rlhf.view.report_plots import Plot
from rlhf.view.run_folder import RunFolder, iteration_of

_POINTS = 300
"""Responses of each policy that a plot shows as points; lines and figures are of all."""
_STEPS = 400
"""Points of one iteration's training curve; more steps than that are averaged."""
_BEFORE = "before"
"""Where stages stand that belong to no iteration."""


@dataclass(frozen=True)
class Trend:
    """What the figures are made of: an evaluation, its row and its numbers for each policy, π0 first."""

    evaluations: Sequence[Evaluation]
    rows: Sequence[Row]
    policies: Sequence[HeldOut]

    @property
    def judges(self) -> list[str]:
        """Names of the judges that all policies have scores of, the one that trains first."""
        first = self.policies[0].scores
        return [name for name in first if all(name in policy.scores for policy in self.policies)]

    @property
    def names(self) -> list[str]:
        """What policies are called."""
        return [policy_name(row.iteration) for row in self.rows]


def policy_name(iteration: int) -> str:
    """What the policy of an iteration is called."""
    return f"π{iteration}"


def judge_title(judge: str, is_sum: bool = False) -> str:
    """What a judge is called on the page."""
    if judge == MAIN:
        return "sum of judges" if is_sum else "training judge"
    return judge


def number(value: float | None, form: str) -> str:
    """A number as text; a dash for one that is unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, form)


def rate(found: tuple[float | None, float | None, float | None]) -> str:
    """A win rate with its interval."""
    mean, low, high = found
    if mean is None or low is None or high is None or not math.isfinite(mean):
        return "–"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def headline(trend: Trend) -> list[tuple[str, list[list[str]]]]:
    """Groups of lines, a cell for each policy in each: what the page's first table shows.

    Example:
        [("training judge", [["mean", "-0.266", "+0.618"], …]), ("responses", [["tokens", "6.1", "5.4"], …])]
    """
    groups = [(judge, _judge_lines(trend, judge)) for judge in trend.judges]
    groups.append(("responses", _response_lines(trend.rows)))
    groups.append(("training pairs", _pair_lines(trend)))
    return groups


def _judge_lines(trend: Trend, judge: str) -> list[list[str]]:
    """What one judge says of every policy."""
    num_responses = trend.policies[0].scores[judge].shape[1]
    form = ".3f" if judge == GOLD else "+.3f"
    spreads = [spread_of(policy.scores[judge]) for policy in trend.policies]
    lines = [
        ["mean", *[number(spread.mean, form) for spread in spreads]],
        [f"best of {num_responses}", *[number(spread.best, form) for spread in spreads]],
        [f"worst of {num_responses}", *[number(spread.worst, form) for spread in spreads]],
    ]
    against_initial, against_previous = ["–"], ["–"]
    for place in range(1, len(trend.rows)):
        against_initial.append(rate(_against(trend, judge, place, 0)))
        against_previous.append(rate(_against(trend, judge, place, place - 1)))
    lines.append(["win rate vs π0", *against_initial])
    if len(trend.rows) > 2:
        lines.append(["win rate vs previous", *against_previous])
    return lines


def _against(
    trend: Trend, judge: str, place: int, opponent: int
) -> tuple[float | None, float | None, float | None]:
    """A policy's win rate against another one, by a judge; against π0 as the run's own table has it."""
    row = trend.rows[place]
    if opponent == 0 and judge != GOLD:
        verdict = row if judge == MAIN else row.judges[judge]
        return verdict.win_rate, verdict.win_rate_low, verdict.win_rate_high
    ours = _scores(trend.evaluations[place], judge)
    theirs = _scores(trend.evaluations[opponent], judge)
    return win_rate(ours, theirs)


def _scores(evaluation: Evaluation, judge: str) -> dict[str, list[float]]:
    if judge == MAIN:
        return scores_by_prompt(evaluation.scores)
    if judge == GOLD and evaluation.gold is not None:
        return scores_by_prompt(evaluation.gold)
    return scores_by_prompt(evaluation.others[judge])


def _response_lines(rows: Sequence[Row]) -> list[list[str]]:
    distance = "KL to π0" if rows[0].log_ratio is None else "log π/π0"
    lines = [
        ["tokens", *[number(row.mean_response_tokens, ".1f") for row in rows]],
        ["cut at the limit", *[f"{row.truncated:.1%}" for row in rows]],
        [distance, *[number(row.distance, ".2f") for row in rows]],
    ]
    if any(row.disagreement is not None for row in rows):
        lines.append(["judges disagree", *[number(row.disagreement, ".1%") for row in rows]])
    left_out = [", ".join(f"{count} of {name}" for name, count in row.left_out.items()) for row in rows]
    if any(left_out):
        lines.append(["left out, not finite", *[text or "–" for text in left_out]])
    return lines


def _pair_lines(trend: Trend) -> list[list[str]]:
    """How many pairs each policy was trained on, of how many prompts, and what was dropped."""
    pairs, yields, drops = [], [], []
    for row, evaluation in zip(trend.rows, trend.evaluations, strict=True):
        pairs.append(number(row.pairs, ",d"))
        counts = evaluation.pair.counts if evaluation.pair is not None else {}
        share = None
        if counts.get("prompts"):
            share = counts.get("prompts_with_pairs", 0) / counts["prompts"]
        yields.append(number(share, ".1%"))
        drops.append(", ".join(f"{reason} {count}" for reason, count in sorted(row.dropped.items())) or "–")
    return [["pairs", *pairs], ["prompts with a pair", *yields], ["dropped", *drops]]


def why_best(trend: Trend) -> tuple[int, str]:
    """The place of the best policy, and a sentence that says why, and how sure that is."""
    place = best(trend.rows)
    row = trend.rows[place]
    name = policy_name(row.iteration)
    if not math.isfinite(row.mean_score):
        return place, "No policy has a finite score on the held-out prompts: π0 is best for want of another."
    text = f"{name} is the best policy: it has the highest mean held-out score, {row.mean_score:+.3f}"
    others = [other for other in trend.rows if other is not row and math.isfinite(other.mean_score)]
    if not others:
        return place, f"{text}; there is no other yet."
    second = max(others, key=lambda other: other.mean_score)
    opponent = trend.rows.index(second)
    text = f"{text}; next is {policy_name(second.iteration)} with {second.mean_score:+.3f}."
    found = win_rate(_scores(trend.evaluations[place], MAIN), _scores(trend.evaluations[opponent], MAIN))
    text += f" Against that one it wins {rate(found)} of the comparisons (95 % interval)"
    if found[1] <= 0.5:
        return place, f"{text}, so the two cannot be told apart."
    return place, f"{text}."


def score_spread(trend: Trend, judge: str, is_sum: bool) -> Plot:
    """How a judge's scores of each policy are spread."""
    groups = {policy_name(policy.iteration): policy.scores[judge].ravel() for policy in trend.policies}
    rows, outside = histogram(groups)
    title = f"Scores by the {judge_title(judge, is_sum)}"
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
        for index in rng.permutation(known)[:_POINTS].tolist():
            points.append({"group": name, "x": float(tokens[index]), "y": _rounded(scores[index])})
        if found:
            for end in np.quantile(tokens[known], [0.01, 0.99]).tolist():
                lines.append({"group": name, "x": end, "y": _rounded(found.intercept + found.slope * end)})
    title = f"Score of the {judge_title(judge, is_sum)} against length"
    caption = (
        "A slope that grows from policy to policy says that the judge is won by length. Lines and figures are "
        f"of all responses, points of at most {_POINTS} of each policy."
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
    for place in range(1, len(trend.rows)):
        for judge, title in zip(trend.judges, titles, strict=True):
            mean, low, high = _against(trend, judge, place, place - 1 if previous else 0)
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
    title = f"Distance to π0 against the {judge_title(judge, is_sum)}"
    caption = (
        "A judge that falls where the one that trains rises says that the latter is being exploited: take the "
        f"iterate before. {distance_text(trend.rows)}."
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
        f"Share of a prompt's pairs of responses that the other judge orders the other way round than the {main}; "
        "ties do not count. At 0.5 the two have nothing to do with each other."
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
        if iteration is None or not name.endswith("/dpo"):
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
        spec = plots.curve(rows, groups, key, axis, f"{title} over {start} steps of all iterations")
        curves.append(Plot(f"training-{key}", title, "", spec))
    return curves, notes


def _thinned(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `_STEPS` of an iteration's steps; where there are more, means of as many as stand side by side."""
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
    margins = {f"iteration {each.iteration}": each.margins for each in pairs}
    longer = {f"iteration {each.iteration}": each.chosen_chars - each.rejected_chars for each in pairs}
    table = [["", "pairs", "mean margin", "chosen, characters", "rejected, characters"]]
    for each in pairs:
        means = [each.margins, each.chosen_chars, each.rejected_chars]
        mean = [float(values.mean()) if len(values) else None for values in means]
        line = [number(mean[0], ".3f"), number(mean[1], ".1f"), number(mean[2], ".1f")]
        table.append([f"iteration {each.iteration}", f"{len(each.margins):,}", *line])
    margin_rows, _ = histogram(margins)
    longer_rows, _ = histogram(longer)
    groups = list(margins)
    margin_spec = plots.spread_lines(
        margin_rows, groups, "margin", "How the margins of training pairs are spread, by iteration"
    )
    longer_spec = plots.spread_lines(
        longer_rows,
        groups,
        "characters, chosen − rejected",
        "How much longer chosen responses are than rejected ones, by iteration",
    )
    return [
        Plot(
            "margins",
            "Margins of the training pairs",
            "Score of the chosen response less that of the rejected one, as pairs were selected.",
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
    seconds: dict[tuple[str, str], float] = {}
    tokens: dict[str, int] = {}
    for name, artifact in run.artifacts.items():
        iteration = iteration_of(name)
        where = _BEFORE if iteration is None else f"iteration {iteration}"
        stage = _stage_title(name)
        seconds[where, stage] = seconds.get((where, stage), 0.0) + artifact.record.get("seconds", 0)
        tokens[stage] = tokens.get(stage, 0) + artifact.counts.get("response_tokens", 0)
    total = sum(seconds.values())
    if not total:
        return None
    by_stage: dict[str, float] = {}
    for (_, stage), spent in seconds.items():
        by_stage[stage] = by_stage.get(stage, 0.0) + spent
    # The dearest first; what is beyond the palette is summed.
    stages = sorted(by_stage, key=lambda stage: by_stage[stage], reverse=True)
    shown = stages[:7]
    summed: dict[tuple[str, str], float] = {}
    for (where, stage), spent in seconds.items():
        group = stage if stage in shown else "others"
        summed[where, group] = summed.get((where, group), 0.0) + spent
    groups = [*shown, "others"] if len(stages) > len(shown) else shown
    rows = [
        {"where": where, "group": group, "seconds": round(spent, 2), "place": groups.index(group)}
        for (where, group), spent in summed.items()
    ]
    table = [["stage", "seconds", "share", "response tokens", "tokens/s"]]
    for stage in stages:
        per_second = tokens[stage] / by_stage[stage] if tokens[stage] and by_stage[stage] else None
        line = [f"{by_stage[stage]:,.1f}", f"{by_stage[stage] / total:.1%}"]
        table.append([stage, *line, number(tokens[stage] or None, ",d"), number(per_second, ",.0f")])
    caption = (
        f"{total:,.0f} seconds of finished stages, all their attempts together. Tokens are those sampled."
    )
    description = f"Seconds of each stage by iteration; the most went into {stages[0]}"
    spec = plots.bars(rows, groups, ("seconds", "seconds"), ("where", ""), description)
    return Plot("seconds", "Where the time went", caption, spec, table)


def _stage_title(name: str) -> str:
    """A stage's name without its iteration: what belongs together over all of them."""
    return "/".join(part for part in name.split("/") if not part.startswith("iteration_"))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
