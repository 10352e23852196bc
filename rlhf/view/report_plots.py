"""The plots of a report, as Vega-Lite specifications: plain data, drawn in the reader's browser.

No colour stands here but by its number: the page has a palette for light and one for dark surroundings, both
of colours that people who confuse some can tell apart. Where lines cross, dashes tell them apart too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HEIGHT = 230
"""Pixels of a plot."""
_NUM_COLOURS = 8
"""Of the page's palette (`--plot-1` and so on, in its style sheet)."""


@dataclass(frozen=True)
class Plot:
    """One figure: `caption` says how to read it, `table` has the numbers that a picture only hints at (heads,
    then rows).
    """

    key: str
    title: str
    caption: str
    spec: dict[str, Any]
    table: list[list[str]] = field(default_factory=list)
    is_wide: bool = False


def _plain(values: Sequence[dict[str, Any]], description: str, **parts: Any) -> dict[str, Any]:
    """A specification; `description` is what a screen reader says."""
    return {
        "description": description,
        "data": {"values": list(values)},
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        **parts,
    }


def _number(name: str, title: str, *, zero: bool = False, **more: Any) -> dict[str, Any]:
    """An axis of numbers, from 0 where the distance from it means something."""
    return {"field": name, "type": "quantitative", "title": title, "scale": {"zero": zero}, **more}


def _colour(name: str, groups: Sequence[str], title: str | None = None) -> dict[str, Any]:
    """A colour for each group, in the order given; more of them than the palette has make a ramp.

    The first colour is π0's alone, so that iteration t has the colour of π_t everywhere.
    """
    if len(groups) > _NUM_COLOURS:
        kind, scale = "ordinal", {"domain": list(groups)}
    else:
        # Without π0 (training curves) the first group is π1, and has the second colour all the same.
        first = 1 if groups and groups[0] == "π0" else 2
        numbers = [(first + place - 1) % _NUM_COLOURS + 1 for place in range(len(groups))]
        kind, scale = (
            "nominal",
            {"domain": list(groups), "range": [f"var(--plot-{each})" for each in numbers]},
        )
    return {"field": name, "type": kind, "title": title, "scale": scale}


def _dash(name: str, groups: Sequence[str], title: str | None = None) -> dict[str, Any]:
    return {"field": name, "type": "nominal", "title": title, "scale": {"domain": list(groups)}}


def spread_lines(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[str],
    x_title: str,
    description: str,
    what: str | None = None,
) -> dict[str, Any]:
    """Lines of how values are spread: rows of `rlhf.view.report_numbers.histogram`; `what` groups are."""
    middles = [row | {"middle": (row["from"] + row["to"]) / 2} for row in rows]
    tooltip = [
        {"field": "group", "title": "of"},
        {"field": "from", "format": ".4~g"},
        {"field": "to", "format": ".4~g"},
        {"field": "share", "format": ".1%"},
    ]
    encoding = {
        # A step around the middle of each bin: both of its ends would be two points.
        "x": _number("middle", x_title),
        "y": _number("share", "share", zero=True, axis={"format": "%"}),
        "color": _colour("group", groups, what),
        "strokeDash": _dash("group", groups, what),
        "tooltip": tooltip,
    }
    mark = {"type": "line", "interpolate": "step", "strokeWidth": 2}
    return _plain(middles, description, mark=mark, encoding=encoding)


def points_with_lines(
    points: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    groups: Sequence[str],
    titles: tuple[str, str],
    description: str,
) -> dict[str, Any]:
    """Points of several groups and a straight line through each; both have `group`, `x` and `y`."""
    axes = {"x": _number("x", titles[0]), "y": _number("y", titles[1])}
    cloud = {
        "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.35},
        "encoding": {**axes, "color": _colour("group", groups)},
    }
    through = {
        "data": {"values": list(lines)},
        "mark": {"type": "line", "strokeWidth": 3},
        "encoding": {**axes, "color": _colour("group", groups), "strokeDash": _dash("group", groups)},
    }
    return _plain(points, description, layer=[cloud, through])


