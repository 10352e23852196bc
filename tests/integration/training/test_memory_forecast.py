"""The forecast of what `dpo` and `reference` hold, against what a process really held at its peak.

docs/checks.md has the figures of larger models.
"""

from __future__ import annotations

import json
from functools import partial

import pytest

from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.models.shape import read_shape
from rlhf.models.weight_files import num_parameters
from rlhf.training.memory_forecast import HowTrained, dpo_memory, reference_memory
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

TOLERANCE = 0.25
PAIR = 1000
WIDE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 32_768}
MEASURED = """
import json
from pathlib import Path
from rlhf.training import dpo, reference, token_budget

def resident(name):
    return token_budget._status(Path("/proc/self/status"))[name]

def measured(stage):
    def run(*arguments):
        # From here on: the peak so far is of the process that this one was forked from.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        outcome = stage(*arguments)
        Path(job.out, "peak.json").write_text(json.dumps(resident("VmHWM") - before))
        return outcome
    return run

dpo.train_dpo = measured(dpo.train_dpo)
reference.compute_logprobs = measured(reference.compute_logprobs)
"""
"""What the stage takes over what its process held before."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    policy = tiny_llama(folder / "policy", 1, **WIDE)
    pairs = write_pairs(folder / "pairs", random_pairs(4, prompt=(200, 200), response=(400, 400)))
    job = make_job(
        "reference",
        ReferenceConfig(),
        {"model": policy, "pairs": pairs},
        folder / "reference",
        max_length=PAIR,
    )
    run_here(job)
    return folder


def forecast(world, formula, **how):
    policy = world / "policy"
    shape = read_shape(policy, num_parameters(policy))
    memory = formula(shape, HowTrained(4, **how))
    return memory.peak - memory.base


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("batch_tokens", [PAIR, 2 * PAIR])
def test_dpo(world, tmp_path, batch_tokens, checkpointing):
    section = DpoConfig(
        batch_size=batch_tokens // PAIR,
        batch_tokens=batch_tokens,
        max_length=PAIR,
        gradient_checkpointing=checkpointing,
        num_epochs=1,
    )
    inputs = {"policy": world / "policy", "pairs": world / "pairs", "reference": world / "reference"}
    run_ranks(make_job("dpo", section, inputs, tmp_path), 1, MEASURED)
    peak = json.loads((tmp_path / "peak.json").read_text())
    expected = partial(forecast, world, dpo_memory)
    assert peak == pytest.approx(
        expected(batch_tokens=batch_tokens, longest_pair=PAIR, gradient_checkpointing=checkpointing),
        rel=TOLERANCE,
    )


def test_reference(world, tmp_path):
    inputs = {"model": world / "policy", "pairs": world / "pairs"}
    section = ReferenceConfig(batch_tokens=2 * PAIR)
    job = make_job("reference", section, inputs, tmp_path, max_length=PAIR)
    run_ranks(job, 1, MEASURED)
    peak = json.loads((tmp_path / "peak.json").read_text())
    assert peak == pytest.approx(
        forecast(world, reference_memory, batch_tokens=2 * PAIR, longest_pair=PAIR), rel=TOLERANCE
    )
