"""Which prompts and pairs a report shows, and their texts, cut to what a page can hold.

The extremes of every figure are always among them, the rest is drawn by a seed. What is left out is counted.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.json_text import json_text
from rlhf.data.origins import FILE as ORIGINS
from rlhf.data.origins import Origin, origin_of
from rlhf.data.shards import read_table, shard_paths
from rlhf.errors import visible
from rlhf.loop.figures import Evaluation
from rlhf.view.report_numbers import MAIN, HeldOut, Pairs, disagreement_of, in_order_of, means_of
from rlhf.view.run_folder import RunFolder

NUM_RECORDS = 300
"""Held-out prompts that a page shows at most."""
NUM_PAIRS = 40
"""Pairs of each iteration that a page shows at most."""
_RECORD_BYTES = 2_400_000
"""Of all records as JSON; with the plots' library and the rest a page stays below 5 MB."""
_PAIR_BYTES = 800_000
_EXTREMES = 8
"""Records at either end of each figure that are always shown."""
_UNKNOWN = Origin(None, None)
_CUTS = (20_000, 8_000, 4_000, 2_000, 1_000, 500, 250, 120)
"""Characters of a text that are shown at most: the first of these with which all texts fit."""
_NO_TEXT = (
    "prompt_token_ids",
    "token_ids",
    "chosen_token_ids",
    "rejected_token_ids",
    "logprob",
    "seed",
    "temperature",
)
"""Columns of candidates and pairs that nobody reads here."""
_SCRIPT_LETTERS = 400
"""So many letters tell what a text is written in."""


@dataclass(frozen=True)
class Sample:
    """What is shown of `total`, as JSON values, each text of at most `cut` characters."""

    shown: list[dict[str, Any]]
    total: int
    cut: int


def chosen_places(figures: Sequence[np.ndarray], total: int, most: int, seed: int) -> list[int]:
    """Which of `total` things are shown: those at both ends of each figure first, then others as drawn.

    Args:
        figures: numbers of each thing; NaN is neither end.
        total: how many things there are.
        most: how many are shown.
        seed: of the draw.
    """
    places: dict[int, None] = {}
    orders = []
    for values in figures:
        order = np.argsort(values, kind="stable")
        orders.append(order[np.isfinite(values[order])])
    # The very ends of all figures before the second from the end of any.
    for rank in range(_EXTREMES):
        for order in orders:
            if rank < len(order):
                places[int(order[rank])] = None
                places[int(order[-1 - rank])] = None
    for place in np.random.default_rng(seed).permutation(total).tolist():
        places[place] = None
    return sorted(list(places)[:most])


def writing_of(text: str) -> str:
    """The writing system that most letters of a text are of, such as `Latin`; `other` without letters.

    Not the language, which nothing in a run tells.
    """
    names: Counter[str] = Counter()
    letters = (character for character in text[: 4 * _SCRIPT_LETTERS] if character.isalpha())
    for character in list(letters)[:_SCRIPT_LETTERS]:
        names[unicodedata.name(character, "OTHER").split()[0].capitalize()] += 1
    if not names:
        return "other"
    name = names.most_common(1)[0][0]
    return {"Cjk": "Chinese characters"}.get(name, name)


@dataclass(frozen=True)
class Text:
    """The beginning of a text, and how many characters it has in all."""

    start: str
    chars: int

    def cut_to(self, most: int) -> list[Any]:
        """What is shown, and how many characters are not; marks that nobody sees are shown as escapes."""
        return [visible(self.start[:most]), max(0, self.chars - most)]


def text_of(text: str) -> Text:
    """No more of a text than can be shown: a line of a megabyte is not held."""
    return Text(text[: _CUTS[0]], len(text))


