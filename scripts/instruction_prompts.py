"""Give real prompts instructions to follow: `python scripts/instruction_prompts.py out=FOLDER [key=value …]`.

`source=` is a file of prompts in any common shape, or a data set of the Hub; the default is
databricks/databricks-dolly-15k (CC BY-SA 3.0). `columns=` says what its columns hold, as `prompts.columns` of a run does.
`seed=1` draws order and instructions; `train=` prompts to train on (all that are left if not said), `seen=128` held-out
prompts with the kinds of instructions that are trained on, `held_out_kinds=64` with those that are not. Writes
`FOLDER/prompts.jsonl` and `FOLDER/held_out.jsonl`, for `experiment=smollm2 prompts.path=… prompts.held_out_path=…`.
The prompts keep the source's licence.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from rlhf.config.stage_configs import DatasetStage  # noqa: E402
from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.data.prompts import read_prompts  # noqa: E402
from rlhf.data.shards import write_atomic  # noqa: E402
from rlhf.errors import ConfigError, UserError  # noqa: E402
from rlhf.run import hub  # noqa: E402
from rlhf.run.console import show  # noqa: E402
from rlhf.stages.dataset import write_split  # noqa: E402
from rlhf.world.instruction_prompts import PromptSets, draw_sets, is_fit  # noqa: E402

DOLLY = "databricks/databricks-dolly-15k"
DEFAULTS = {
    "source": DOLLY,
    "columns": "null",
    "seed": "1",
    "train": "null",
    "seen": "128",
    "held_out_kinds": "64",
}


def questions_of(source: str, columns: object) -> tuple[list[str], Counter[str]]:
    """The texts of the prompts that are one user turn, in the source's order, and what became of every row.

    Raises:
        DataError: there is no such file or data set, or it holds no prompt.
    """
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as work:
        path = _file_of(source, Path(work))
        questions = list(_single_turns(path, columns, counts))
    counts["fit"] = sum(is_fit(question) for question in questions)
    return questions, counts


def _single_turns(path: Path, columns: object, counts: Counter[str]) -> Iterator[str]:
    for prompt in read_prompts(path, counts, columns=columns):
        if len(prompt.messages) == 1:
            yield prompt.messages[0]["content"]
        else:
            counts["dropped/several_turns"] += 1


def _file_of(source: str, work: Path) -> Path:
    """The file itself, or the data set of the Hub as one."""
    wanted = hub.parse_dataset(source)
    path = Path(source).expanduser()
    if wanted is None or path.exists():
        return path
    snapshot = hub.fetch_dataset(wanted.repo, wanted.revision, "source")
    config = DatasetStage(wanted.repo, snapshot.name, wanted.subset, wanted.split)
    write_split(config, str(snapshot), work)
    return work / "rows.parquet"


def write_sets(out: Path, sets: PromptSets) -> None:
    """Write both files; a folder that is there keeps whatever else it holds."""
    out.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("prompts", sets.train), ("held_out", sets.held_out)):
        lines = [json_text({"prompt": prompt}, ascii_only=False) + "\n" for prompt in prompts]
        write_atomic(out / f"{name}.jsonl", "".join(lines).encode())


def make(values: dict[str, str]) -> str:
    """Do what the arguments ask for; returns what to say.

    Raises:
        UserError: a number that is none, or a source that cannot be read.
    """
    numbers: dict[str, int | None] = {}
    for key in ("seed", "train", "seen", "held_out_kinds"):
        value = values[key]
        if not value.isdecimal() and (key, value) != ("train", "null"):
            raise ConfigError(f"{key}={value}: must be a whole number.")
        numbers[key] = int(value) if value.isdecimal() else None
    columns = OmegaConf.to_container(OmegaConf.from_dotlist([f"columns={values['columns']}"]))["columns"]
    questions, counts = questions_of(values["source"], columns)
    sets = draw_sets(
        questions,
        numbers["train"],
        numbers["seen"] or 0,
        numbers["held_out_kinds"] or 0,
        numbers["seed"] or 0,
    )
    out = Path(values["out"]).expanduser()
    write_sets(out, sets)
    told = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return f"{out}: {len(sets.train)} prompts to train on, {len(sets.held_out)} held out ({values['source']}: {told})"


def main(arguments: list[str]) -> int:
    """Make the folder that `out=` names."""
    values = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in {*DEFAULTS, "out"} or not equals:
            show(__doc__, error=True)
            return 2
        values[key] = value
    if "out" not in values:
        show(__doc__, error=True)
        return 2
    try:
        show(make(values))
    except UserError as error:
        show(str(error), error=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
