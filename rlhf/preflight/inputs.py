"""Whether what a run is given is there: models, data files, prompts, rules, a judge's server, runs to reuse.

Checks that later ones build on put what they found into a dictionary or list that the caller hands them:
they are generators of findings, and an error half-way must not lose what was found before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.choices import JudgeKind
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.data.columns import unread_text
from rlhf.data.files import resolved
from rlhf.data.prompts import read_prompts
from rlhf.data.records import Message, Prompt, what_became
from rlhf.errors import UserError
from rlhf.loop.judges import models_of, rules_of
from rlhf.loop.prompt_sets import (
    has_set_per_iteration,
    held_out_by,
    prompt_paths,
    samples_to_train,
    too_few,
)
from rlhf.models.weight_files import has_weights, num_parameters, saved_dtype
from rlhf.preflight.capacity import approximate_size
from rlhf.preflight.findings import Finding, finding, refusal
from rlhf.run import hub, sources
from rlhf.run.licences import licence_in
from rlhf.run.reuse import finished_stages

# Of each file of prompts; a look must not take longer than a person waits for it.
MAX_ROWS = 20_000
MAX_SECONDS = 5.0
NUM_RENDERED = 100
"""About so many prompts of each file are rendered with the policy's chat template."""

_HELD_OUT = "prompts.held_out_path"
# Held-out prompts first: what they hold is left out of the training prompts, which are read after them.
_FILES = (
    _HELD_OUT,
    "sft.data",
    "pair.data",
    "replay.data",
    "reward_model.data",
    "reward_model.on_policy.prompts",
)
_MADE_HERE = "– made by this run"
_NUM_DIGITS = 12
"""Of a commit, as many as tell it from others."""


def models(cfg: Config, folders: dict[str, Path], sizes: dict[str, float]) -> Iterator[Finding]:
    """Every model that is loaded.

    Args:
        cfg: a run's config.
        folders: gets the folders of those from outside, by config key.
        sizes: gets their parameters likewise, 0 where unknown.

    Example:
        folders: {"model.path": Path("/models/llama")}, sizes: {"model.path": 8.03e9}
    """
    for key, (path, revision) in models_of(cfg).items():
        try:
            text = _MADE_HERE
            if not path.startswith("@"):
                # Of a model on the Hub the small files alone: its weights are fetched when all else is well.
                folder = sources.model_folder(path, revision, key, weights=False)
                size, text = _size_and_text(folder, path)
                folders[key] = folder
                sizes[key] = size
            yield finding(True, f"{key}={path}: {text}")
        except UserError as error:
            yield refusal(str(error))


def _size_and_text(folder: Path, path: str) -> tuple[float, str]:
    """Parameters of a model, 0 where unknown, and what to say of it."""
    licence = f"licence {licence_in(folder)}"
    if not has_weights(folder):
        return approximate_size(path) or 0, f"on the Hub, commit {folder.name[:_NUM_DIGITS]}, {licence}"
    size = float(num_parameters(folder))
    dtype = saved_dtype(folder)
    return size, f"{size / 1e6:.4g} M parameters, {dtype}, {licence}"


def data(cfg: Config, files: dict[str, Path]) -> Iterator[Finding]:
    """Every data file, rule, server and run to reuse.

    Args:
        cfg: a run's config.
        files: gets the local files by config key, held-out prompts first.

    Example:
        files: {"prompts.held_out_path": Path("held_out.jsonl"), "prompts.path": Path("train.jsonl")}
    """
    rules = rules_of(cfg)
    for key, path in _named_data(cfg).items():
        try:
            text = _text_of_rule(key, path) if key in rules else _text_of_data(key, path, files)
            yield finding(True, f"{key}={path}: {text}")
        except UserError as error:
            yield refusal(str(error))
    # What a generative judge's server says is looked at by itself.
    if cfg.reward_model.url is not None and cfg.reward_model.kind is not JudgeKind.generative:
        yield _server(cfg.reward_model.url)
    for path in cfg.reuse:
        num_stages = len(list(finished_stages(resolved(path, "reuse"))))
        text = f"reuse={path}: {num_stages} finished stages"
        yield finding(num_stages > 0, text, "Nothing is taken from it.")


def _named_data(cfg: Config) -> dict[str, str]:
    """What the config names, by key; a file of prompts for each iteration has a key of its own."""
    named = {}
    for key in _FILES:
        value = value_at(cfg, key)
        if value is not None:
            named[key] = str(value)
    named |= rules_of(cfg)
    per_iteration = has_set_per_iteration(cfg)
    for t in range(1, cfg.num_iterations + 1 if per_iteration else 2):
        for number, path in enumerate(prompt_paths(cfg, t), start=1):
            key = f"prompts.path.{t}" if per_iteration else "prompts.path"
            named[key if number == 1 else f"{key}.file{number}"] = path
    return named


def _text_of_rule(key: str, path: str) -> str:
    """What to say of a rule whose module is there; a UserError where it is not."""
    # It is found, not imported: its code has no business in the driver.
    sources.function_source(path, key)
    return "the module is there"


