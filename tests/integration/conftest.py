"""A real chat model, where there is one: `make real-model` makes its folder, and `RLHF_REAL_MODEL` names
another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE_HERE = ROOT / ".models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, or of another small chat model."""
    folder = Path(os.environ.get("RLHF_REAL_MODEL") or MADE_HERE)
    if not (folder / "config.json").is_file():
        pytest.skip("no real chat model: `make real-model` makes one, or name a folder in RLHF_REAL_MODEL")
    return folder.resolve()
