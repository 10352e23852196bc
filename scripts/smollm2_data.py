"""Make the data of `experiment=smollm2`: `python scripts/smollm2_data.py [out=FOLDER] [key=value …]`.

Without `out` they come to runs/smollm2_data, where that experiment looks for them.

A source is a file in any common shape, or a data set of the Hub. `prompts=` is where the questions come from
(databricks/databricks-dolly-15k if not said, CC BY-SA 3.0): those of one paragraph and at most 160 characters
get one to three instructions that a program can check. `seed=1` draws order and instructions; `train=`
640 prompts to train on (`null`: all that are left), `seen=128` held-out prompts with the kinds of
instructions that are trained on, `other_kinds=64` with those that are not. They become
`FOLDER/prompts.jsonl` and `FOLDER/held_out.jsonl`. `columns=` is `prompts.columns` of a run.

`pairs=` is where preferences come from, none if not said, such as
HuggingFaceH4/ultrafeedback_binarized:train_prefs: `num_pairs=200` of those whose conversations have at most
`max_characters=900` with either answer become `FOLDER/preferences.jsonl`. `prompts=null` makes no prompts.

What is made keeps its source's licence.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from rlhf.config.limits import column_problems  # noqa: E402
from rlhf.config.stage_configs import DatasetStage  # noqa: E402
from rlhf.data.files import resolved  # noqa: E402
from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.data.preferences import Preference, read_preferences  # noqa: E402
from rlhf.data.prompts import read_prompts  # noqa: E402
from rlhf.data.shards import make_folders, write_atomic  # noqa: E402
from rlhf.errors import ConfigError, DataError, UserError  # noqa: E402
from rlhf.run import hub  # noqa: E402
from rlhf.run.output import show  # noqa: E402
from rlhf.stages.dataset import write_split  # noqa: E402
from rlhf.world.instruction_prompts import draw_sets  # noqa: E402

DEFAULTS = {
    "out": "runs/smollm2_data",
    "prompts": "databricks/databricks-dolly-15k",
    "columns": "null",
    "pairs": "null",
    "seed": "1",
    "train": "640",
    "seen": "128",
    "other_kinds": "64",
    "num_pairs": "200",
    "max_characters": "900",
}
_LEAST = {"seed": 0, "train": 1, "seen": 0, "other_kinds": 0, "num_pairs": 1, "max_characters": 1}
"""What is a number, and how small it may be."""
_MADE_OF = {"prompts": ("prompts.jsonl", "held_out.jsonl"), "pairs": ("preferences.jsonl",)}
"""The files that are made of each source."""
_SETTINGS_OF = {
    "prompts": ("columns", "train", "seen", "other_kinds"),
    "pairs": ("num_pairs", "max_characters"),
}
"""The settings that are about one source alone."""


def file_of(source: str, work: Path, key: str) -> Path:
    """A file as it is, or a data set of the Hub as one in the folder `work`.

    Raises:
        DataError: there is no such file or data set.
    """
    wanted = hub.parse_dataset(source)
    path = resolved(source, key)
    if wanted is None or path.exists():
        return path
    snapshot = hub.fetch_dataset(wanted.repo, wanted.revision, key)
    write_split(DatasetStage(wanted.repo, snapshot.name, wanted.subset, wanted.split), str(snapshot), work)
    return work / "rows.parquet"


def questions_of(file: Path, columns: Any, counts: Counter[str]) -> list[str]:
    """The texts of the prompts that are one user turn, in the file's order; `counts` gets what became of the
    rows.

    Raises:
        DataError: it cannot be read, or holds no prompt.
    """
    questions = []
    for prompt in read_prompts(file, counts, columns=columns):
        if len(prompt.messages) == 1:
            questions.append(prompt.messages[0]["content"])
        else:
            counts["dropped/several_turns"] += 1
    return questions


def short_pairs(
    file: Path, max_characters: int, number: int, seed: int, counts: Counter[str]
) -> list[Preference]:
    """So many pairs drawn of those that are short with either answer.

    Raises:
        DataError: it cannot be read, or holds too few.
    """
    short = []
    for messages, chosen, rejected in read_preferences(file, counts):
        asked = sum(len(message["content"]) for message in messages)
        if asked + max(len(chosen), len(rejected)) <= max_characters:
            short.append((messages, chosen, rejected))
    if len(short) < number:
        raise DataError(
            f"pairs: {len(short)} of {counts['pairs']} pairs have at most {max_characters} characters, "
            f"num_pairs={number} wanted. Raise max_characters, lower num_pairs, or give a larger source."
        )
    Random(seed).shuffle(short)
    return short[:number]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a line for each row."""
    lines = [json_text(row, ascii_only=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines).encode())


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items() if number)


