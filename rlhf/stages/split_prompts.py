"""Stage `prompts`: which prompts train, in which order, and which are held out.

Inputs: `prompts` (a file) and, if the experiment has one, `held_out` (a file); one of the two is enough
where pairs are given to train on. Output: `train.parquet`, whose slices the iterations take in turn,
`held_out.parquet`, and where its rows say so `origins.json` (`rlhf.data.origins`), for people to look at.
Neither depends on the file's order or on `num_iterations`.

Where each iteration has a set of its own, this stage runs for each; the inputs `seen_held_out` and
`seen_<T>` are then prompts that the set must not have again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from rlhf.config.stage_configs import PromptsStage
from rlhf.data.json_text import json_text
from rlhf.data.origins import FILE as ORIGINS
from rlhf.data.origins import Origin, origin_of
from rlhf.data.packed_prompts import PackedPrompts
from rlhf.data.prompts import prompts_with_rows
from rlhf.data.reading_notes import reading_notes
from rlhf.data.records import dropped, what_became
from rlhf.data.shards import read_rows, write_atomic, write_table
from rlhf.errors import ConfigError, DataError
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[PromptsStage], worker: Worker) -> Outcome:
    """Read, shuffle, split and write the prompts.

    All prompts are in memory, at twice their text and some 200 bytes each.

    Counts: `rows` (of both files) = `train` + `held_out` + the sum of `dropped/<reason>`.

    Raises:
        ConfigError: `num_held_out` leaves nothing to train on.
        DataError: a file cannot be used, or every training prompt is held out.
    """
    num_held_out = int(job.config.num_held_out)
    needs_training = job.config.needs_training
    counts = Counter[str]()
    prompts = _all_prompts(job, counts)
    # Of `held_out`, where it is a file of its own, places there; else of `prompts`, as those of `train`.
    held_out = prompts
    if "held_out" in job.inputs:
        held_out = PackedPrompts()
        _read(job, "held_out", held_out, set(), counts)
        train_places, held_out_places = split_by_file(prompts, held_out, job.seed, num_held_out, counts)
        if needs_training and not len(train_places):
            raise DataError(
                f"Every prompt of prompts.path is also in prompts.held_out_path ({job.inputs['held_out']}): "
                "none is left to train on. Name another file, or set prompts.held_out_path=null to "
                "cut the held-out prompts off prompts.path."
            )
    else:
        # Held-out ones are cut off in front: which they are must not depend on how many the iterations take.
        ordered = prompts.shuffled(job.seed)
        held_out_places, train_places = ordered[:num_held_out], ordered[num_held_out:]
        if needs_training and not len(train_places):
            raise ConfigError(
                f"prompts.num_held_out is {num_held_out}, and {job.inputs['prompts']} has {len(prompts)} "
                "distinct prompts: none is left to train on. Lower it, give more prompts, or name a file "
                "of its own in prompts.held_out_path."
            )
    seen = sorted(name for name in job.inputs if name.startswith("seen_"))
    # One after the other, so that each prompt is counted as dropped once, for the first reason.
    for name in seen:
        train_places = without_seen(prompts, train_places, job.input_path(name), name, counts)
    if needs_training and not len(train_places):
        raise DataError(
            f"{job.inputs['prompts']}: every prompt is held out or belongs to an earlier iteration "
            f"({what_became(counts)}). Give other prompts, or hold out fewer (prompts.num_held_out)."
        )
    counts.update(train=len(train_places), held_out=len(held_out_places))
    num_dropped = sum(dropped(counts).values())
    assert counts["rows"] == len(train_places) + len(held_out_places) + num_dropped, counts
    write_table(job.out_path / "train.parquet", prompts.take(train_places))
    write_table(job.out_path / "held_out.parquet", held_out.take(held_out_places))
    known = _known_origins(prompts, held_out, held_out_places)
    if known:
        # A file of its own: the Parquet files' bytes, on which old runs hang, stay what they were.
        write_atomic(job.out_path / ORIGINS, json_text(known).encode())
    return Outcome(counts=dict(counts), metrics=reading_notes(counts, "prompts"))


def _all_prompts(job: Job[PromptsStage], counts: Counter[str]) -> PackedPrompts:
    """The distinct prompts of all files; a prompt of two files counts once. Adds to `counts` what became of
    every row.
    """
    prompts = PackedPrompts()
    seen: set[int] = set()
    for name in sorted(job.inputs):
        if name == "prompts" or name.startswith("prompts_"):
            _read(job, name, prompts, seen, counts)
    return prompts


def _read(
    job: Job[PromptsStage], name: str, prompts: PackedPrompts, seen: set[int], counts: Counter[str]
) -> None:
    """Add the prompts of an input."""
    # Errors are about one file's rows.
    counts_of_file = Counter[str]()
    rows = prompts_with_rows(job.input_path(name), counts_of_file, seen, columns=job.config.columns)
    for row, prompt in rows:
        prompts.add(prompt, origin_of(row))
    counts.update(counts_of_file)


def _known_origins(
    prompts: PackedPrompts, held_out: PackedPrompts, places: np.ndarray
) -> dict[str, dict[str, str | None]]:
    """Where held-out prompts come from, by id, of those whose rows say so."""
    origins: dict[str, Origin] = held_out.origins(places)
    if held_out is not prompts:
        # The first file that has a prompt is the one that it is taken from.
        held_out_ids = held_out.ids()[places]
        is_held_out = np.isin(prompts.ids(), held_out_ids)
        earlier = np.flatnonzero(is_held_out)
        origins |= prompts.origins(earlier)
    return {name: origin._asdict() for name, origin in origins.items() if any(origin)}


def without_seen(
    prompts: PackedPrompts, places: np.ndarray, path: Path, name: str, counts: Counter[str]
) -> np.ndarray:
    """The places of the prompts that are not in a file that this stage wrote; the others are counted."""
    seen_ids = np.fromiter((int(row["id"], 16) for row in read_rows(path, ["id"])), dtype=np.uint64)
    is_seen = np.isin(prompts.ids()[places], seen_ids)
    num_seen = int(is_seen.sum())
    # A reason of which there is none is not reported.
    if num_seen:
        reason = "in_held_out" if name == "seen_held_out" else "in_earlier_iteration"
        counts[f"dropped/{reason}"] += num_seen
    return places[~is_seen]


def split_by_file(
    prompts: PackedPrompts, all_held_out: PackedPrompts, seed: int, num_held_out: int, counts: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training prompts that are not in the held-out file, and of up to `num_held_out` of that
    file's.

    Adds to `counts`: `dropped/in_held_out`, `dropped/over_num_held_out`.
    """
    # All of the file, not only those that are measured on: it may be another project's test set.
    is_held_out = np.isin(prompts.ids(), all_held_out.ids())
    ordered = prompts.shuffled(seed)
    train = ordered[~is_held_out[ordered]]
    held_out = all_held_out.shuffled(seed)[:num_held_out]
    num_dropped = {
        "in_held_out": len(prompts) - len(train),
        "over_num_held_out": len(all_held_out) - len(held_out),
    }
    for reason, number in num_dropped.items():
        if number:
            counts[f"dropped/{reason}"] += number
    return train, held_out
