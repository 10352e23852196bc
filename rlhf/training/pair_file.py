"""Pairs to train on, in a memory-mapped file that rank 0 writes once.

A rank holds the lengths of all pairs, by which steps are shared out, and reads tokens when it makes a batch
of them: pages of a file, which all ranks of a machine share and the system takes back when it needs memory.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlhf.data.records import SIDES
from rlhf.data.shards import num_rows, read_rows, shard_paths
from rlhf.errors import DataError
from rlhf.training.logprobs import response_budget
from rlhf.training.losses import mixed_anchor
from rlhf.training.tokens import write_batches

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _IDS),
        ("chosen", _IDS),
        ("rejected", _IDS),
        ("ref_chosen", pa.float64()),
        ("ref_rejected", pa.float64()),
        ("score_margin", pa.float64()),
    ]
)
"""The fields of `Pair`, in order."""
_COLUMNS = [
    "id",
    "prompt_token_ids",
    "chosen_token_ids",
    "rejected_token_ids",
    "chosen_penalised",
    "rejected_penalised",
]
"""Of a shard of pairs."""
_PAIRS_AT_A_TIME = 4096
"""Of one piece of the file: a piece takes some kilobytes in every rank, whatever it holds."""


@dataclass(frozen=True)
class Pair:
    """A pair ready to train on, with its log-probabilities under the anchor in nats (0 without one), and by
    how much the judge preferred the chosen response (NaN where none was asked).
    """

    id: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: float
    ref_rejected: float
    score_margin: float


@dataclass(frozen=True)
class Anchor:
    """Folders of the log-probabilities that pairs are held against.

    `reference` is None for a loss without one. `previous` is a second one, which the log-probabilities are
    mixed with: the first has the share `initial_share` of the sum.
    """

    reference: Path | None
    previous: Path | None = None
    initial_share: float = 1.0

    def of(self, pairs_shard: Path) -> Iterator[tuple[str | None, list[float]]]:
        """Of each pair of a shard its id there (None without a reference), and the log-probabilities of
        chosen and rejected.
        """
        if self.reference is None:
            yield from itertools.repeat((None, [0.0, 0.0]), num_rows(pairs_shard))
            return
        rows = read_rows(_logprobs_shard(pairs_shard, self.reference))
        if self.previous is None:
            for row in rows:
                yield row["id"], row["logprobs"]
            return
        others = read_rows(_logprobs_shard(pairs_shard, self.previous))
        for row, other in zip(rows, others, strict=True):
            # Mixed with another pair's they would train without an error, and wrongly.
            if row["id"] != other["id"]:
                raise DataError(
                    f"{self.previous}: row {other['id']} stands where {self.reference} has {row['id']}"
                )
            both = zip(row["logprobs"], other["logprobs"], strict=True)
            yield row["id"], [mixed_anchor(first, second, self.initial_share) for first, second in both]


@dataclass(frozen=True)
class PairSource:
    """Shards of pairs, and the log-probabilities of the same pairs; `origin` is what counts call it."""

    origin: str
    pairs: Path
    anchor: Anchor


class TrainingPairs(Sequence[Pair]):
    """The pairs of a file, by number. In memory are 12 bytes of each."""

    def __init__(self, path: Path) -> None:
        # Not closed: what is read of it points into the map, which ends with the last that does.
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self._columns = dict(zip(table.column_names, table.columns, strict=True))
        lengths = []
        for name in ("prompt", *SIDES):
            lengths_N = pc.list_value_length(self._columns[name])
            lengths.append(lengths_N.to_numpy())
        self._lengths_N_3 = np.stack(lengths, axis=1)

    def __len__(self) -> int:
        return len(self._lengths_N_3)

    def __getitem__(self, number: int) -> Pair:  # type: ignore[override]  # nobody takes slices
        values = []
        for field in _SCHEMA:
            scalar = self._columns[field.name][number]
            # Of token ids no copy: they are where the file is mapped.
            values.append(scalar.values.to_numpy() if field.type == _IDS else scalar.as_py())
        return Pair(*values)

    def lengths(self, number: int) -> tuple[int, tuple[int, int]]:
        """Tokens of a pair's prompt, and of its chosen and its rejected response."""
        prompt, chosen, rejected = self._lengths_N_3[number].tolist()
        return prompt, (chosen, rejected)

    def num_tokens(self, number: int) -> int:
        """Tokens of a pair's prompt and both responses."""
        return int(self._lengths_N_3[number].sum())

    def longest(self) -> int:
        """The most tokens that a pair has."""
        return int(self._lengths_N_3.sum(axis=1).max())


