"""What a report computes: columns of finished stages, a shard at a time, and figures of them.

Texts are never held: memory depends on how many responses there are, not on how long they are. Names of
arrays end in their axes: P prompts, N responses of each, R responses of all policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.pairing import LARGEST_SCORE
from rlhf.data.records import FINISHED
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.data.shards import read_table, shard_paths
from rlhf.loop.figures import Evaluation, mean_and_interval

MAIN = "score"
"""What the table of a run calls the judge that trains, or the sum of several."""
GOLD = "gold"
_NOT_COUNTED = ("messages", "prompt_token_ids", "logprob", "seed", "temperature")
_OF_PAIRS = (
    "chosen_penalised",
    "rejected_penalised",
    "chosen_chars",
    "rejected_chars",
)
_NOT_OF_PAIRS = [name for name in PAIRS_SCHEMA.names if name not in _OF_PAIRS]
_PROMPTS_AT_A_TIME = 1000
_MOST_RESPONSES = 32
"""Of one prompt, when judges are compared: their pairs grow with the square."""


@dataclass(frozen=True)
class HeldOut:
    """One policy's responses to the held-out prompts, as numbers; NaN where a prompt has fewer than N.

    `scores` are by judge, NaN where a score is not finite; `tokens_PN` counts the terminator, `chars_PN` are
    Unicode characters, `cut_PN` is 1 where a response was cut at the token limit, else 0.
    """

    iteration: int
    ids: list[str]
    scores: dict[str, np.ndarray]
    tokens_PN: np.ndarray
    chars_PN: np.ndarray
    cut_PN: np.ndarray


def held_out_of(evaluation: Evaluation) -> HeldOut:
    """The numbers of one policy's evaluation.

    Raises:
        ValueError: its stages are not of the same prompts.
        OSError: a shard cannot be read.
    """
    ids: list[str] = []
    columns: dict[str, list[np.ndarray]] = {"tokens": [], "chars": [], "cut": []}
    for path in shard_paths(evaluation.candidates.path):
        table = read_table(path, leave_out=_NOT_COUNTED)
        ids += table["id"].to_pylist()
        lists = table["candidates"].combine_chunks()
        responses = lists.flatten()
        is_cut = pc.not_equal(responses.field("finish_reason"), FINISHED)
        columns["tokens"].append(_rows(lists, responses.field("token_ids").value_lengths()))
        columns["chars"].append(_rows(lists, pc.utf8_length(responses.field("text"))))
        columns["cut"].append(_rows(lists, is_cut))
    artifacts = {MAIN: evaluation.scores} | evaluation.others
    if evaluation.gold is not None:
        artifacts[GOLD] = evaluation.gold
    scores = {}
    for judge, artifact in artifacts.items():
        scored_ids, scores[judge] = _scores_of(artifact.path)
        if scored_ids != ids:
            raise ValueError(f"{artifact.path} and {evaluation.candidates.path} are not of the same prompts")
    return HeldOut(
        evaluation.iteration,
        ids,
        scores,
        tokens_PN=_stacked(columns["tokens"]),
        chars_PN=_stacked(columns["chars"]),
        cut_PN=_stacked(columns["cut"]),
    )


def _scores_of(folder: Path) -> tuple[list[str], np.ndarray]:
    """Ids of prompts, and a judge's scores of their responses (P, N)."""
    ids: list[str] = []
    parts = []
    for path in shard_paths(folder):
        table = read_table(path)
        ids += table["id"].to_pylist()
        lists = table["scores"].combine_chunks()
        parts.append(_rows(lists, lists.flatten()))
    scores_PN = _stacked(parts)
    # As figures have it: such a score is none. NaN compares false with everything.
    scores_PN[~(np.abs(scores_PN) <= LARGEST_SCORE)] = np.nan
    return ids, scores_PN


def _rows(lists: pa.ListArray, values: pa.Array) -> np.ndarray:
    """Values of flattened lists as rows of one width."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    width = int(lengths.max()) if len(lengths) else 0
    rows = np.full((len(lengths), width), np.nan)
    rows[np.arange(width) < lengths[:, None]] = values.to_numpy(zero_copy_only=False)
    return rows


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    if not parts:
        return np.empty((0, 0))
    width = max(part.shape[1] for part in parts)
    wide = []
    for part in parts:
        missing = width - part.shape[1]
        wide.append(np.pad(part, ((0, 0), (0, missing)), constant_values=np.nan))
    return np.concatenate(wide)


@dataclass(frozen=True)
class Spread:
    """A judge's scores of one policy: the mean over responses, and the means over prompts of the best and of
    the worst response.
    """

    mean: float
    best: float
    worst: float


def spread_of(scores_PN: np.ndarray) -> Spread:
    """What a judge says of the usual, the best and the worst of n responses; NaN of nothing."""
    some_PN = scores_PN[np.isfinite(scores_PN).any(axis=1)]
    if not some_PN.size:
        return Spread(np.nan, np.nan, np.nan)
    best = np.nanmax(some_PN, axis=1).mean()
    worst = np.nanmin(some_PN, axis=1).mean()
    return Spread(float(np.nanmean(some_PN)), float(best), float(worst))


def means_of(scores_PN: np.ndarray) -> np.ndarray:
    """Mean score of each prompt's responses (P); NaN where none is finite."""
    is_finite_PN = np.isfinite(scores_PN)
    counts_P = is_finite_PN.sum(axis=1)
    sums_P = np.where(is_finite_PN, scores_PN, 0).sum(axis=1)
    return np.divide(sums_P, counts_P, out=np.full(len(sums_P), np.nan), where=counts_P > 0)


