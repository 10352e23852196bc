"""How long prompts and responses are, and how many rows data files have: measured where they are here, else
assumed, and said either way.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.data.conversations import read_conversations
from rlhf.data.files import resolved
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import read_prompts
from rlhf.data.records import Message
from rlhf.errors import UserError
from rlhf.loop.prompt_sets import prompt_paths
from rlhf.run.commit import MANIFEST

RESPONSE_TOKENS = 550
"""Mean of a chat model with room for 2,048, an assumption; half of the room where that is less."""
PROMPT_TOKENS = 200
"""Mean, an assumption: UltraFeedback's prompts have 157, other parts of the article's sets more."""
TEMPLATE_TOKENS = 15
"""What a chat template adds to a prompt of one turn, an assumption: Llama 3's has 11, ChatML's 9 or 20."""
CHARACTERS_OF_A_TOKEN = 4.0
"""English text in a vocabulary of 100,000 and more; an assumption."""
ROWS = 100_000
"""Of a data set that is not here and whose name says nothing (`…_700K`)."""
HELD_OUT_ROWS = 256
"""Of a file of held-out prompts that is not here."""
# The quickstart's world, as README shows it.
WORLD_PROMPT_TOKENS = 18
WORLD_RESPONSE_TOKENS = 6

_NUM_ROWS = 300
"""That are measured of a file."""
_LARGEST_JSON = 50e6
"""Bytes: a JSON list is read whole, and a plan must not take longer than a person waits."""
_COUNTED_BYTES = 1e9
"""Of a file whose lines are counted; a larger one has as many to the byte."""
_WORLD_ROWS = {
    "sft.data": "num_sft_examples",
    "reward_model.data": "num_preferences",
    "reward_model.on_policy.prompts": "num_judge_prompts",
}


@dataclass
class Lengths:
    """Mean tokens of a prompt (as the template writes it) and of a response, and rows of data files by key.

    `row_tokens` are those of one row (a conversation, or both sides of a pair). `assumed` and `measured` say
    in sentences where all of it is from.
    """

    prompt_tokens: float = 0
    response_tokens: float = 0
    num_held_out: float = 0
    rows: dict[str, float] = field(default_factory=dict)
    row_tokens: dict[str, float] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)


def lengths_of(
    cfg: Config,
    folder: Path | None = None,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
) -> Lengths:
    """What a plan takes for granted. Files that cannot be read are told of, and assumed for.

    Args:
        cfg: a run's config.
        folder: a run folder, whose finished samples are measured; None measures none.
        prompt_tokens: as a person said; None measures or assumes.
        response_tokens: likewise.
    """
    lengths = Lengths()
    sampled = sampled_lengths(folder) if folder is not None else None
    lengths.prompt_tokens = prompt_tokens or _prompt_tokens(cfg, sampled, lengths)
    lengths.response_tokens = response_tokens or _response_tokens(cfg, sampled, lengths)
    lengths.num_held_out = _held_out(cfg, lengths)
    for key, sides in (
        ("sft.data", 1),
        ("reward_model.data", 2),
        ("reward_model.on_policy.prompts", 1),
        ("pair.data", 2),
        ("replay.data", 2),
    ):
        path = value_at(cfg, key)
        if path is not None:
            lengths.rows[key] = _rows(cfg, key, path, lengths)
            whole = lengths.prompt_tokens + lengths.response_tokens
            lengths.row_tokens[key] = _row_tokens(cfg, key, path, lengths) or sides * whole
    return lengths


def sampled_lengths(folder: Path) -> tuple[str, float, float] | None:
    """The newest finished samples of a run: which, with mean tokens of a prompt and of a response.

    None where there are none, or what is there cannot be read.
    """
    import pyarrow.compute as pc  # slow to import, and nobody else here needs it

    manifests = [*folder.glob(f"iteration_*/generate/{MANIFEST}")]
    if not manifests:
        manifests = [*folder.glob(f"iteration_*/held_out/generate/{MANIFEST}")]
    for manifest in sorted(manifests, reverse=True):
        try:
            counts = json.loads(manifest.read_bytes())["counts"]
            shard = pq.read_table(next(manifest.parent.glob("shard_*.parquet")), columns=["prompt_token_ids"])
            prompt = pc.mean(pc.list_value_length(shard["prompt_token_ids"])).as_py()
            response = counts["response_tokens"] / counts["responses"]
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            StopIteration,
            pa.ArrowException,
        ):
            continue  # a damaged folder is refused by the run, and no reason to have no plan
        if prompt and response:
            return str(manifest.parent.relative_to(folder)), float(prompt), float(response)
    return None


def _prompt_tokens(cfg: Config, sampled: tuple[str, float, float] | None, lengths: Lengths) -> float:
    if sampled is not None:
        lengths.measured.append(f"{sampled[1]:.0f} tokens a prompt in {sampled[0]}")
        return sampled[1]
    paths = prompt_paths(cfg, 1) or [cfg.prompts.held_out_path or ""]
    if any(path.startswith("@world/") for path in paths):
        lengths.assumed.append(f"{WORLD_PROMPT_TOKENS} tokens a prompt, as the quickstart's are")
        return WORLD_PROMPT_TOKENS
    characters: list[int] = []
    for path in paths:
        characters += _characters(
            "prompts.path", path, read_prompts, cfg.prompts.columns, _of_prompt, lengths
        )
    if not characters:
        tokens: float = min(PROMPT_TOKENS, cfg.generate.max_prompt_tokens)
        lengths.assumed.append(f"{tokens} tokens a prompt (prompt_tokens=…): {', '.join(paths)} not measured")
        return tokens
    tokens = fmean(characters) / CHARACTERS_OF_A_TOKEN + TEMPLATE_TOKENS
    lengths.measured.append(
        f"{tokens:.0f} tokens a prompt, of the first {len(characters)} of prompts.path at "
        f"{CHARACTERS_OF_A_TOKEN:g} characters a token"
    )
    return min(tokens, cfg.generate.max_prompt_tokens)


def _response_tokens(cfg: Config, sampled: tuple[str, float, float] | None, lengths: Lengths) -> float:
    if sampled is not None:
        lengths.measured.append(f"{sampled[2]:.0f} tokens a response in {sampled[0]}")
        return sampled[2]
    tokens = min(RESPONSE_TOKENS, cfg.generate.max_new_tokens / 2)
    why = " (response_tokens=…)"
    if cfg.world.enabled and cfg.model.path.startswith("@world/"):
        tokens = min(WORLD_RESPONSE_TOKENS, cfg.generate.max_new_tokens)
        why = ", as the quickstart's are"
    lengths.assumed.append(f"{tokens:.0f} tokens a response{why}")
    return tokens


def _held_out(cfg: Config, lengths: Lengths) -> float:
    path = cfg.prompts.held_out_path
    if path is None:
        return cfg.prompts.num_held_out
    if path.startswith("@"):
        return cfg.world.num_held_out
    file = _local(path)
    number = None if file is None else _lines(file)
    if number is None:
        lengths.assumed.append(f"{HELD_OUT_ROWS} held-out prompts in {path}")
        return HELD_OUT_ROWS
    return number


def _rows(cfg: Config, key: str, path: str, lengths: Lengths) -> float:
    """Rows of a data file."""
    if path.startswith("@world/"):
        return float(getattr(cfg.world, _WORLD_ROWS.get(key, ""), ROWS))
    file = _local(path)
    number = None if file is None else _lines(file)
    if number is not None:
        return number
    thousands = re.search(r"(\d+)k(?![a-z0-9])", path, re.IGNORECASE)
    number = 1000.0 * int(thousands[1]) if thousands else float(ROWS)
    says = "by its name" if thousands else "not here, and its name says nothing"
    lengths.assumed.append(f"{number:,.0f} rows in {key}={path} ({says})")
    return number


def _row_tokens(cfg: Config, key: str, path: str, lengths: Lengths) -> float:
    """Mean tokens of a row of a local file; 0 where it is not here."""
    if path.startswith("@world/"):
        sides = 1 if key == "sft.data" else 2
        return sides * (WORLD_PROMPT_TOKENS + WORLD_RESPONSE_TOKENS)
    if key == "sft.data":
        texts = _characters(key, path, read_conversations, cfg.sft.columns, _of_messages, lengths)
    elif key in ("reward_model.data", "pair.data", "replay.data"):
        columns = value_at(cfg, key.replace("data", "columns"))
        texts = _characters(key, path, read_preferences, columns, _of_pair, lengths)
    else:
        return 0
    return fmean(texts) / CHARACTERS_OF_A_TOKEN + TEMPLATE_TOKENS if texts else 0


def _characters(
    key: str,
    path: str,
    read: Callable[..., Iterator[Any]],
    columns: Any,
    size_of: Callable[[Any], int],
    lengths: Lengths,
) -> list[int]:
    """Characters of each of the first rows of a file; nothing where it is not here or cannot be read."""
    file = _local(path)
    if file is None or (file.suffix == ".json" and file.stat().st_size > _LARGEST_JSON):
        return []
    try:
        rows = itertools.islice(read(file, Counter[str](), columns=columns), _NUM_ROWS)
        return [size_of(row) for row in rows]
    except (UserError, OSError, pa.ArrowException) as error:
        first_line = str(error).partition("\n")[0]
        lengths.assumed.append(f"{key}={path} cannot be read and was not measured: {first_line}")
        return []


def _of_prompt(prompt: Any) -> int:
    return _of_messages(prompt.messages)


def _of_messages(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _of_pair(pair: Any) -> int:
    context, chosen, rejected = pair
    return 2 * _of_messages(context) + len(chosen) + len(rejected)


def _local(path: str) -> Path | None:
    """A data file that is here."""
    if path.startswith("@"):
        return None
    try:
        file = resolved(path, "path")
        return file if file.is_file() else None
    except (UserError, OSError, ValueError):
        return None


def _lines(file: Path) -> float | None:
    """Rows of a file, or as many as its first gigabyte lets expect; None where only reading it would tell."""
    try:
        if file.suffix == ".parquet":
            return float(pq.read_metadata(file).num_rows)
        if file.suffix not in (".jsonl", ".csv"):
            return None
        size = file.stat().st_size
        number = 0
        num_read = 0
        with open(file, "rb") as stream:
            while num_read < _COUNTED_BYTES and (block := stream.read(2**20)):
                number += block.count(b"\n")
                num_read += len(block)
    except (OSError, pa.ArrowException):
        return None
    return number * size / num_read if num_read else None
