"""What `rlhf.pair` writes is trained on by TRL's own trainers as if `prompt`, `chosen` and `rejected` were all it
holds.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.preferences import read_preferences
from tests.integration.command.test_file_tools import read, tool, write
from tests.tiny import tiny_llama, tiny_reward_model

TRAINERS = {
    "Reward": "trl",
    "DPO": "trl",
    "KTO": "trl",
    "CPO": "trl.experimental.cpo",
    "ORPO": "trl.experimental.orpo",
}
BARE = ["prompt", "chosen", "rejected"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and pairs; the margins are so large that no loss could overlook them."""
    folder = tmp_path_factory.mktemp("trl")
    tiny_llama(folder / "policy", seed=1)
    tiny_reward_model(folder / "judge", seed=2)
    rows = []
    for number in range(4):
        responses = [f"It is {number}.", f"It may be {number + 1}, who knows?"]
        rows.append({"prompt": f"{number} + 0?", "responses": responses, "rewards": [20.0 + number, 5.0]})
    write(folder / "scored.jsonl", rows)
    code, said = tool("pair", folder, "input=scored.jsonl", "output=pairs.jsonl")
    assert code == 0, said
    return folder


def first_loss(folder: Path, name: str, rows: Any) -> float:
    """The loss of one step on all rows with such a trainer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    module = importlib.import_module(TRAINERS[name])
    is_judge = name == "Reward"
    source = folder / ("judge" if is_judge else "policy")
    loader = AutoModelForSequenceClassification if is_judge else AutoModelForCausalLM
    torch.manual_seed(0)
    arguments = getattr(module, f"{name}Config")(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-9,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        seed=1,
        disable_tqdm=True,
    )
    trainer = getattr(module, f"{name}Trainer")(
        model=loader.from_pretrained(source, dtype=torch.float32),
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


def dataset(folder: Path, file: str, columns: list[str] | None = None) -> Any:
    from datasets import load_dataset

    loaded = load_dataset(
        "json", data_files=str(folder / file), split="train", cache_dir=str(folder / "cache")
    )
    return loaded.select_columns(columns) if columns else loaded


@pytest.mark.parametrize("name", TRAINERS)
def test_the_loss_is_that_of_the_bare_pairs(folder: Path, name: str) -> None:
    whole = dataset(folder, "pairs.jsonl")
    assert set(BARE) < set(whole.column_names)
    assert first_loss(folder, name, whole) == first_loss(folder, name, dataset(folder, "pairs.jsonl", BARE))


def as_before(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair as `rlhf.pair` wrote it while the column was `margin`."""
    line = dict(pair)
    line["margin"] = line.pop("penalised_margin")
    return line


def test_a_column_of_that_name_would_be_noticed_and_older_files_are_still_read(folder: Path) -> None:
    pairs = read(folder / "pairs.jsonl")
    write(folder / "older.jsonl", [as_before(pair) for pair in pairs])
    bare = first_loss(folder, "Reward", dataset(folder, "older.jsonl", BARE))
    assert first_loss(folder, "Reward", dataset(folder, "older.jsonl")) > bare + 10
    counts = Counter[str](), Counter[str]()
    older = list(read_preferences(folder / "older.jsonl", counts[0]))
    assert len(older) == 4 and older == list(read_preferences(folder / "pairs.jsonl", counts[1]))
    assert counts[0] == counts[1] == {"rows": 4, "comparisons": 4, "pairs": 4}
