"""Stage `prompts`: which prompts train, in which order, and which are held out.

Inputs: `prompts` (a file) and, if the experiment has one, `held_out` (a file); one of the two is enough
where pairs are given to train on. Output: `train.parquet`, whose slices the iterations take in turn,
`held_out.parquet`, and where its rows say so `origins.json` (`rlhf.data.origins`), for people to look at.
Neither depends on the file's order or on `num_iterations`.

Where each iteration has a set of its own, this stage runs for each; the inputs `seen_held_out` and
`seen_<T>` are then prompts that the set must not have again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import PromptsStage
from rlhf.data.json_text import json_text
from rlhf.data.origins import FILE as ORIGINS
from rlhf.data.origins import Origin
from rlhf.data.prompts import load_prompts
from rlhf.data.reading_notes import reading_notes
from rlhf.data.records import Prompt, dropped, to_row, what_became
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import read_rows, write_atomic, write_shard
from rlhf.errors import ConfigError, DataError
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[PromptsStage], worker: Worker) -> Outcome:
    """Read, shuffle, split and write the prompts.

    All prompts are in memory (`load_prompts` says how much that takes).

    Counts: `rows` (of both files) = `train` + `held_out` + the sum of `dropped/<reason>`.

    Raises:
        ConfigError: `num_held_out` leaves nothing to train on.
        DataError: a file cannot be used, or every training prompt is held out.
    """
    num_held_out = int(job.config.num_held_out)
    needs_training = job.config.needs_training
    origins: dict[str, Origin] = {}
    prompts, counts = _all_prompts(job, origins)
    if "held_out" in job.inputs:
        train, held_out = split_by_file(
            prompts, job.input_path("held_out"), job.seed, num_held_out, counts, job.config.columns, origins
        )
        if needs_training and not train:
            raise DataError(
                f"Every prompt of prompts.path is also in prompts.held_out_path ({job.inputs['held_out']}): "
                "none is left to train on. Name another file, or set prompts.held_out_path=null to "
                "cut the held-out prompts off prompts.path."
            )
    else:
        # Held-out ones are cut off in front: which they are must not depend on how many the iterations take.
        ordered = shuffled(prompts, job.seed)
        held_out = ordered[:num_held_out]
        train = ordered[num_held_out:]
        if needs_training and not train:
            raise ConfigError(
                f"prompts.num_held_out is {num_held_out}, and {job.inputs['prompts']} has {len(prompts)} "
                "distinct prompts: none is left to train on. Lower it, give more prompts, or name a file "
                "of its own in prompts.held_out_path."
            )
    seen = sorted(name for name in job.inputs if name.startswith("seen_"))
    # One after the other, so that each prompt is counted as dropped once, for the first reason.
    for name in seen:
        train = without_seen(train, job.input_path(name), name, counts)
    if needs_training and not train:
        raise DataError(
            f"{job.inputs['prompts']}: every prompt is held out or belongs to an earlier iteration "
            f"({what_became(counts)}). Give other prompts, or hold out fewer (prompts.num_held_out)."
        )
    counts.update(train=len(train), held_out=len(held_out))
    num_dropped = sum(dropped(counts).values())
    assert counts["rows"] == len(train) + len(held_out) + num_dropped, counts
    write_shard(job.out_path / "train.parquet", PROMPT_SCHEMA, map(to_row, train))
    write_shard(job.out_path / "held_out.parquet", PROMPT_SCHEMA, map(to_row, held_out))
    known = {prompt.id: origins[prompt.id]._asdict() for prompt in held_out if any(origins[prompt.id])}
    if known:
        # A file of its own: the Parquet files' bytes, on which old runs hang, stay what they were.
        write_atomic(job.out_path / ORIGINS, json_text(known).encode())
    return Outcome(counts=dict(counts), metrics=reading_notes(counts, "prompts"))


def _all_prompts(job: Job[PromptsStage], origins: dict[str, Origin]) -> tuple[list[Prompt], Counter[str]]:
    """The distinct prompts of all files, and what became of every row; a prompt of two files counts once.

    `origins` gets where each comes from.
    """
    prompts: dict[str, Prompt] = {}
    counts = Counter[str]()
    for name in sorted(job.inputs):
        if name != "prompts" and not name.startswith("prompts_"):
            continue
        of_file, counts_of_file = load_prompts(
            job.input_path(name), columns=job.config.columns, origins=origins
        )
        counts.update(counts_of_file)
        for prompt in of_file:
            if prompt.id in prompts:
                counts["dropped/duplicate"] += 1
            prompts.setdefault(prompt.id, prompt)
    return list(prompts.values()), counts


def shuffled(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order that depends on the seed and on each prompt alone: sha256(seed, id)."""

    def place(prompt: Prompt) -> bytes:
        text = f"{seed}/{prompt.id}"
        digest = hashlib.sha256(text.encode())
        return digest.digest()

    # No random.shuffle: there one more prompt, or another order of the file, would move all the others.
    return sorted(prompts, key=place)


def without_seen(prompts: list[Prompt], path: Path, name: str, counts: Counter[str]) -> list[Prompt]:
    """The prompts that are not in a file that this stage wrote; the others are counted."""
    seen_ids = {row["id"] for row in read_rows(path, ["id"])}
    unseen = [prompt for prompt in prompts if prompt.id not in seen_ids]
    num_seen = len(prompts) - len(unseen)
    # A reason of which there is none is not reported.
    if num_seen:
        reason = "in_held_out" if name == "seen_held_out" else "in_earlier_iteration"
        counts[f"dropped/{reason}"] += num_seen
    return unseen


def split_by_file(
    prompts: list[Prompt],
    held_out_path: Path,
    seed: int,
    num_held_out: int,
    counts: Counter[str],
    columns: Mapping[str, Any] | None = None,
    origins: dict[str, Origin] | None = None,
) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts that are not in the held-out file, and up to `num_held_out` prompts of that file.

    Adds to `counts`: the held-out file's rows and drops, `dropped/in_held_out`, `dropped/over_num_held_out`.
    """
    all_held_out, held_out_counts = load_prompts(held_out_path, columns=columns, origins=origins)
    counts.update(held_out_counts)
    # All of the file, not only those that are measured on: it may be another project's test set.
    held_out_ids = {prompt.id for prompt in all_held_out}
    train = [prompt for prompt in shuffled(prompts, seed) if prompt.id not in held_out_ids]
    held_out = shuffled(all_held_out, seed)[:num_held_out]
    num_dropped = {
        "in_held_out": len(prompts) - len(train),
        "over_num_held_out": len(all_held_out) - len(held_out),
    }
    for reason, number in num_dropped.items():
        if number:
            counts[f"dropped/{reason}"] += number
    return train, held_out