def numbers_of(values: dict[str, str]) -> dict[str, int]:
    """The settings that are numbers; `train` is none where it is null.

    Raises:
        ConfigError: one is none, or too small.
    """
    numbers = {}
    for key, least in _LEAST.items():
        if (key, values[key]) == ("train", "null"):
            continue
        try:
            numbers[key] = int(values[key])
        except ValueError:
            numbers[key] = least - 1
        if numbers[key] < least:
            or_all = "; null takes all that are left" if key == "train" else ""
            raise ConfigError(f"{key}={values[key]}: must be a whole number, {least} or more{or_all}.")
    if values["prompts"] != "null" and numbers["seen"] + numbers["other_kinds"] == 0:
        raise ConfigError(
            "seen=0 with other_kinds=0: no prompt would be held out, and held_out.jsonl would be empty. Set "
            "one of them to 1 or more."
        )
    return numbers


def columns_of(values: dict[str, str]) -> Any:
    """What `columns` says.

    Raises:
        ConfigError: it is no mapping of what columns hold to their names.
    """
    text = values["columns"]
    try:
        read = OmegaConf.to_container(OmegaConf.from_dotlist([f"columns={text}"]), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"columns={text}: cannot be read ({reason}). Write a mapping such as {{question: ask}}, in "
            "quotes for the shell, or null."
        ) from None
    assert isinstance(read, dict)
    wrong = list(column_problems("columns", read["columns"]))
    if wrong:
        raise ConfigError("\n".join(wrong))
    return read["columns"]


def check_sources(values: dict[str, str], typed: set[str]) -> None:
    """Refuse what would make nothing, or be passed over in silence.

    Raises:
        ConfigError: no source is named, or one that is not gets a setting.
    """
    if values["prompts"] == values["pairs"] == "null":
        raise ConfigError("prompts=null with pairs=null: there is nothing to make. Name one of them.")
    for source, keys in _SETTINGS_OF.items():
        for key in keys:
            if values[source] == "null" and key in typed:
                raise ConfigError(
                    f"{key}={values[key]}: is about {source}, and {source}=null makes none. Leave it out, or "
                    f"name a source: {source}=FILE."
                )


def folder_to_write(values: dict[str, str], out: Path) -> list[Path]:
    """Make the folder `out` where it is missing, and see that files can be written in it.

    Returns:
        The folders that were missing, the topmost first.

    Raises:
        ConfigError: it cannot be made or written, or a folder is in the place of a file.
    """
    made: list[Path] = []
    try:
        made += make_folders(out)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        remove_empty(made)
        raise ConfigError(
            f"out={values['out']}: {out} is no folder that can be written ({error.strerror}). Mind what "
            "is in its place and its rights, or name another folder."
        ) from None
    for source, names in _MADE_OF.items():
        for name in names:
            if values[source] != "null" and (out / name).is_dir():
                raise ConfigError(
                    f"out={values['out']}: {out / name} is a folder, in the place of a file that would be "
                    "written. Remove it, or name another out."
                )
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for nothing; one that holds something stays."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def make_prompts(values: dict[str, str], numbers: dict[str, int], columns: Any, out: Path) -> str:
    """Write both sets of prompts; returns what to say of them."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        file = file_of(values["prompts"], Path(work), "prompts")
        questions = questions_of(file, columns, counts)
    num_train = numbers.get("train")
    sets = draw_sets(questions, num_train, numbers["seen"], numbers["other_kinds"], numbers["seed"])
    write_rows(out / "prompts.jsonl", [{"prompt": prompt} for prompt in sets.train])
    write_rows(out / "held_out.jsonl", [{"prompt": prompt} for prompt in sets.held_out])
    made = f"{len(sets.train)} prompts to train on, {len(sets.held_out)} held out, of {sets.num_fit} that fit"
    return f"{made} ({values['prompts']}: {_told(counts)})"


def make_pairs(values: dict[str, str], numbers: dict[str, int], out: Path) -> str:
    """Write the preferences; returns what to say of them."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        file = file_of(values["pairs"], Path(work), "pairs")
        pairs = short_pairs(file, numbers["max_characters"], numbers["num_pairs"], numbers["seed"], counts)
    rows = []
    for messages, chosen, rejected in pairs:
        rows.append({"prompt": messages, "chosen": chosen, "rejected": rejected})
    write_rows(out / "preferences.jsonl", rows)
    return f"{len(rows)} preferences ({values['pairs']}: {_told(counts)})"


def main(arguments: list[str]) -> int:
    """Make what the arguments ask for."""
    values = dict(DEFAULTS)
    typed = set()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in DEFAULTS or not equals:
            show(str(__doc__), error=True)
            return 2
        values[key] = value
        typed.add(key)
    made: list[Path] = []
    try:
        # All of it before anything is read, which may take long.
        numbers = numbers_of(values)
        columns = columns_of(values)
        check_sources(values, typed)
        out = resolved(values["out"], "out")
        made = folder_to_write(values, out)
        if values["prompts"] != "null":
            show(f"{out}: {make_prompts(values, numbers, columns, out)}")
        if values["pairs"] != "null":
            show(f"{out}: {make_pairs(values, numbers, out)}")
    except UserError as error:
        show(str(error), error=True)
        return 2
    finally:
        remove_empty(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
