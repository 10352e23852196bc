"""The pairs of a whole shard at once, on Arrow's columns: what `rlhf.data.pairing` makes row by row.

`pairing.make_pairs` is the definition. Here the extremes of the many prompts that give pairs by `best_worst`
are found with numpy; every other prompt (another strategy, none that can be put in order, odd numbers) is
given to the definition itself. Token ids are copied from column to column and never become Python's numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.pairing import (
    LARGEST_SCORE,
    Drop,
    Terminators,
    candidate_pool,
    select,
    training_target,
)
from rlhf.data.records import FINISHED, SIDES, Candidate, ScoredPrompt
from rlhf.data.schemas import PAIRS_SCHEMA
from rlhf.errors import DataError

CANDIDATE_COLUMNS = ("token_ids", "text", "finish_reason")
"""What pairing reads of a candidate."""

_MOST_CANDIDATES = 256
"""Of a prompt in the matrices, whose width is that of the widest prompt; one with more is taken by itself."""
_BLANK, _PAST_ASCII = 0x20, 0x80
_FAULTS = (None, Drop.non_finite, Drop.empty, Drop.truncated)
"""By the codes in which `_Shard.faults` has them."""


@dataclass(frozen=True)
class _Shard:
    """Columns of all candidates of a shard, one behind the other; prompt i has those from `starts[i]` on.

    `num` says how many of them pairing looks at, `faults` index `_FAULTS`.
    """

    prompts: pa.Table
    token_ids: pa.ListArray
    texts: pa.StringArray
    finish_reasons: pa.StringArray
    scores: np.ndarray
    starts: np.ndarray
    num: np.ndarray
    truncated: np.ndarray
    chars: np.ndarray
    penalised: np.ndarray
    faults: np.ndarray

    def row(self, prompt: int) -> ScoredPrompt:
        """One prompt as the definition takes it, without its token ids."""
        start = self.starts[prompt]
        num = self.num[prompt]
        texts = self.texts.slice(start, num).to_pylist()
        reasons = self.finish_reasons.slice(start, num).to_pylist()
        candidates = []
        for text, reason in zip(texts, reasons, strict=True):
            candidates.append(Candidate([], text, reason, logprob=0.0, seed=0, temperature=0.0))
        scores = self.scores[start : start + num].tolist()
        name = self.prompts["id"][prompt].as_py()
        return ScoredPrompt(name, (), [], tuple(candidates), tuple(scores))


@dataclass(frozen=True)
class _Pairs:
    """Pairs in the order of their prompts: the prompt's number, the candidates' among all, their ranks."""

    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_ranks: np.ndarray
    rejected_ranks: np.ndarray

    def of(self, which: np.ndarray) -> _Pairs:
        """Those of these numbers, or where a mask is true."""
        return _Pairs(*(column[which] for column in vars(self).values()))


def _joined(parts: list[_Pairs]) -> _Pairs:
    """Pairs of several parts in the order of their prompts, those of one prompt in the order of the parts."""
    columns = [np.zeros(0, dtype=np.int64)] * 5
    if parts:
        columns = [
            np.concatenate(same) for same in zip(*(vars(part).values() for part in parts), strict=True)
        ]
    pairs = _Pairs(*columns)
    return pairs.of(np.argsort(pairs.prompts, kind="stable"))


def pair_table(
    candidates: pa.Table,
    scores: pa.Table,
    config: PairSettings,
    terminators: Terminators | None,
    seed: int,
) -> tuple[pa.Table, Counter[str]]:
    """The pairs of a shard by `PAIRS_SCHEMA`, and what `rlhf.stages.pair` counts.

    Args:
        candidates: by `CANDIDATES_SCHEMA`; of the candidates at least `CANDIDATE_COLUMNS`.
        scores: by `SCORES_SCHEMA`, with the same prompts and a score for each candidate.
        config: as for `pairing.make_pairs`.
        terminators: as for `pairing.make_pairs`.
        seed: as for `pairing.make_pairs`.

    Raises:
        DataError: a null, or a finished response does not end in one of `terminators.stop_token_ids`.
    """
    shard = _shard(candidates, scores, config)
    quick = _extremes(shard, config)
    drops: list[Drop] = []
    pairs = _with_rows(shard, quick, config, seed, drops)
    counts = _counts(shard, pairs, drops)
    return _table(shard, pairs, terminators), counts


def _arrow(numbers: np.ndarray) -> pa.Array:
    """Numbers of numpy as Arrow's, without a copy."""
    dtype = pa.from_numpy_dtype(numbers.dtype)
    data = np.packbits(numbers, bitorder="little") if pa.types.is_boolean(dtype) else numbers
    return pa.Array.from_buffers(dtype, len(numbers), [None, pa.py_buffer(np.ascontiguousarray(data))])


