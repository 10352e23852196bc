"""The gradient of a judge's training step: pairs packed, as stage `reward_model` computes them, and padded.

Pairs have the lengths of two data sets, and random tokens. The model is that of `benchmarks.dpo_step` with a
score head. Both ways take the same batches of the same pairs in turn, forward and backward; the padded way is
TRL's collator and the model's own forward pass. No time counts unless the scores of all pairs are equal.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.dpo_step import LENGTHS, be_quiet, make_model, random_pairs
from benchmarks.rows import Cost, Row, Stopwatch, cost_in_a_process, in_turn, median, times_faster

NUM_PAIRS = 16
BARS = {"ultrafeedback": {1: 1.3, 4: 2.0}, "hh": {1: 1.4, 4: 2.0}}
"""Of each data set: what is to be reached with so many pairs in a micro-batch."""
EQUAL = 1e-5
SUBJECTS = ("padded", "packed")


class Work(NamedTuple):
    """What a process measures."""

    subject: str
    model: Path
    pairs: list[dict[str, list[int]]]
    micro_batch: int
    threads: int


def step_cost(work: Work) -> Cost:
    """Forward and backward of all pairs; the proof are their scores, chosen and rejected."""
    import torch
    from torch.nn.functional import logsigmoid
    from trl.trainer.reward_trainer import DataCollatorForPreference

    from rlhf.training.score_head import pack_pairs, packed_scores, use_fp32_head
    from rlhf.training.shared_attention import share_prompts
    from rlhf.training.weights import load_model

    be_quiet(work.threads)
    torch.manual_seed(0)  # of the score head
    model = load_model(work.model, torch.float32, reward_model=True)
    model.config.pad_token_id = 0
    collate: Callable[[list[Any]], dict[str, Any]] = DataCollatorForPreference(pad_token_id=0)
    score: Callable[..., Any] = model
    why_not = use_fp32_head(model)
    assert not why_not, why_not
    if work.subject == "packed":
        why_not = share_prompts(model)
        assert not why_not, why_not
        collate = pack_pairs
        score = partial(packed_scores, model)
    # What only a process's first pass takes is no part of it.
    score(**collate(work.pairs[:1]), use_cache=False).logits.sum().backward()
    scores = []
    watch = Stopwatch()
    for start in range(0, len(work.pairs), work.micro_batch):
        batch = collate(work.pairs[start : start + work.micro_batch])
        chosen_B, rejected_B = score(**batch, use_cache=False).logits[:, 0].chunk(2)
        loss = -logsigmoid(chosen_B - rejected_B).sum() / len(work.pairs)
        loss.backward()
        scores += [*chosen_B.tolist(), *rejected_B.tolist()]
    return watch.cost(scores)


def rows(runs: int) -> list[Row]:
    """Processor seconds of each data set's pairs, packed against padded, by pairs of a micro-batch."""
    data_sets = json.loads(LENGTHS.read_text(encoding="utf-8"))
    threads = len(os.sched_getaffinity(0))
    # Read by the processes that are started: the libraries want them before they are imported.
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=str(threads))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        make_model(model)
        for name, bars in BARS.items():
            pairs = []
            for prompt, chosen, rejected in random_pairs(data_sets[name]["lengths"][:NUM_PAIRS], seed=0):
                pairs.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
            for micro_batch, bar in bars.items():
                found.append(_row(f"{name}/micro_batch_{micro_batch}", bar, model, pairs, micro_batch, runs))
    return found


def _row(
    name: str, bar: float, model: Path, pairs: list[dict[str, list[int]]], micro_batch: int, runs: int
) -> Row:
    threads = len(os.sched_getaffinity(0))
    works: dict[str, Callable[[], Cost]] = {}
    for subject in SUBJECTS:
        work = Work(subject, model, pairs, micro_batch, threads)
        works[subject] = partial(cost_in_a_process, step_cost, work)
    taken = in_turn(works, runs)
    padded, packed = taken.values()
    for one, other in zip(padded, packed, strict=True):
        for theirs, ours in zip(one.proof, other.proof, strict=True):
            assert abs(theirs - ours) <= EQUAL * (1 + abs(theirs)), (name, theirs, ours)
    seconds = [median(costs, "processor_seconds") for costs in (padded, packed)]
    held = [median(costs, "peak_gigabytes") for costs in (padded, packed)]
    detail = (
        f"{len(pairs)} pairs: padded {seconds[0]:.1f} s, {held[0]:.2f} GB; "
        f"packed {seconds[1]:.1f} s, {held[1]:.2f} GB"
    )
    reached = times_faster(padded, packed, "processor_seconds")
    return Row(f"reward_model/{name}", reached, bar, "× padded rows", detail=detail)