def rates(rows: Sequence[dict[str, Any]], groups: Sequence[str], description: str) -> dict[str, Any]:
    """Win rates over iterations with their intervals: rows have `policy`, `judge`, `rate`, `low`, `high`."""
    x = {"field": "policy", "type": "ordinal", "title": None, "axis": {"labelAngle": 0}, "sort": None}
    colour = _colour("judge", groups)
    offset = {"field": "judge", "scale": {"domain": list(groups)}}
    tooltip = [
        {"field": "policy"},
        {"field": "judge"},
        {"field": "rate", "title": "win rate", "format": ".3f"},
        {"field": "low", "title": "95 % from", "format": ".3f"},
        {"field": "high", "title": "to", "format": ".3f"},
    ]
    intervals = {
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {
            "x": x,
            "xOffset": offset,
            "y": _number("low", "win rate"),
            "y2": {"field": "high"},
            "color": colour,
        },
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
            "x": x,
            "xOffset": offset,
            "y": _number("rate", "win rate"),
            "color": colour,
            "shape": _dash("judge", groups),
            "tooltip": tooltip,
        },
    }
    coin = {
        "data": {"values": [{"even": 0.5}]},
        "mark": {"type": "rule", "strokeDash": [4, 4]},
        "encoding": {"y": {"field": "even", "type": "quantitative"}},
    }
    return _plain(rows, description, layer=[coin, intervals, points])


def frontier(rows: Sequence[dict[str, Any]], distance: str, description: str) -> dict[str, Any]:
    """The way of policies between distance to π0 and score: rows have `policy`, `place` in the order of
    iterations, `distance`, `score`.
    """
    axes = {"x": _number("distance", distance, zero=True), "y": _number("score", "mean score")}
    axes["y"]["scale"]["padding"] = 20  # pixels, for the policies' names
    way = {
        "mark": {"type": "line", "point": {"size": 60, "filled": True}, "strokeWidth": 1.5},
        "encoding": {
            **axes,
            "order": {"field": "place"},
            "tooltip": [
                {"field": "policy"},
                {"field": "distance", "format": ".3f"},
                {"field": "score", "format": ".3f"},
            ],
        },
    }
    names = {
        "mark": {"type": "text", "dy": -10, "dx": 6, "align": "left", "fontSize": 12},
        "encoding": {**axes, "text": {"field": "policy"}},
    }
    return _plain(rows, description, layer=[way, names])


def curve(
    rows: Sequence[dict[str, Any]], groups: Sequence[str], name: str, title: str, description: str
) -> dict[str, Any]:
    """One figure of training over all iterations' steps: rows have `step`, `iteration` and the figure."""
    encoding = {
        "x": _number("step", "optimizer step, over all iterations", zero=True),
        "y": _number(name, title),
        "color": _colour("iteration", groups, "iteration"),
        "tooltip": [
            {"field": "iteration"},
            {"field": "step"},
            {"field": name, "title": title, "format": ".4~g"},
        ],
    }
    mark = {"type": "line", "strokeWidth": 1.5}
    values = [{"step": row["step"], "iteration": row["iteration"], name: row.get(name)} for row in rows]
    return _plain(values, description, mark=mark, encoding=encoding)


def bars(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[str],
    value: tuple[str, str],
    per: tuple[str, str],
    description: str,
    stacked: bool = True,
) -> dict[str, Any]:
    """Horizontal bars, one for each `per`, in parts by `group`.

    Args:
        rows: with a `group`, and the fields that the next two name.
        groups: in the order of their colours.
        value: the field of a bar's length, and its title.
        per: the field that makes a bar, and its title.
        description: for screen readers.
        stacked: whether parts of a bar lie one behind the other, or side by side.
    """
    encoding: dict[str, Any] = {
        "y": {"field": per[0], "type": "ordinal", "title": per[1] or None, "sort": None},
        "x": _number(value[0], value[1], zero=True),
        "color": _colour("group", groups),
        "tooltip": [
            {"field": per[0], "title": per[1] or "of"},
            {"field": "group", "title": "part"},
            {"field": value[0], "title": value[1], "format": ".4~g"},
        ],
    }
    if stacked:
        encoding["order"] = {"field": "place"}
    else:
        encoding["yOffset"] = {"field": "group", "scale": {"domain": list(groups)}}
    num_bars = len({row[per[0]] for row in rows}) * (1 if stacked else len(groups))
    height = num_bars * (30 if stacked else 20)
    return _plain(rows, description, mark={"type": "bar"}, encoding=encoding) | {"height": height}
