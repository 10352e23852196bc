"""What policies say when nothing is drawn: their greedy answers in a report (`evaluate.greedy`)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from rlhf.data.shards import read_all_rows
from rlhf.evaluation.diversity import distinct_n
from rlhf.view.report_page import Html, joined, table, tag
from rlhf.view.report_records import Text, text_of
from rlhf.view.report_trend import policy_name
from rlhf.view.run_folder import RunFolder

MOST_SHOWN = 60
"""Prompts whose answers a page shows; the figures are of all."""
_MOST_CHARACTERS = 4_000
_COLUMNS = [
    "id",
    "messages",
    "candidates.list.element.text",
    "candidates.list.element.token_ids",
    "candidates.list.element.finish_reason",
]


@dataclass(frozen=True)
class Answer:
    """A policy's greedy answer to a prompt."""

    text: str
    tokens: int
    is_cut: bool


@dataclass(frozen=True)
class GreedyAnswers:
    """Of every policy that has been asked, π0 first.

    Example:
        prompts {"5f1c…": [("user", "Hi")]}, answers {0: {"5f1c…": Answer("Hello!", 3, False)}} by iteration
    """

    prompts: dict[str, list[tuple[str, str]]]
    answers: dict[int, dict[str, Answer]]


def greedy_answers(run: RunFolder) -> GreedyAnswers:
    """All greedy answers of a run, which may be none."""
    found = GreedyAnswers({}, {})
    for number in run.iterations:
        artifact = run.artifact(number, "held_out/greedy")
        if artifact is None:
            continue
        answers = found.answers.setdefault(number, {})
        for row in read_all_rows(artifact.path, _COLUMNS):
            turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
            found.prompts[row["id"]] = turns
            (candidate,) = row["candidates"]
            is_cut = candidate["finish_reason"] == "length"
            answers[row["id"]] = Answer(candidate["text"], len(candidate["token_ids"]), is_cut)
    return found


def greedy_section(found: GreedyAnswers | None) -> Html:
    """Figures of each policy, then its answers beside the others'; nothing where nobody was asked."""
    if found is None or not found.prompts:
        return Html("")
    shown = list(found.prompts)[:MOST_SHOWN]
    note = (
        f"{len(found.prompts)} held-out prompts, answered at temperature 0 (evaluate.greedy). distinct-1 and "
        "distinct-2 are the shares of distinct words and pairs of words in all answers of a policy: they "
        "fall where answers repeat themselves, or each other."
    )
    if len(shown) < len(found.prompts):
        note += f" The first {len(shown)} are shown."
    records = [_record(found, name) for name in shown]
    more = tag("details", tag("summary", f"{len(shown)} prompts, every policy side by side"), *records)
    return joined(
        [tag("h3", "Greedy answers", id="greedy"), tag("p", note, class_="quiet"), _figures(found), more]
    )


def _figures(found: GreedyAnswers) -> Html:
    rows = []
    for number, answers in found.answers.items():
        texts = [answer.text for answer in answers.values()]
        if not texts:
            continue
        tokens = fmean(answer.tokens for answer in answers.values())
        cut = fmean(answer.is_cut for answer in answers.values())
        figures = [
            f"{tokens:.1f}",
            f"{cut:.1%}",
            f"{distinct_n(texts, 1):.3f}",
            f"{distinct_n(texts, 2):.3f}",
        ]
        rows.append([policy_name(number), str(len(texts)), *figures])
    return table(["policy", "answers", "tokens", "cut", "distinct-1", "distinct-2"], rows)


def _record(found: GreedyAnswers, name: str) -> Html:
    """One prompt, and what each policy answers."""
    turns = []
    for role, content in found.prompts[name]:
        turns.append(tag("div", tag("div", role, class_="role"), *_shown(text_of(content)), class_="turn"))
    columns = []
    for number, answers in found.answers.items():
        columns.append(tag("div", tag("h4", policy_name(number)), _answer(answers.get(name))))
    label = "Greedy answers of each policy, side by side"
    beside = tag("div", *columns, class_="columns", tabindex="0", role="group", aria_label=label)
    return tag("article", *turns, beside, class_="record")


def _answer(answer: Answer | None) -> Html:
    if answer is None:
        return tag("p", "no answer: the prompt was dropped", class_="hidden-part")
    figures: list[object] = [tag("span", f"{answer.tokens} tokens")]
    if answer.is_cut:
        figures.append(tag("span", "cut at the token limit", class_="cut"))
    return tag("div", tag("div", *figures, class_="figures"), *_shown(text_of(answer.text)), class_="answer")


def _shown(text: Text) -> list[Html]:
    """A text, and how much of it is not there."""
    start, num_hidden = text.cut_to(_MOST_CHARACTERS)
    parts = [tag("div", start, class_="text")]
    if num_hidden:
        parts.append(tag("div", f"… and {num_hidden:,} more characters", class_="hidden-part"))
    return parts