def _text_of_data(key: str, path: str, files: dict[str, Path]) -> str:
    """What to say of a data file that is there; a UserError where it is not."""
    if path.startswith("@"):
        return _MADE_HERE
    dataset = hub.parse_dataset(path)
    # A path such as `data/train` reads like a data set; one that exists here is meant.
    if dataset is None or resolved(path, key).exists():
        file = sources.local_file(path, key)
        files[key] = file
        return f"{file.stat().st_size / 1e6:.3g} MB"
    folder = hub.fetch_dataset(dataset.repo, dataset.revision, key, rows=False)
    what = f"on the Hub, commit {folder.name[:_NUM_DIGITS]}, licence {licence_in(folder)}"
    return f"{what}; its rows are looked at by the run's first stages"


def _server(url: str) -> Finding:
    import httpx

    try:
        status = httpx.get(url.rstrip("/") + "/health", timeout=5).status_code
    except httpx.HTTPError as error:
        fine = False
        answer = f"no answer, {type(error).__name__}: {error}"
    else:
        # 404 is fine: not every server has /health.
        fine = status < 500
        answer = f"HTTP {status}"
    # Never more than a warning: it may be started while the run samples.
    way_out = "Start it before the first score stage, which asks for score.retry_seconds before it gives up."
    return finding(fine, f"reward_model.url={url}: {answer}", way_out)


def first_of(rows: Iterator[Any], counts: Counter[str]) -> tuple[list[Any], bool]:
    """What a reader gives for the first rows of a file, and whether more rows follow.

    Args:
        rows: a reader of `rlhf.data`.
        counts: that it adds to while reading.
    """
    begun = time.monotonic()
    first = []
    for row in rows:
        first.append(row)
        seconds = time.monotonic() - begun
        if counts["rows"] > MAX_ROWS or seconds > MAX_SECONDS:
            return first, True
    return first, False


@dataclass(frozen=True)
class _Reading:
    """The first prompts of a file, what became of the rows that were read, and whether more rows follow."""

    prompts: list[Prompt]
    counts: Counter[str]
    is_part: bool


def _first_prompts(file: Path, columns: Mapping[str, Any] | None) -> _Reading:
    counts = Counter[str]()
    first, is_part = first_of(read_prompts(file, counts, columns=columns), counts)
    return _Reading(first, counts, is_part)


def first_prompt(cfg: Config, files: Mapping[str, Path], key: str) -> list[Message] | None:
    """The messages of a file's first prompt; None where it is not here, or holds none."""
    if key not in files:
        return None
    try:
        prompt = next(read_prompts(files[key], Counter[str](), columns=cfg.prompts.columns), None)
    except UserError:
        return None  # said where its rows are looked at
    return None if prompt is None else list(prompt.messages)


def prompts(cfg: Config, files: dict[str, Path], sample: list[list[Message]]) -> Iterator[Finding]:
    """Whether the prompts are enough, and apart from the held-out ones and each other.

    Args:
        cfg: a run's config.
        files: what `data` found, held-out prompts first.
        sample: gets some of the prompts.

    Raises:
        DataError: a file holds no prompt.

    Example:
        sample: [[{"role": "user", "content": "Hi"}], …]
    """
    known_ids: set[str] = set()
    # Without a file of their own, held-out prompts are cut off the first training set.
    num_cut = cfg.prompts.num_held_out if cfg.prompts.held_out_path is None else 0
    for key, file in files.items():
        if not key.startswith("prompts."):
            continue
        reading = _first_prompts(file, cfg.prompts.columns)
        yield _how_many(key, reading)
        unread = unread_text(reading.counts, "prompts")
        if unread is not None:
            yield finding(False, f"{key}: {unread}", "What it holds would be missing from the question.")
        ids = {prompt.id for prompt in reading.prompts}
        # Where nothing else is asked, held-out prompts stand for them.
        if key != _HELD_OUT or not prompt_paths(cfg, 1):
            sample.extend(_some_messages(reading.prompts))
        if key != _HELD_OUT:
            num_known = len(ids & known_ids)
            text = f"{key}: {num_known} of {len(ids)} prompts are in prompts.held_out_path or an earlier "
            yield finding(not num_known, f"{text}iteration's set", "They are left out of this one.")
            problem = None
            if samples_to_train(cfg):
                problem = _too_few(cfg, key, reading, len(ids - known_ids) - num_cut)
            if problem is not None:
                yield refusal(problem)
            num_cut = 0
        known_ids |= ids


def _how_many(key: str, reading: _Reading) -> Finding:
    num_prompts = len(reading.prompts)
    rows = what_became(reading.counts)
    if reading.is_part:
        rows = f"the first {rows}"
    # A fifth is more than duplicates and an odd row account for: the file may be of another shape.
    fine = num_prompts > 0.8 * reading.counts["rows"]
    text = f"{key}: {num_prompts} prompts in {rows}"
    return finding(fine, text, "Many rows are dropped; look at the file.")


def _some_messages(first: list[Prompt]) -> list[list[Message]]:
    """About `NUM_RENDERED` prompts from all over the file: its parts may come from different sources."""
    step = max(1, len(first) // NUM_RENDERED)
    some = first[::step]
    return [list(prompt.messages) for prompt in some]


def _too_few(cfg: Config, key: str, reading: _Reading, num_left: int) -> str | None:
    """What to say where too few prompts are left to train on; None for enough, or where more may follow."""
    if reading.is_part:
        return None
    if num_left <= 0:
        fewer = f"hold out fewer ({held_out_by(cfg)})"
        return f"{key}: no prompt is left to train on. Name another file, or {fewer}."
    # Of several files none has to be enough alone.
    if key == "prompts.path" and len(prompt_paths(cfg, 1)) == 1:
        return too_few(cfg, num_left, dict(reading.counts))
    return None
