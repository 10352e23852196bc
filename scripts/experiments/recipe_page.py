"""What `which_recipe.py` writes: the tables of its part of docs/results.md, and the picture beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import vl_convert
from recipe_rows import BASE, FIRST_RATES, LADDER, RECIPES, Done, gold, greedy, tried
from seed_statistics import interval, minus, verdict

from rlhf.data.shards import write_atomic

BEGIN = "<!-- recipes: written by scripts/experiments/which_recipe.py -->"
END = "<!-- recipes: end -->"
PICTURE = "recipes.svg"
NOTHING = "No seed is finished by all recipes yet."
UNDECIDED = "no difference shown"
ONE_SEED = "one seed tells nothing"
FIRST_GRID_SEED = 101
"""Seeds from here on choose rates, and stand in no other table."""
POINTS = 100
"""Gold is shown in points of 100."""
Row = dict[str, Any]


def write_page(page: Path, done: Done, recipes: Sequence[str]) -> None:
    """Put the tables between the marks of a page, or at the end of one without, and the picture beside it."""
    put(page, tables(done, recipes))
    by_recipe = compared(done, recipes)
    if by_recipe:
        svg: str = vl_convert.vegalite_to_svg(picture(by_recipe))
        write_atomic(page.with_name(PICTURE), svg.encode())


def put(page: Path, text: str) -> None:
    """Write a text between the marks of a page; nothing else of it is touched."""
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, mark, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if mark else "\n"
    if not mark and before:
        before = before.rstrip("\n") + "\n\n"
    write_atomic(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}".encode())


def compared(done: Done, recipes: Sequence[str]) -> dict[str, list[Row]]:
    """Each recipe's runs on the seeds that all recipes have finished, in order of seeds; {} without any.

    Only those make a fair table: seeds differ more than recipes do.
    """
    runs: dict[str, dict[int, Row]] = {recipe: {} for recipe in recipes}
    for row in done.rows:
        if row["seed"] < FIRST_GRID_SEED and row["recipe"] in runs:
            # Of a recipe whose rate was chosen anew, the last run counts.
            runs[row["recipe"]][row["seed"]] = row
    seeds = sorted(set.intersection(*(set(of_recipe) for of_recipe in runs.values())))
    if not seeds:
        return {}
    return {recipe: [of_recipe[seed] for seed in seeds] for recipe, of_recipe in runs.items()}


def tables(done: Done, recipes: Sequence[str]) -> str:
    """All of it, as Markdown."""
    by_recipe = compared(done, recipes)
    parts = [] if by_recipe else [NOTHING]
    if by_recipe:
        num_seeds = len(by_recipe[BASE])
        parts += [
            _over(num_seeds),
            levels_table(by_recipe),
            f"The same against plain DPO, paired by seed ({num_seeds}):",
            differences_table(by_recipe),
            f"![Gold against KL, every policy of every recipe: means over seeds]({PICTURE})",
        ]
    both_arms = compared(done, [BASE, "offline"])
    if both_arms:
        parts += [
            f"Online against offline, over what both have ({_seeds(len(both_arms[BASE]))}):",
            main_table(both_arms),
        ]
    seeds = sorted({row["seed"] for row in done.rows if row["seed"] >= FIRST_GRID_SEED})
    if seeds:
        parts += [
            f"How rates were chosen: gold of the last policy, mean of sampled and greedy, on "
            f"{_seeds(len(seeds))} that no other table has; the best in bold.",
            rates_table(done, recipes, seeds),
        ]
    if done.rows:
        parts.append(cost_line(done))
    return "\n\n".join(parts)


def advice(done: Done, recipes: Sequence[str]) -> str:
    """What to use when, by the figures alone: the best of each kind, and what may be as good."""
    by_recipe = compared(done, recipes)
    if not by_recipe:
        return NOTHING
    lines = [
        f"In the quickstart's world, over {_seeds(len(by_recipe[BASE]))} ([results.md](results.md)):",
        "",
        cells("you want", "take", "not told apart from it"),
        "|---|---|---|",
        cells("the best samples at T = 1", *_best_by(by_recipe, gold)),
        cells("the best greedy answers", *_best_by(by_recipe, greedy)),
        cells("much gold close to π0", ", ".join(RECIPES[recipe].title for recipe in front(by_recipe)), "–"),
        "",
        "The last line has every recipe that no other one beats in gold at T = 1 and in KL both.",
    ]
    return "\n".join(lines)


def _best_by(by_recipe: dict[str, list[Row]], figure: Callable[[Row], float]) -> tuple[str, str]:
    """The recipe with the highest mean, with it, and the recipes whose difference to it may be chance."""
    values = {recipe: [figure(row) for row in rows] for recipe, rows in by_recipe.items()}
    means = {recipe: fmean(of_recipe) for recipe, of_recipe in values.items()}
    best = max(means, key=means.__getitem__)
    alike = []
    for recipe in values:
        is_told_apart = better_or_worse(minus(values[best], values[recipe])) not in (UNDECIDED, ONE_SEED)
        if recipe == best or is_told_apart:
            continue
        behind = POINTS * (means[recipe] - means[best])
        alike.append(f"{RECIPES[recipe].title} ({behind:+.1f})")
    points = POINTS * means[best]
    return f"{RECIPES[best].title}: {points:.1f}", ", ".join(alike) or "–"


def front(by_recipe: dict[str, list[Row]]) -> list[str]:
    """Recipes whose last policy no other one's beats in mean gold and KL both, the closest to π0 first."""
    points = {
        recipe: (fmean(last(rows, "kl")), fmean(gold(row) for row in rows))
        for recipe, rows in by_recipe.items()
    }
    kept = []
    for recipe, (kl, value) in sorted(points.items(), key=lambda item: item[1]):
        others = [point for other, point in points.items() if other != recipe]
        if not any(_beats(other, (kl, value)) for other in others):
            kept.append(recipe)
    return kept


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Whether a (KL, gold) is as good in both figures as another, and better in one."""
    return other != point and other[0] <= point[0] and other[1] >= point[1]


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _over(num_seeds: int) -> str:
    if num_seeds == 1:
        return "**One seed so far**: no interval, so nothing is shown yet. Gold is in points of 100."
    return f"Means and 95 % intervals over {num_seeds} seeds; gold is in points of 100."


def cells(*values: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(values)} |"


def spread(values: Sequence[float], scale: float = 1, digits: int = 1, sign: str = "") -> str:
    """Mean and interval; of one value it alone.

    Example:
        "45.1 [41.0, 49.2]"
    """
    mean, half = (scale * value for value in interval(values))
    form = f"{sign}.{digits}f"
    if math.isnan(half):
        return f"{mean:{form}}"
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def last(rows: Sequence[Row], key: str, iteration: int = -1) -> list[float]:
    """One figure of a policy in each run."""
    return [row["policies"][iteration][key] for row in rows]


def total(rows: Sequence[Row], key: str) -> float:
    """The mean over runs of what all iterations have of something together."""
    return fmean(sum(policy[key] for policy in row["policies"][1:]) for row in rows)


def levels_table(by_recipe: dict[str, list[Row]]) -> str:
    """How good each recipe's last policy is, and how far from π0."""
    lines = [
        cells(
            "recipe", "rate", "gold, T = 1", "gold, greedy", "KL", "tokens", "judge's score", "pairs", "steps"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    start = by_recipe[BASE]
    lines.append(
        cells(
            *("π0", "–"),
            spread([gold(row, 0) for row in start], POINTS),
            spread([greedy(row, 0) for row in start], POINTS),
            *("0.00", f"{fmean(last(start, 'mean_response_tokens', 0)):.1f}"),
            f"{fmean(last(start, 'mean_score', 0)):+.2f}",
            *("–", "–"),
        )
    )
    for recipe, rows in by_recipe.items():
        pairs = "–" if rows[0]["policies"][-1]["pairs"] is None else f"{total(rows, 'pairs'):.0f}"
        lines.append(
            cells(
                *(RECIPES[recipe].title, f"{rows[-1]['rate']:g}"),
                spread([gold(row) for row in rows], POINTS),
                spread([greedy(row) for row in rows], POINTS),
                spread(last(rows, "kl"), digits=2),
                f"{fmean(last(rows, 'mean_response_tokens')):.1f}",
                f"{fmean(last(rows, 'mean_score')):+.2f}",
                *(pairs, f"{total(rows, 'steps'):.0f}"),
            )
        )
    return "\n".join(lines)


def differences_table(by_recipe: dict[str, list[Row]]) -> str:
    """Every recipe minus plain DPO: what is beyond chance."""
    lines = [cells("recipe", "gold, T = 1", "", "gold, greedy", "", "KL"), "|---|---|---|---|---|---|"]
    base = by_recipe[BASE]
    for recipe, rows in by_recipe.items():
        if recipe == BASE:
            continue
        line = [RECIPES[recipe].title]
        for figure in (gold, greedy):
            differences = minus([figure(row) for row in rows], [figure(row) for row in base])
            line += [spread(differences, POINTS, sign="+"), better_or_worse(differences)]
        line.append(spread(minus(last(rows, "kl"), last(base, "kl")), digits=2, sign="+"))
        lines.append(cells(*line))
    return "\n".join(lines)


def better_or_worse(differences: Sequence[float]) -> str:
    """What an interval says: it must have 0 outside."""
    mean, half = interval(differences)
    if math.isnan(half):
        return ONE_SEED
    if mean - half > 0:
        return "**better**"
    if mean + half < 0:
        return "**worse**"
    return UNDECIDED


def main_table(arms: dict[str, list[Row]]) -> str:
    """The paper's main claim, with every seed's difference."""
    figures: dict[str, Callable[[Row], float]] = {"sampled at T = 1": gold, "greedy": greedy}
    lines = [cells("claim", "mean", "each seed", "holds"), "|---|---|---|---|"]
    for how, figure in figures.items():
        online, offline = ([figure(row) for row in arms[arm]] for arm in (BASE, "offline"))
        differences = minus(online, offline)
        lines.append(
            cells(
                f"online > offline, {how}",
                spread(differences, POINTS, sign="+"),
                ", ".join(f"{POINTS * value:+.1f}" for value in differences),
                verdict(*interval(differences)),
            )
        )
    return "\n".join(lines)


def rates_table(done: Done, recipes: Sequence[str], seeds: Sequence[int]) -> str:
    """What every rate gave on the seeds that chose it; rates that only some seeds have are left out."""
    found = {recipe: tried(recipe, seeds, done) for recipe in recipes}
    shown = [rate for rate in LADDER if rate in FIRST_RATES or any(rate in of for of in found.values())]
    lines = [cells("recipe", *(f"{rate:g}" for rate in shown)), "|---" * (len(shown) + 1) + "|"]
    for recipe, of_recipe in found.items():
        best = max(of_recipe.values(), default=0.0)
        values = []
        for rate in shown:
            value = of_recipe.get(rate)
            text = "–" if value is None else f"{POINTS * value:.1f}"
            values.append(f"**{text}**" if value == best else text)
        lines.append(cells(RECIPES[recipe].title, *values))
    return "\n".join(lines)


def cost_line(done: Done) -> str:
    """What the runs took."""
    seconds = [row["processor_seconds"] for row in done.rows]
    return f"{len(seconds)} runs in all, {sum(seconds) / 60:.0f} minutes of one core."


def picture(by_recipe: dict[str, list[Row]]) -> dict[str, Any]:
    """The Vega-Lite spec of gold against KL: a line per recipe, from π0 to its last policy."""
    values = []
    for recipe, rows in by_recipe.items():
        for iteration in range(len(rows[0]["policies"])):
            mean, half = interval(last(rows, "gold_accuracy", iteration))
            is_last = iteration == len(rows[0]["policies"]) - 1
            point = {
                "recipe": RECIPES[recipe].title,
                "iteration": iteration,
                "kl": fmean(last(rows, "kl", iteration)),
                "gold": POINTS * mean,
            }
            if is_last and not math.isnan(half):
                point |= {"low": POINTS * (mean - half), "high": POINTS * (mean + half)}
            values.append(point)
    titles = [RECIPES[recipe].title for recipe in by_recipe]
    colour = {
        "field": "recipe",
        "type": "nominal",
        "sort": titles,
        "title": None,
        "scale": {"scheme": "tableau10"},
    }
    x = {"field": "kl", "type": "quantitative", "title": "KL to π0, nats per response"}
    y = {
        "field": "gold",
        "type": "quantitative",
        "title": "gold at T = 1, points of 100",
        "scale": {"zero": False},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        # The names at the right are wider than Vega takes them for without a browser.
        "padding": {"left": 5, "top": 5, "right": 60, "bottom": 5},
        "width": 560,
        "height": 380,
        "data": {"values": values},
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"y": y, "order": {"field": "iteration"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {"y": y, "shape": {**colour, "scale": {}, "legend": None}},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "opacity": 0.4},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
        ],
    }