def _only_chunk(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece; nothing may be missing in it, nor in what it holds."""
    column = table[name].combine_chunks()
    # Of a table without rows it has no chunk at all.
    array = column if isinstance(column, pa.Array) else pa.array([], column.type)
    _refuse_nulls(name, array)
    return array


def _refuse_nulls(name: str, array: pa.Array) -> None:
    if array.null_count:
        raise DataError(f"{name} is null in {array.null_count} places. Make the stage anew that wrote it.")


def _shard(candidates: pa.Table, scores: pa.Table, config: PairSettings) -> _Shard:
    lists = _only_chunk(candidates, "candidates")
    for name in ("id", "messages", "prompt_token_ids"):
        _only_chunk(candidates, name)
    # Not `.values`, which would begin before the list does where that is a part of another.
    structs = lists.flatten()
    columns = dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))
    for name in CANDIDATE_COLUMNS:
        _refuse_nulls(name, columns[name])
    flat_scores = _only_chunk(scores, "scores").flatten()
    _refuse_nulls("scores", flat_scores)
    numbers = flat_scores.to_numpy()
    num_each = lists.value_lengths().to_numpy().astype(np.int64)
    starts = np.cumsum(num_each) - num_each
    num = num_each if config.num_candidates is None else np.minimum(num_each, config.num_candidates)
    chars = pc.utf8_length(columns["text"]).to_numpy()
    truncated = pc.not_equal(columns["finish_reason"], FINISHED).to_numpy(zero_copy_only=False)
    # A huge penalty leaves nothing finite of any score, which is what is looked for below.
    with np.errstate(over="ignore", invalid="ignore"):
        penalised = numbers - config.length_penalty * chars
    return _Shard(
        prompts=candidates,
        token_ids=columns["token_ids"],
        texts=columns["text"],
        finish_reasons=columns["finish_reason"],
        scores=numbers,
        starts=starts,
        num=num,
        truncated=truncated,
        chars=chars,
        penalised=penalised,
        faults=_faults(numbers, columns["text"], truncated),
    )


def _faults(scores: np.ndarray, texts: pa.StringArray, truncated: np.ndarray) -> np.ndarray:
    """`pairing.fault` of every candidate, as an index of `_FAULTS`."""
    faults = np.where(truncated, _FAULTS.index(Drop.truncated), 0)
    faults[_are_blank(texts)] = _FAULTS.index(Drop.empty)
    # Not `>`: every comparison with NaN is false.
    is_number = np.abs(scores) <= LARGEST_SCORE
    faults[~is_number] = _FAULTS.index(Drop.non_finite)
    return faults


def _are_blank(texts: pa.StringArray) -> np.ndarray:
    """Whether texts are white space alone, as Python's `strip` has it."""
    _, offsets_buffer, data_buffer = texts.buffers()
    blank = np.ones(len(texts), dtype=bool)
    if not len(texts) or data_buffer is None:
        return blank
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    some = np.flatnonzero(offsets[1:] > offsets[:-1])
    first_bytes = data[offsets[:-1][some]]
    blank[some] = False
    # Most text begins with a letter of ASCII, and one look tells. Arrow has another idea of white space.
    doubtful = some[(first_bytes <= _BLANK) | (first_bytes >= _PAST_ASCII)]
    for position, text in zip(doubtful.tolist(), texts.take(_arrow(doubtful)).to_pylist(), strict=True):
        blank[position] = not text.strip()
    return blank


@dataclass(frozen=True)
class _Matrix:
    """Prompts × places: what a strategy sees of each candidate (`pairing.Pool`).

    Places behind a prompt's last candidate are not usable.
    """

    penalised: np.ndarray
    usable: np.ndarray
    choosable: np.ndarray

    def ranks(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Rank of the candidate at a place of each row among the usable; equal ones in the order sampled."""
        penalised = self.penalised[rows]
        own = np.take_along_axis(penalised, places[:, None], axis=1)
        is_before = np.arange(penalised.shape[1]) < places[:, None]
        is_better = (penalised > own) | ((penalised == own) & is_before)
        ranks: np.ndarray = (is_better & self.usable[rows]).sum(axis=1)
        return ranks


def _matrix(shard: _Shard, prompts: np.ndarray, config: PairSettings) -> _Matrix:
    num = shard.num[prompts][:, None]
    places = np.arange(num.max())
    is_there = places < num
    positions = np.where(is_there, shard.starts[prompts][:, None] + places, 0)
    faults = shard.faults[positions]
    truncated = shard.truncated[positions]
    reasons = [Drop.non_finite, Drop.empty]
    if config.truncated is Truncated.drop:
        reasons.append(Drop.truncated)
    usable = is_there & ~np.isin(faults, [_FAULTS.index(reason) for reason in reasons])
    may_be_chosen = config.truncated is not Truncated.never_chosen
    choosable = usable if may_be_chosen else usable & ~truncated
    return _Matrix(shard.penalised[positions], usable, choosable)


def _extremes(shard: _Shard, config: PairSettings) -> _Pairs:
    """The pairs by `best_worst` of all prompts that give some without a doubt."""
    if config.strategy is not Strategy.best_worst:
        return _joined([])
    narrow = np.flatnonzero((shard.num >= 2) & (shard.num <= _MOST_CANDIDATES))
    if not len(narrow):
        return _joined([])
    matrix = _matrix(shard, narrow, config)
    # A penalised score beyond all numbers is a fault of its own; whose, the definition says.
    is_odd = (matrix.usable & ~(np.abs(matrix.penalised) <= LARGEST_SCORE)).any(axis=1)
    best = np.where(matrix.choosable, matrix.penalised, -np.inf)
    worst = np.where(matrix.usable, matrix.penalised, np.inf)
    best[is_odd] = -np.inf
    worst[is_odd] = np.inf
    found = []
    each = np.arange(len(narrow))
    for _ in range(min(config.max_pairs_per_prompt, best.shape[1])):
        # The first of equals, as the definition takes it.
        chosen = best.argmax(axis=1)
        rejected = worst.argmin(axis=1)
        margins = best[each, chosen] - worst[each, rejected]
        if not (margins > 0).any():
            break
        rows = np.flatnonzero((margins > 0) & (margins >= config.min_margin))
        starts = shard.starts[narrow[rows]]
        pairs = _Pairs(
            prompts=narrow[rows],
            chosen=starts + chosen[rows],
            rejected=starts + rejected[rows],
            chosen_ranks=matrix.ranks(rows, chosen[rows]),
            rejected_ranks=matrix.ranks(rows, rejected[rows]),
        )
        found.append(pairs)
        best[each, chosen] = -np.inf
        worst[each, rejected] = np.inf
    pairs = _joined(found)
    differ = pc.not_equal(shard.texts.take(_arrow(pairs.chosen)), shard.texts.take(_arrow(pairs.rejected)))
    return pairs.of(differ.to_numpy(zero_copy_only=False))


def _with_rows(shard: _Shard, quick: _Pairs, config: PairSettings, seed: int, drops: list[Drop]) -> _Pairs:
    """These pairs and those that the definition selects of all other prompts; its drops are added."""
    is_done = np.zeros(len(shard.num), dtype=bool)
    is_done[quick.prompts] = True
    rows: list[tuple[int, ...]] = []
    for number in np.flatnonzero(~is_done).tolist():
        prompt = shard.row(number)
        pool = candidate_pool(prompt, config)
        selected = pool if isinstance(pool, Drop) else select(pool, prompt.id, config, seed)
        if isinstance(selected, Drop):
            drops.append(selected)
            continue
        assert not isinstance(pool, Drop)
        ranked = pool.best_first(pool.usable)
        start = int(shard.starts[number])
        for chosen, rejected in selected:
            ranks = ranked.index(chosen), ranked.index(rejected)
            rows.append((number, start + chosen, start + rejected, *ranks))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return _joined([quick, _Pairs(*columns)])


def _counts(shard: _Shard, pairs: _Pairs, drops: list[Drop]) -> Counter[str]:
    counts = Counter[str]()
    if not len(shard.num):
        return counts
    counts["prompts"] = len(shard.num)
    counts["prompts_with_pairs"] = len(shard.num) - len(drops)
    counts["pairs"] = len(pairs.prompts)
    counts["candidates"] = int(shard.num.sum())
    # Candidates that pairing does not look at have no say.
    num_each = np.diff(shard.starts, append=len(shard.faults))
    places = np.arange(len(shard.faults)) - np.repeat(shard.starts, num_each)
    looked_at = places < np.repeat(shard.num, num_each)
    numbers = np.bincount(shard.faults[looked_at], minlength=len(_FAULTS)).tolist()
    for fault, number in zip(_FAULTS, numbers, strict=True):
        if fault is not None and number:
            counts[f"candidates/{fault.value}"] = number
    for drop in drops:
        counts[f"dropped/{drop.value}"] += 1
    return counts


def _table(shard: _Shard, pairs: _Pairs, terminators: Terminators | None) -> pa.Table:
    if not len(pairs.prompts):
        return PAIRS_SCHEMA.empty_table()
    columns: dict[str, Any] = {}
    prompts = _arrow(pairs.prompts)
    for name in ("id", "messages", "prompt_token_ids"):
        columns[name] = _only_chunk(shard.prompts, name).take(prompts)
    chosen_ids = shard.token_ids.take(_arrow(pairs.chosen))
    rejected_ids = shard.token_ids.take(_arrow(pairs.rejected))
    columns["chosen_token_ids"] = chosen_ids
    columns["rejected_token_ids"] = rejected_ids
    if terminators is not None:
        _check_ends(shard, pairs, terminators)
        columns["chosen_token_ids"] = _ended(chosen_ids, ~shard.truncated[pairs.chosen], terminators)
        columns["rejected_token_ids"] = _ended(rejected_ids, ~shard.truncated[pairs.rejected], terminators)
    for side in SIDES:
        positions = getattr(pairs, side)
        columns[side] = shard.texts.take(_arrow(positions))
        columns[f"{side}_score"] = shard.scores[positions]
        columns[f"{side}_penalised"] = shard.penalised[positions]
        columns[f"{side}_rank"] = getattr(pairs, f"{side}_ranks")
        columns[f"{side}_chars"] = shard.chars[positions]
        columns[f"{side}_truncated"] = shard.truncated[positions]
    arrays = []
    for field in PAIRS_SCHEMA:
        column = columns[field.name]
        array = column if isinstance(column, pa.Array) else _arrow(column)
        arrays.append(array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=PAIRS_SCHEMA)


def _check_ends(shard: _Shard, pairs: _Pairs, terminators: Terminators) -> None:
    """Refuse the first finished response of a pair that ends in no terminator, in the words of the
    definition.
    """
    # One behind the other as the definition meets them: chosen, rejected, and the next pair's.
    positions = np.stack([pairs.chosen, pairs.rejected], axis=1).ravel()
    positions = positions[~shard.truncated[positions]]
    offsets = shard.token_ids.offsets.to_numpy()
    is_some = offsets[positions + 1] > offsets[positions]
    ends = np.zeros(len(positions), dtype=bool)
    values = shard.token_ids.values.to_numpy()
    stop_token_ids = list(terminators.stop_token_ids)
    ends[is_some] = np.isin(values[offsets[positions[is_some] + 1] - 1], stop_token_ids)
    for position in positions[~ends].tolist():
        ids = shard.token_ids[position].as_py()
        reason = shard.finish_reasons[position].as_py()
        training_target(Candidate(ids, "", reason, logprob=0.0, seed=0, temperature=0.0), terminators)


def _ended(ids: pa.ListArray, finished: np.ndarray, terminators: Terminators) -> pa.ListArray:
    """Finished responses with the template's end of turn in the place of the sampled terminator."""
    offsets = ids.offsets.to_numpy()
    # A copy: Arrow's own numbers must not change.
    values = ids.values.to_numpy().copy()
    values[offsets[1:][finished] - 1] = terminators.end_of_turn_id
    return pa.ListArray.from_arrays(ids.offsets, _arrow(values))
