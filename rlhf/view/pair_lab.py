"""What settings of `pair` give of stored candidates and scores, by the loop's own pairing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.config.schema import PairSettings
from rlhf.data.pair_columns import pair_table
from rlhf.data.records import dropped
from rlhf.data.scored_shards import read_terminators, scored_shard
from rlhf.data.shards import read_table, shard_name, shard_paths
from rlhf.view.best_of import BestOf
from rlhf.view.scored_runs import Scored

Key = tuple[str, str, str]
"""Prompt id, chosen and rejected response."""
_NOT_COMPARED = ("messages", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids")


@dataclass
class Outcome:
    """The pairs of some settings as figures; `margins` is one array a shard, the rest sums over pairs.

    `counts` are those of the stage `pair`. `shared` pairs have the same prompt, chosen and rejected response
    as one of the run's own. A gap is the chosen response's length less the rejected one's.
    """

    counts: Counter[str] = field(default_factory=Counter)
    margins: list[np.ndarray] = field(default_factory=list)
    token_gap: int = 0
    char_gap: int = 0
    longer: int = 0
    shared: int = 0

    @property
    def pairs(self) -> int:
        """How many."""
        return self.counts["pairs"]

    @property
    def prompts_without(self) -> dict[str, int]:
        """Prompts that give no pair, by reason."""
        return dropped(self.counts)

    def add(self, pairs: pa.Table, counts: Counter[str], present: Counter[Key]) -> None:
        """Add the pairs of one shard."""
        self.counts += counts
        margins = pc.subtract(pairs["chosen_penalised"], pairs["rejected_penalised"])
        self.margins.append(margins.to_numpy())
        token_gaps = _lengths(pairs, "chosen") - _lengths(pairs, "rejected")
        self.token_gap += int(token_gaps.sum())
        self.longer += int((token_gaps > 0).sum())
        chars = pairs["chosen_chars"].to_numpy() - pairs["rejected_chars"].to_numpy()
        self.char_gap += int(chars.sum())
        # As a multiset: several pairs of a prompt may be alike.
        self.shared += (_keys(pairs) & present).total()

    def merge(self, other: Outcome) -> None:
        """Add what another iteration gave."""
        self.counts += other.counts
        self.margins += other.margins
        self.token_gap += other.token_gap
        self.char_gap += other.char_gap
        self.longer += other.longer
        self.shared += other.shared


def _lengths(pairs: pa.Table, side: str) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(pairs[f"{side}_token_ids"]).to_numpy().astype(np.int64)
    return lengths


def _keys(pairs: pa.Table) -> Counter[Key]:
    """What tells one pair from another, and how often it is there."""
    columns = [pairs[name].to_pylist() for name in ("id", "chosen", "rejected")]
    return Counter(zip(*columns, strict=True))


def outcomes_of(scored: Scored, settings: Sequence[PairSettings], best_of: BestOf) -> list[Outcome]:
    """What each of several settings gives of an iteration; memory holds one shard at a time.

    Args:
        scored: the iteration.
        settings: the run's own first.
        best_of: is shown every shard, too.

    Raises:
        DataError: candidates and scores do not belong together.
    """
    terminators = read_terminators(scored.candidates.path)
    outcomes = [Outcome() for _ in settings]
    for index in range(len(shard_paths(scored.candidates.path))):
        name = shard_name(index)
        candidates, scores = scored_shard(scored.candidates.path / name, scored.scores.path / name)
        present: Counter[Key] | None = None
        if scored.pairs is not None:
            present = _keys(read_table(scored.pairs.path / name, leave_out=_NOT_COMPARED))
        for outcome, each in zip(outcomes, settings, strict=True):
            pairs, counts = pair_table(candidates, scores, each, terminators, scored.seed)
            if present is None:
                present = _keys(pairs)  # of the run's own settings, in the place of what is not there
            outcome.add(pairs, counts, present)
        best_of.add(candidates, scores)
    return outcomes
