"""The sections of a report as markup: notices, figures, places for plots and records, lineage."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.view.report_lineage import (
    changed_settings,
    findings_of,
    machine_of,
    num_starts,
    stages_of,
    versions_of,
)
from rlhf.view.report_page import Html, joined, options, table, tag
from rlhf.view.report_plots import Plot
from rlhf.view.report_records import Sample
from rlhf.view.report_trend import Trend, headline, judge_title, policy_name, why_best
from rlhf.view.run_folder import RunFolder


def notices(run: RunFolder, notes: Sequence[str]) -> Html:
    """What is missing, removed, damaged or under way, so that nobody takes a part for the whole."""
    lines = [*notes]
    for name, how in run.damaged.items():
        lines.append(f"{name} is damaged and left out: {how}")
    for name, what in run.removed.items():
        lines.append(f"{name} is finished, and its figures stand; {what}.")
    if run.unfinished:
        lines.append(f"Begun and not finished: {', '.join(run.unfinished)}.")
    if not lines:
        return Html("")
    return tag("div", tag("ul", *[tag("li", line) for line in lines]), class_="notice", role="status")


def headline_table(trend: Trend | None, is_sum: bool) -> Html:
    """The table of figures, a column for each policy; the best one marked, with the reason."""
    if trend is None:
        return tag("p", "There are no figures yet: they begin with the evaluation of π0.")
    best, reason = why_best(trend)
    heads = [tag("th", "policy", scope="col")]
    for place, row in enumerate(trend.rows):
        badge = tag("span", "best", class_="badge") if place == best else ""
        class_ = "best" if place == best else None
        heads.append(tag("th", policy_name(row.iteration), badge, scope="col", class_=class_))
    body = []
    for judge, lines in headline(trend):
        title = judge_title(judge, is_sum)
        group = tag("th", title, scope="rowgroup", colspan=str(len(heads)))
        body.append(tag("tr", group, class_="group"))
        for name, *cells in lines:
            row_cells = [tag("th", name, scope="row")]
            for place, cell in enumerate(cells):
                classes = ["best"] if place == best else []
                # Wrapped, or one list of drops would make every column of the table wide.
                if len(cell) > 24:
                    classes.append("long")
                row_cells.append(tag("td", cell, class_=" ".join(classes) or None))
            body.append(tag("tr", *row_cells))
    whole = tag(
        "table",
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        class_="headline",
    )
    note = "Figures of the held-out prompts; win rates with 95 % intervals over prompts."
    # With a tab stop, so that a table wider than a phone can be scrolled by keys.
    scroller = tag("div", whole, class_="scroll", tabindex="0", role="group", aria_label="Table of figures")
    return joined([tag("p", reason), tag("p", note, class_="quiet"), scroller])


def plot_places(plots: Sequence[Plot]) -> Html:
    """A figure for each plot, which the browser draws, with what must be read beside it."""
    figures = []
    for plot in plots:
        caption: list[object] = [plot.caption] if plot.caption else []
        if plot.table:
            caption.append(table(plot.table[0], plot.table[1:]))
        title = tag("h3", plot.title, id=f"title-{plot.key}")
        place = tag("div", id=f"plot-{plot.key}", class_="plot")
        figure = tag(
            "figure",
            title,
            place,
            tag("figcaption", *caption),
            aria_labelledby=f"title-{plot.key}",
            class_="wide" if plot.is_wide else None,
        )
        figures.append(figure)
    return joined(figures)


def _field(label: str, control: Html, class_: str | None = None) -> Html:
    return tag("label", label, control, class_=class_)


def _check(label: str, id_: str) -> Html:
    return tag("label", tag("input", type="checkbox", id=id_), label, class_="check")


def _menu(id_: str, values: dict[str, str], chosen: str = "") -> Html:
    return tag("select", options(values, chosen), id=id_)


def _list(name: str) -> Html:
    """The place of a list of records, with what turns its pages."""
    back = tag("button", "Back", type="button", id=f"{name}-back")
    on = tag("button", "More", type="button", id=f"{name}-on")
    found = tag("span", id=f"{name}-found", role="status", class_="quiet")
    pages = tag("div", back, on, found, class_="pages")
    return joined([tag("div", id=f"{name}-list"), pages])


def _how_many(sample: Sample, what: str, seed: int) -> Html:
    """What of the whole is in the page, said aloud."""
    text = f"All {sample.total:,} {what} are here"
    if len(sample.shown) < sample.total:
        text = (
            f"{len(sample.shown):,} of {sample.total:,} {what} are here: those at both ends of every figure, "
            f"the rest drawn with seed {seed}"
        )
    text += f". Texts are shown up to {sample.cut:,} characters, and each says how many more it has."
    return tag("p", text, class_="quiet")


def _any_of(names: Sequence[str]) -> dict[str, str]:
    return {"": "any"} | {name: name for name in names}


def record_section(trend: Trend | None, sample: Sample | None, seed: int) -> Html:
    """The controls of the records, and the place where they are listed."""
    if trend is None or sample is None:
        return tag("p", "There are no held-out responses yet that belong together.")
    policies = {str(place): name for place, name in enumerate(trend.names)}
    last = str(len(policies) - 1)
    writings = sorted({record["writing"] for record in sample.shown})
    sources = sorted({record["source"] for record in sample.shown if record["source"]})
    sorts = {
        "gain": "gain, largest first",
        "loss": "loss: prompts that got worse",
        "disagreement": "judges' disagreement",
        "best": "score, best first",
        "worst": "score, worst first",
        "longer": "how much longer answers got",
    }
    # One judge cannot disagree with itself.
    if len(trend.judges) < 2:
        del sorts["disagreement"]
    controls = [
        _field("Search", tag("input", type="search", id="records-search"), "wide"),
        _field("Sort by", _menu("records-sort", sorts)),
        _field("From", _menu("records-before", policies, "0")),
        _field("to", _menu("records-after", policies, last)),
        _field("Source of the prompt", _menu("records-source", _any_of(sources))),
        _field("Language or writing", _menu("records-writing", _any_of(writings))),
        _field(
            "Cut answers",
            _menu("records-cut", {"": "with and without", "cut": "with", "whole": "without"}),
        ),
        _field("Tokens, at least", tag("input", type="number", id="records-shortest", min="0")),
        _field("at most", tag("input", type="number", id="records-longest", min="0")),
        _check("difference, word by word", "records-difference"),
        _check("Markdown", "records-markdown"),
    ]
    form = tag(
        "form", *controls, class_="tools", id="records-tools", aria_label="Which records, in which order"
    )
    return joined([_how_many(sample, "held-out prompts", seed), form, _list("records")])


def pair_section(sample: Sample | None, iterations: Sequence[int], seed: int, is_raft: bool) -> Html:
    """The controls of the training pairs, and the place where they are listed."""
    if is_raft:
        return tag("p", "There are no pairs: every iteration trains on best responses (method=raft).")
    if sample is None or not sample.total:
        return tag("p", "There are no training pairs yet.")
    sorts = {
        "margin": "margin, largest first",
        "close": "margin, smallest first",
        "longer": "chosen longer than rejected",
        "shorter": "chosen shorter than rejected",
    }
    numbers = {"": "all"} | {str(iteration): str(iteration) for iteration in iterations}
    controls = [
        _field("Search", tag("input", type="search", id="pairs-search"), "wide"),
        _field("Iteration", _menu("pairs-iteration", numbers)),
        _field("Sort by", _menu("pairs-sort", sorts)),
        _check("difference, word by word", "pairs-difference"),
        _check("Markdown", "pairs-markdown"),
    ]
    form = tag("form", *controls, class_="tools", id="pairs-tools", aria_label="Which pairs, in which order")
    return joined([_how_many(sample, "training pairs", seed), form, _list("pairs")])


def lineage_section(run: RunFolder) -> Html:
    """What the run was made of, and where."""
    return joined([_findings(run), _settings(run), _stages(run), _circumstances(run)])


def _findings(run: RunFolder) -> Html:
    findings, note = findings_of(run)
    title = tag("h3", "Gates and warnings")
    if not findings:
        return joined([title, tag("p", note or "No gate and no stage has found anything.")])
    rows = [[finding.where, finding.what, finding.text] for finding in findings]
    heads = ["where", "what", "what it says"]
    return joined([title, tag("p", note) if note else "", table(heads, rows, class_="text-table")])


def _settings(run: RunFolder) -> Html:
    title = tag("h3", "Settings that differ from the recipe")
    if not run.config:
        return joined([title, tag("p", "There is no config.yaml here that can be read.")])
    rows = []
    for setting in changed_settings(run.config):
        usual = "no setting of this version" if setting.usual is None else setting.usual
        rows.append([tag("td", setting.key, class_="name"), setting.value, usual])
    if not rows:
        return joined([title, tag("p", "None.")])
    return joined([title, table(["setting", "here", "recipe"], rows, class_="text-table")])


def _stages(run: RunFolder) -> Html:
    rows = []
    for stage in stages_of(run):
        rows.append(
            [
                tag("td", stage.name, class_="name"),
                tag("td", tag("code", stage.digest), class_="name"),
                stage.made_of,
                tag("td", f"{stage.seconds:,.1f}", class_="number"),
                tag("td", f"{stage.megabytes:,.1f}", class_="number"),
                stage.counts,
            ]
        )
    heads = ["stage", "fingerprint", "made of", "seconds", "MB", "counts"]
    return joined([tag("h3", "Finished stages"), table(heads, rows, class_="text-table")])


def _circumstances(run: RunFolder) -> Html:
    starts = num_starts(run)
    resumed = "not known: there is no logs/driver.log here"
    if starts is not None:
        resumed = f"{starts - 1} times" if starts != 2 else "once"
        resumed = "never" if starts == 1 else resumed
    rows: list[list[object]] = [["resumed", resumed]]
    rows += [[key.replace("_", " "), value] for key, value in machine_of(run).items()]
    rows += [[package, version] for package, version in versions_of(run).items()]
    title = tag("h3", "Versions and machine")
    return joined([title, table(["", "as the stages recorded it"], rows, class_="text-table")])