@dataclass(frozen=True)
class Trend:
    """A straight line through points: `slope` and `intercept` by least squares, and Pearson's r."""

    slope: float
    intercept: float
    correlation: float


def trend_of(x: np.ndarray, y: np.ndarray) -> Trend | None:
    """The line through the points whose two numbers are finite; None where they lie on no line."""
    is_known = np.isfinite(x) & np.isfinite(y)
    if is_known.sum() < 3:
        return None
    x = x[is_known]
    y = y[is_known]
    spread_x = float(x.std())
    spread_y = float(y.std())
    if spread_x == 0 or spread_y == 0:
        return None
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    slope = covariance / spread_x**2
    intercept = float(y.mean()) - slope * float(x.mean())
    return Trend(slope, intercept, covariance / (spread_x * spread_y))


def in_order_of(ids: Sequence[str], held_out: HeldOut, values: np.ndarray) -> np.ndarray:
    """A policy's values (P, …) for prompts in the order of `ids`; NaN for one that it has no response to."""
    place = {name: index for index, name in enumerate(held_out.ids)}
    places_P = np.array([place.get(name, -1) for name in ids], dtype=int)
    is_there_P = places_P >= 0
    shape = (len(ids), *values.shape[1:])
    ordered = np.full(shape, np.nan)
    ordered[is_there_P] = values[places_P[is_there_P]]
    return ordered


def disagreement_of(first_PR: np.ndarray, second_PR: np.ndarray) -> np.ndarray:
    """Of each prompt's pairs of responses, the share that two judges order the other way round (P), in 0–1.

    Pairs in which either has a tie or no finite score do not count; NaN where none counts.
    """
    num_responses = first_PR.shape[1]
    if num_responses > _MOST_RESPONSES:
        chosen = np.linspace(0, num_responses - 1, _MOST_RESPONSES).astype(int)
        return disagreement_of(first_PR[:, chosen], second_PR[:, chosen])
    one, other = np.triu_indices(num_responses, k=1)
    first_orders = np.sign(first_PR[:, one] - first_PR[:, other])
    second_orders = np.sign(second_PR[:, one] - second_PR[:, other])
    # 1 where both agree, −1 where not; a tie is 0, and NaN, of a score that is missing, compares false.
    agreement = first_orders * second_orders
    num_against_P = np.sum(agreement < 0, axis=1)
    num_compared_P = num_against_P + np.sum(agreement > 0, axis=1)
    shares_P = np.full(len(first_PR), np.nan)
    np.divide(num_against_P, num_compared_P, out=shares_P, where=num_compared_P > 0)
    return shares_P


def win_rate_of(ours: HeldOut, theirs: HeldOut, judge: str) -> tuple[float, float, float]:
    """How often one policy's response scores higher than another's: `rlhf.loop.figures.win_rate`, of columns.

    Returns (rate, low, high) in 0–1, NaN where nothing can be compared.
    """
    ours_PN = ours.scores[judge]
    theirs_PN = in_order_of(ours.ids, theirs, theirs.scores[judge])
    rates = []
    for start in range(0, len(ours_PN), _PROMPTS_AT_A_TIME):
        rows = slice(start, start + _PROMPTS_AT_A_TIME)
        # Every response of one against every response of the other; NaN where either has no score.
        differences = ours_PN[rows, :, None] - theirs_PN[rows, None, :]
        wins = (np.sign(differences) + 1) / 2
        rates.append(means_of(wins.reshape(len(wins), -1)))
    rates_P = np.concatenate([np.empty(0), *rates])
    return mean_and_interval(rates_P[np.isfinite(rates_P)].tolist())


@dataclass(frozen=True)
class Pairs:
    """The pairs of one iteration as numbers, in the order of its shards; lengths in characters."""

    iteration: int
    margins: np.ndarray
    chosen_chars: np.ndarray
    rejected_chars: np.ndarray


def pairs_of(iteration: int, folder: Path) -> Pairs:
    """Margins and lengths of an iteration's pairs."""
    columns: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in _OF_PAIRS}
    for path in shard_paths(folder):
        table = read_table(path, leave_out=_NOT_OF_PAIRS)
        for name in _OF_PAIRS:
            columns[name].append(table[name].to_numpy().astype(float))
    values = {name: np.concatenate(parts) for name, parts in columns.items()}
    margins = values["chosen_penalised"] - values["rejected_penalised"]
    return Pairs(iteration, margins, values["chosen_chars"], values["rejected_chars"])


def histogram(groups: dict[str, np.ndarray], num_bins: int = 24) -> tuple[list[dict[str, object]], float]:
    """How the finite values of several groups are spread over common bins.

    The bins span all but the last 0.5 % of the values on either side, so that one outlier does not make a
    single bar of all others; what lies outside counts in the outermost bin.

    Returns:
        A row for each group and bin, and the share of all values that lie outside.

    Example:
        ([{"group": "π0", "from": -1.0, "to": -0.9, "share": 0.031}, …], 0.01)
    """
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    everything = np.concatenate([np.empty(0), *finite.values()])
    if not everything.size:
        return [], 0.0
    low, high = np.quantile(everything, [0.005, 0.995])
    if low == high:  # all alike, or nearly so
        low, high = everything.min() - 0.5, everything.max() + 0.5
    edges = np.linspace(low, high, num_bins + 1)
    outside = float(((everything < low) | (everything > high)).mean())
    rows: list[dict[str, object]] = []
    for name, values in finite.items():
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True):
            share = count / max(1, len(values))
            row = {"from": float(start), "to": float(stop), "share": float(share)}
            rows.append({"group": name, **row})
    return rows, outside
