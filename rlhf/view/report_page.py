"""A page of HTML that holds all it needs and asks no network: how its parts are put together.

Whatever comes out of a run is text: `tag` escapes it where it is put into markup, and data travels as JSON in
which no character can end the script around it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.errors import printable

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end a script, or begin a comment in one; JSON has these characters in texts alone."""


class Html(str):
    """Markup that may stand as it is; every other text is escaped."""


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, or anything else as text.
        attributes: `class_` is `class`, `aria_label` is `aria-label`; None and False are left out, True has
            no value.

    Example:
        tag("td", "<b>", class_="name") gives '<td class="name">&lt;b&gt;</td>'
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(printable(str(value)))}"')
    start = f"<{name}{''.join(written)}>"
    if name == "input":  # which has no end
        return Html(start)
    return Html(f"{start}{joined(children)}</{name}>")


def escaped(text: object) -> Html:
    """Text as markup; markup stays what it is."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(printable(str(text))))


def joined(parts: Iterable[object]) -> Html:
    """Parts of markup, one after the other."""
    return Html("".join(map(escaped, parts)))


def table(
    heads: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", class_: str | None = None
) -> Html:
    """A table with a line of heads; a cell that is no element becomes one."""
    head = tag("thead", tag("tr", *[tag("th", cell, scope="col") for cell in heads]))
    lines = []
    for row in rows:
        cells = [cell if _is_cell(cell) else tag("td", cell) for cell in row]
        lines.append(tag("tr", *cells))
    parts = [tag("caption", caption)] if caption else []
    whole = tag("table", *parts, head, tag("tbody", *lines), class_=class_)
    return tag("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption or "table")


def _is_cell(cell: object) -> bool:
    return isinstance(cell, Html) and cell.startswith(("<td", "<th"))


def options(values: Mapping[str, str], chosen: str = "") -> Html:
    """The choices of a menu: what is shown, by value."""
    return joined(tag("option", text, value=key, selected=key == chosen) for key, text in values.items())


def script_json(value: Any) -> Html:
    """A value as JSON that no script element, and no comment in one, can be ended by."""
    text = json_text(value, ascii_only=False)
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return Html(text)


def page(parts: Mapping[str, object], library: str) -> str:
    """The whole page.

    Args:
        parts: what stands in the places of `page/report.html`; what is no `Html` is escaped.
        library: the script that draws plots.
    """
    script = page_file("report.js")
    allowed = " ".join(f"'sha256-{_sha256(each)}'" for each in (library, script))
    # Only these two scripts run, nothing is loaded from anywhere, nothing is sent.
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = dict(parts) | {
        "policy": policy,
        "style": Html(page_file("report.css")),
        "script": Html(script),
        "library": Html(library),
        "licences": page_file("notices.txt"),
    }
    # In one pass: what is put into a place may hold the marks of another one.
    return _PLACE.sub(lambda match: escaped(filled[match[1]]), page_file("report.html"))


def page_file(name: str) -> str:
    """A file of the page that comes with the package."""
    return files("rlhf.view").joinpath("page", name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