def write_pair_file(path: Path, sources: Sequence[PairSource], max_length: int) -> dict[str, int]:
    """Write the pairs of all sources, with their log-probabilities, into a file for `TrainingPairs`.

    Responses are cut at the end to fit `max_length`.

    Returns:
        Counts: `rows` = the pairs + `dropped/long_prompt`; `cut_chosen` and `cut_rejected` responses;
        `equal_after_cut`, pairs whose responses differed behind the cut alone, which are kept and teach
        nothing. With several sources `pairs/<origin>` say how many are trained on of each.

    Raises:
        DataError: pairs and log-probabilities do not belong together, or no pair of a source is left.

    Example:
        {"rows": 21, "dropped/long_prompt": 1, "cut_chosen": 2, "cut_rejected": 2, "equal_after_cut": 0}
    """
    names = ("rows", "dropped/long_prompt", "cut_chosen", "cut_rejected", "equal_after_cut")
    total = Counter(dict.fromkeys(names, 0))
    of_each: dict[str, int] = {}

    def all_pairs() -> Iterator[Pair]:
        for source in sources:
            counts = Counter(dict.fromkeys(names, 0))
            yield from _pairs_of(source, max_length, counts)
            total.update(counts)
            of_each[f"pairs/{source.origin}"] = counts["rows"] - counts["dropped/long_prompt"]

    write_ready(path, all_pairs())
    return dict(total) | (of_each if len(sources) > 1 else {})


def write_ready(path: Path, pairs: Iterator[Pair]) -> None:
    """Write pairs that are cut, and have their log-probabilities, into a file for `TrainingPairs`."""
    write_batches(path, _SCHEMA, _batches(pairs))


def _pairs_of(source: PairSource, max_length: int, counts: Counter[str]) -> Iterator[Pair]:
    """The pairs of a source, shard by shard; raises DataError where there is none."""
    num_pairs = 0
    for path in shard_paths(source.pairs):
        for row, (name, logprobs) in zip(_rows(path), source.anchor.of(path), strict=True):
            # Log-probabilities of another pair would train without an error, and wrongly.
            if name is not None and name != row.id:
                place = f"{source.anchor.reference}/{path.name}"
                raise DataError(f"{place}: row {name} stands where {path} has {row.id}")
            counts["rows"] += 1
            pair = _fit_to_length(row, logprobs, max_length, counts)
            if pair is not None:
                num_pairs += 1
                yield pair
    if not num_pairs:
        raise DataError(
            f"{source.pairs}: no pair to train on ({counts['rows']} rows, {counts['dropped/long_prompt']} "
            f"with prompts longer than dpo.max_length={max_length} allows). See why the pair stage dropped "
            "the rest in its counts: raise generate.max_new_tokens or set pair.truncated=allow when answers "
            "are cut, lower pair.min_margin, or use more prompts or samples."
        )


def _logprobs_shard(pairs_shard: Path, reference: Path) -> Path:
    """The reference's shard that goes with a shard of pairs, row by row."""
    path = reference / pairs_shard.name
    if not path.exists() or num_rows(path) != num_rows(pairs_shard):
        raise DataError(f"{path}: does not go with {pairs_shard}; redo the reference stage for these pairs")
    return path


@dataclass(frozen=True)
class _Row:
    """A row of a shard of pairs, uncut; its arrays are parts of those of the shard."""

    id: str
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    score_margin: float


def _rows(path: Path) -> Iterator[_Row]:
    """The rows of a shard."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=_COLUMNS)
    ids = table["id"].to_pylist()
    # Not as lists: Python's numbers take eight times the room, and most of the time.
    prompts = _arrays(table["prompt_token_ids"])
    chosen = _arrays(table["chosen_token_ids"])
    rejected = _arrays(table["rejected_token_ids"])
    margins = pc.subtract(table["chosen_penalised"], table["rejected_penalised"]).to_pylist()
    for columns in zip(ids, prompts, chosen, rejected, margins, strict=True):
        yield _Row(*columns)


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Each list of a column of token ids, without a copy."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy()
    offsets = lists.offsets.to_pylist()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def _fit_to_length(row: _Row, logprobs: list[float], max_length: int, counts: Counter[str]) -> Pair | None:
    """A row with its responses cut; None where the prompt leaves no room for one."""
    # As the reference stage cut them: the log-probabilities are of these very tokens.
    budget = response_budget(len(row.prompt), max_length)
    if budget < 1:
        counts["dropped/long_prompt"] += 1
        return None
    counts["cut_chosen"] += len(row.chosen) > budget
    counts["cut_rejected"] += len(row.rejected) > budget
    chosen = row.chosen[:budget]
    rejected = row.rejected[:budget]
    counts["equal_after_cut"] += np.array_equal(chosen, rejected)
    return Pair(row.id, row.prompt, chosen, rejected, logprobs[0], logprobs[1], row.score_margin)


def _batches(pairs: Iterator[Pair]) -> Iterator[pa.RecordBatch]:
    """The pairs in pieces of the file."""
    while block := list(itertools.islice(pairs, _PAIRS_AT_A_TIME)):
        columns = []
        for field in _SCHEMA:
            values = [getattr(pair, field.name) for pair in block]
            columns.append(_lists(values) if field.type == _IDS else pa.array(values, field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _lists(arrays: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in arrays], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays), pa.int32()))