def fitted(
    records: Sequence[Any], as_json: Callable[[Any, int], dict[str, Any]], most_bytes: int, total: int
) -> Sample:
    """Records with their texts cut so that all of them fit in so many bytes; where no cut is enough, fewer.

    Args:
        records: with whole texts.
        as_json: makes a JSON value of a record with its texts cut to so many characters.
        most_bytes: of all of them together.
        total: how many there are, shown or not.
    """
    shown: list[dict[str, Any]] = []
    for cut in _CUTS:
        shown = [as_json(record, cut) for record in records]
        sizes = [len(json_text(value, ascii_only=False).encode()) for value in shown]
        if sum(sizes) <= most_bytes:
            return Sample(shown, total, cut)
    num_fitting = int(np.searchsorted(np.cumsum(sizes), most_bytes, side="right"))
    return Sample(shown[:num_fitting], total, _CUTS[-1])


@dataclass
class _Record:
    """One held-out prompt with every policy's responses."""

    id: str
    messages: list[tuple[str, Text]]
    disagreement: float | None
    responses: list[list[tuple[Any, ...]]]
    """Of each policy: text, tokens, whether it was cut, and its scores."""
    origin: Origin = _UNKNOWN


def record_figures(policies: Sequence[HeldOut], judges: Sequence[str]) -> dict[str, np.ndarray]:
    """What records are sorted by, for each prompt of π0 (P): the gain of the last policy, its mean score, and
    where there are several judges, how often they disagree.
    """
    first, last = policies[0], policies[-1]
    last_P = in_order_of(first.ids, last, means_of(last.scores[MAIN]))
    figures = {"score": last_P, "gain": last_P - means_of(first.scores[MAIN])}
    others = [judge for judge in judges if judge != MAIN]
    if others:
        shares = [_disagreement(policies, judge) for judge in others]
        figures["disagreement"] = means_of(np.stack(shares, axis=1))
    return figures


def _disagreement(policies: Sequence[HeldOut], judge: str) -> np.ndarray:
    """How often a judge and the one that trains order a prompt's responses differently (P)."""
    ids = policies[0].ids
    both = []
    for name in (MAIN, judge):
        columns = [in_order_of(ids, policy, policy.scores[name]) for policy in policies]
        both.append(np.concatenate(columns, axis=1))
    return disagreement_of(*both)


def origins_of(run: RunFolder) -> dict[str, Origin]:
    """What is known of held-out prompts' sources and languages, by id; runs of earlier versions know nothing.

    Example:
        {"d7760b4ba3077c46": Origin("quiz", None)}
    """
    known: dict[str, Origin] = {}
    for artifact in run.artifacts.values():
        if ORIGINS not in artifact.record["files"] or artifact.record["identity"]["stage"] != "prompts":
            continue
        rows = json.loads((artifact.path / ORIGINS).read_text(encoding="utf-8"))
        for name, row in rows.items():
            known.setdefault(name, origin_of(row))
    return known


def records_of(
    evaluations: Sequence[Evaluation],
    policies: Sequence[HeldOut],
    judges: Sequence[str],
    most: int,
    seed: int,
    origins: Mapping[str, Origin] | None = None,
) -> Sample:
    """Held-out prompts with the responses of π0 and of every iterate, and their scores by some judges.

    Example:
        one of `shown`: {"id": "d776…", "source": "quiz", "writing": "Latin", "disagreement": 0.25,
        "prompt": [["user", "Hi", 0]],
        "responses": [[["Hello!", 0, 3, 0, [1.52, 0.9]], …], …]}, where a response has its text, the
        characters that are not shown, its tokens, whether the token limit cut it, and a score by each judge
    """
    ids = policies[0].ids
    figures = record_figures(policies, judges)
    places = chosen_places(list(figures.values()), len(ids), most, seed)
    disagreement_P = figures.get("disagreement", np.full(len(ids), np.nan))
    records = {}
    for place in places:
        share = disagreement_P[place]
        record = _Record(ids[place], [], round(float(share), 3) if np.isfinite(share) else None, [])
        record.origin = (origins or {}).get(ids[place], record.origin)
        records[ids[place]] = record
    for evaluation, policy in zip(evaluations, policies, strict=True):
        _add_responses(records, evaluation, policy, judges)
    return fitted(list(records.values()), _record_as_json, _RECORD_BYTES, len(ids))


