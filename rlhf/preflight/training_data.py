"""What is trained on: the rows of the files that hold it, and how many steps they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.choices import Method
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.config.step_count import StepCount, steps_of
from rlhf.data.conversations import read_conversations
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import read_prompts
from rlhf.data.reading_notes import reading_notes
from rlhf.data.records import what_became
from rlhf.errors import UserError
from rlhf.loop.prompt_sets import samples_to_train
from rlhf.preflight.findings import Finding, Level, finding, refusal
from rlhf.preflight.inputs import first_of


@dataclass(frozen=True)
class _File:
    """How the rows of a file are read: `columns` is the key of what its columns hold, `of` what counts."""

    read: Callable[..., Iterator[Any]]
    columns: str
    what: str
    of: str = "rows"


_FILES = {
    "sft.data": _File(read_conversations, "sft.columns", "conversations"),
    "reward_model.data": _File(read_preferences, "reward_model.columns", "pairs", "comparisons"),
    "reward_model.on_policy.prompts": _File(read_prompts, "prompts.columns", "prompts"),
    "pair.data": _File(read_preferences, "pair.columns", "pairs", "comparisons"),
    "replay.data": _File(read_preferences, "replay.columns", "pairs", "comparisons"),
}


def training_rows(cfg: Config, files: Mapping[str, Path], numbers: dict[str, int]) -> Iterator[Finding]:
    """What became of the first rows of each training file.

    Args:
        cfg: a run's config.
        files: local files by config key.
        numbers: gets how many conversations or pairs each file holds that was read to its end.

    Example:
        numbers: {"sft.data": 1600, "reward_model.data": 2500}
    """
    for key, how in _FILES.items():
        if key not in files:
            continue
        counts = Counter[str]()
        try:
            rows, is_part = first_of(how.read(files[key], counts, columns=value_at(cfg, how.columns)), counts)
        except UserError as error:
            found = refusal(str(error))
            # Of a row of no known shape the one sentence names the shapes.
            way_out = f"Name another file in {key}, or say in {how.columns} what its columns hold."
            yield replace(found, way_out=found.way_out or way_out)
            continue
        if key == "sft.data":
            rows = _answered(rows, counts)
        yield _how_many(key, how, len(rows), counts, is_part)
        note = reading_notes(counts, key.partition(".")[0]).get("warning")
        if note is not None:
            yield finding(False, f"{key}: {note}", "Look at the file, or at docs/training.md for its shapes.")
        if not is_part:
            numbers[key] = len(rows)


def _answered(conversations: list[Any], counts: Counter[str]) -> list[Any]:
    """Conversations with an answer to learn; the others are counted, as SFT does."""
    answered = []
    for messages in conversations:
        if any(message["role"] == "assistant" for message in messages):
            answered.append(messages)
        else:
            counts["dropped/no_answer"] += 1
    return answered


def _how_many(key: str, how: _File, number: int, counts: Counter[str], is_part: bool) -> Finding:
    rows = what_became(counts, how.of)
    if is_part:
        rows = f"the first {rows}"
    text = f"{key}: {number} {how.what} in {rows}"
    level = Level.warning if number or is_part else Level.error
    # A fifth is more than an odd row and a tie account for: the file may be of another shape.
    return finding(number > 0.8 * counts[how.of], text, "Many rows are dropped; look at the file.", level)


def step_counts(cfg: Config, numbers: Mapping[str, int]) -> Iterator[Finding]:
    """How many steps each training has, as far as it can be told.

    Args:
        cfg: a run's config.
        numbers: of `training_rows`.
    """
    for count in _step_counts(cfg, numbers):
        warnings = list(count.warnings())
        # Templates, lengths, ties and packing make fewer of them.
        text = f"{count.section}: at most {count}"
        yield finding(not warnings, text, "\n".join(warnings))


def _step_counts(cfg: Config, numbers: Mapping[str, int]) -> Iterator[StepCount]:
    if "sft.data" in numbers:
        trained = _without_held_out(numbers["sft.data"], cfg.sft.held_out_share)
        yield steps_of("sft", cfg.sft, trained, "conversations")
    # How many pairs π0's samples will give, nobody knows.
    if "reward_model.data" in numbers and cfg.reward_model.on_policy.prompts is None:
        trained = _without_held_out(numbers["reward_model.data"], cfg.reward_model.held_out_share)
        yield steps_of("reward_model", cfg.reward_model, trained, "pairs")
    if cfg.method is Method.raft:
        trained = _without_held_out(cfg.prompts.num_per_iteration, cfg.raft.held_out_share)
        yield steps_of("raft", cfg.raft, trained, "conversations")
    elif samples_to_train(cfg):
        # Of the first iteration; those after it may replay its pairs.
        num_pairs = cfg.prompts.num_per_iteration * cfg.pair.max_pairs_per_prompt
        yield steps_of("dpo", cfg.dpo, num_pairs + numbers.get("replay.data", 0), "pairs")
    elif "pair.data" in numbers:
        yield steps_of("dpo", cfg.dpo, numbers["pair.data"], "pairs")


def _without_held_out(number: int, share: float) -> int:
    return number - int(number * share)
