"""A comparison as one HTML file: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlhf.errors import one_line
from rlhf.loop.figure_text import number
from rlhf.view.pareto import Front, Point
from rlhf.view.section import Section
from rlhf.view.side_by_side import Comparison

GENERATOR = '<meta name="generator" content="rlhf.compare">'
"""By this a file is known as one of ours, which may be written anew."""
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #5a5a5a; --line: #c9c9c9; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --soft: #a8a8a8; --line: #4a4a4a; --back: #16181b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 1.5rem;
  max-width: 75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; unicode-bidi: isolate; white-space: nowrap; }
.long { min-width: 14rem; white-space: normal; overflow-wrap: anywhere; } .right { text-align: right; }
p { margin: 0.5rem 0; color: var(--soft); overflow-wrap: anywhere; unicode-bidi: isolate; }
svg { width: 100%; min-width: 32rem; max-width: 42rem; height: auto; }
svg text { font-size: 13px; fill: var(--text); }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); stroke-dasharray: 2 4; }
.front { fill: none; stroke: var(--soft); stroke-width: 1.5; }
@media print { :root { --text: #000; --soft: #333; --line: #999; --back: #fff; } body { margin: 0; }
  section { break-inside: avoid; } .table { overflow: visible; } }
"""
_LONG = 32
"""Characters of a cell, beyond which it is broken into lines: also on a phone never into narrow ones."""
# Okabe and Ito's, which stay apart for the colour-blind; the letter beside each point says the run as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT, _LEFT, _FLOOR, _TOP, _MARGIN = 640, 400, 70, 350, 34, 20
"""Of the drawing, in its own units: its size, where its lines begin and end, the space on the right."""

_NAME_WIDTH, _NAME_HEIGHT = 34, 14
_BESIDE = ((8, -6, "start"), (8, 14, "start"), (-8, -6, "end"), (-8, 14, "end"))
"""Where a point's name may stand: so far to the right and down, and which end of it is there."""


def page_of(comparison: Comparison) -> str:
    """The whole file."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        GENERATOR,
        f"<title>Comparison of {len(comparison.runs)} runs</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>Comparison of {len(comparison.runs)} runs</h1>",
    ]
    for section in comparison.sections:
        parts.append(_section_html(section))
    if comparison.front.points:
        parts.append(_scatter(comparison.front, [run.letter for run in comparison.runs]))
    return "\n".join([*parts, "</body>\n</html>\n"])


def _text(text: str) -> str:
    """Any text as HTML that shows it and does nothing else, marks that turn the direction of writing too."""
    return escape(one_line(text))


def _section_html(section: Section) -> str:
    parts = [f"<section>\n<h2>{_text(section.title)}</h2>"]
    if section.rows:
        heads = [_cell("th", head, head in section.right, ' scope="col"') for head in section.heads]
        parts.append(
            f'<div class="table" tabindex="0"><table>\n<thead><tr>{"".join(heads)}</tr></thead>\n<tbody>'
        )
        for row in section.rows:
            cells = []
            for head, text in zip(section.heads, row, strict=True):
                cells.append(_cell("td", text, head in section.right))
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</tbody></table></div>")
    for note in section.notes:
        parts.append(f"<p>{_text(note)}</p>")
    return "\n".join([*parts, "</section>"])


def _cell(tag: str, text: str, is_right: bool, more: str = "") -> str:
    classes = ["right"] if is_right else []
    if len(text) > _LONG:
        classes.append("long")
    named = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{more}{named}>{_text(text)}</{tag}>"


class _Scale:
    """Places figures on a line of the drawing, with a margin around the smallest and the largest."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low = min(values)
        high = max(values)
        # One figure alone stands in the middle of some.
        margin = 0.08 * ((high - low) or abs(high) or 1.0)
        self.low = low - margin
        self.high = high + margin
        self._start = start
        self._end = end

    def place(self, value: float) -> float:
        """Where a figure stands, in units of the drawing."""
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Five figures, evenly apart."""
        return [self.low + share / 4 * (self.high - self.low) for share in range(5)]


def _scatter(front: Front, letters: Sequence[str]) -> str:
    """Every policy as a point, KL to the right and the figure upwards; those on the front are joined."""
    across = _Scale([point.kl for point in front.points], _LEFT, _WIDTH - _MARGIN)
    up = _Scale([point.value for point in front.points], _FLOOR, _TOP)
    figure = _text(front.figure)
    title = f"{figure} against KL to π0 in nats per response, of {len(front.points)} policies"
    parts = [
        f"<section>\n<h2>{title}</h2>",
        '<div class="table" tabindex="0">',
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}; the table has the figures">',
        *_grid(across, up),
        _label(_WIDTH / 2, _HEIGHT - 8, "KL to π0", "middle"),
        _label(8, 16, figure, "start"),
    ]
    best = sorted((point for point in front.points if _on(front, point)), key=lambda point: point.kl)
    corners = [f"{across.place(point.kl):.1f},{up.place(point.value):.1f}" for point in best]
    parts.append(f'<polyline class="front" points="{" ".join(corners)}"/>')
    taken: list[tuple[float, float]] = []
    for point in front.points:
        x = across.place(point.kl)
        y = up.place(point.value)
        parts.append(_circle(point, x, y, letters.index(point.letter), _on(front, point), figure))
        parts += _name(point, x, y, taken)
    return "\n".join([*parts, "</svg></div>\n</section>"])


def _grid(across: _Scale, up: _Scale) -> list[str]:
    """Dotted lines with their figures."""
    parts = []
    for tick in across.ticks():
        x = across.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_FLOOR}"/>')
        parts.append(_label(x, _FLOOR + 18, number(tick, ".3g"), "middle"))
    for tick in up.ticks():
        y = up.place(tick)
        right = _WIDTH - _MARGIN
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(_label(_LEFT - 8, y + 4, number(tick, ".3g"), "end"))
    return parts


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _on(front: Front, point: Point) -> bool:
    return (point.letter, point.iteration) in front.best


def _circle(point: Point, x: float, y: float, run: int, is_best: bool, figure: str) -> str:
    """Filled on the front, empty elsewhere; a pointer that rests on it is told the figures."""
    colour = _COLOURS[run % len(_COLOURS)]
    fill = colour if is_best else "none"
    name = f"{point.letter} π{point.iteration}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2">'
        f"<title>{name}: KL {point.kl:.2f}, {figure} {point.value:+.3f}</title></circle>"
    )


def _name(point: Point, x: float, y: float, taken: list[tuple[float, float]]) -> list[str]:
    """Which policy of which run a point is, where there is room beside it; `taken` holds the places of the
    names before.
    """
    name = f"{point.letter} π{point.iteration}"
    for right, down, anchor in _BESIDE:
        left = x + right
        if anchor == "end":
            left -= _NAME_WIDTH
        top = y + down
        if any(_overlap(left, top, *other) for other in taken):
            continue
        taken.append((left, top))
        return [_label(x + right, top, name, anchor)]
    return []


def _overlap(left: float, top: float, other_left: float, other_top: float) -> bool:
    """Whether two names would stand over each other."""
    is_beside = abs(left - other_left) > _NAME_WIDTH
    is_below = abs(top - other_top) > _NAME_HEIGHT
    return not (is_beside or is_below)