def _add_responses(
    records: dict[str, _Record], evaluation: Evaluation, policy: HeldOut, judges: Sequence[str]
) -> None:
    """Read one policy's responses to the records' prompts, a shard in memory at a time."""
    places = [place for place, name in enumerate(policy.ids) if name in records]
    for place, row in _rows_at(places, evaluation.candidates.path, _NO_TEXT):
        record = records[row["id"]]
        record.messages = row["messages"]
        responses = []
        for number, candidate in enumerate(row["candidates"]):
            scores = [_short(policy.scores[judge][place, number]) for judge in judges]
            tokens = int(policy.tokens_PN[place, number])
            is_cut = int(policy.cut_PN[place, number])
            responses.append((text_of(candidate["text"]), tokens, is_cut, scores))
        record.responses.append(responses)
    for name in set(records) - {policy.ids[place] for place in places}:
        records[name].responses.append([])


def _rows_at(places: Sequence[int], folder: Path, leave_out: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Some rows of an artifact, with their places in it, a shard in memory at a time."""
    start = 0
    for path in shard_paths(folder):
        num_rows = pq.read_metadata(path).num_rows
        inside = [place - start for place in places if start <= place < start + num_rows]
        if inside:
            rows = read_table(path, leave_out).take(pa.array(inside)).to_pylist()
            for place, row in zip(inside, rows, strict=True):
                row["messages"] = [(each["role"], text_of(each["content"])) for each in row["messages"]]
                yield start + place, row
        start += num_rows


def _short(value: float) -> float | None:
    """A number with as many digits as anybody reads; None of one that is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _record_as_json(record: _Record, cut: int) -> dict[str, Any]:
    responses = []
    for of_policy in record.responses:
        responses.append([[*text.cut_to(cut), *figures] for text, *figures in of_policy])
    question = " ".join(text.start for role, text in record.messages if role == "user")
    return {
        "id": record.id,
        "source": visible(record.origin.source or ""),
        # What a row says of its language says more than its letters do.
        "writing": visible(record.origin.language or writing_of(question)),
        "disagreement": record.disagreement,
        "prompt": [[visible(role), *text.cut_to(cut)] for role, text in record.messages],
        "responses": responses,
    }


def chosen_pairs(pairs: Pairs, folder: Path, most: int, seed: int) -> list[dict[str, Any]]:
    """Some pairs of an iteration: those with extreme margins or lengths, and others as drawn.

    Args:
        pairs: all of them as numbers.
        folder: where they lie.
        most: how many are chosen at most.
        seed: of the draw.
    """
    figures = [pairs.margins, pairs.chosen_chars - pairs.rejected_chars]
    places = chosen_places(figures, len(pairs.margins), most, seed + pairs.iteration)
    chosen = []
    for place, row in _rows_at(places, folder, _NO_TEXT):
        row["chosen"] = text_of(row["chosen"])
        row["rejected"] = text_of(row["rejected"])
        # A prompt may have several pairs: the place in the stage tells them apart.
        chosen.append(row | {"iteration": pairs.iteration, "place": place})
    return chosen


def shown_pairs(chosen: Sequence[dict[str, Any]], total: int) -> Sample:
    """Chosen pairs of all iterations, of so many in all.

    Example:
        one of `shown`: {"iteration": 1, "key": "1-d776…-0", "prompt": [["user", "Hi", 0]], "margin": 1.3,
        "chosen": ["Hello!", 0, 6, 1.5, 0], "rejected": ["Go away.", 0, 8, 0.2, 0]}, where a side has its
        text, the characters that are not shown, its characters, its score, and whether it was cut
    """
    return fitted(chosen, _pair_as_json, _PAIR_BYTES, total)


def _pair_as_json(row: dict[str, Any], cut: int) -> dict[str, Any]:
    sides = {}
    for side in ("chosen", "rejected"):
        figures = [row[f"{side}_chars"], _short(row[f"{side}_score"]), int(row[f"{side}_truncated"])]
        sides[side] = [*row[side].cut_to(cut), *figures]
    return {
        "iteration": row["iteration"],
        "key": f"{row['iteration']}-{row['id']}-{row['place']}",
        "margin": _short(row["chosen_penalised"] - row["rejected_penalised"]),
        "prompt": [[visible(role), *text.cut_to(cut)] for role, text in row["messages"]],
        **sides,
    }
