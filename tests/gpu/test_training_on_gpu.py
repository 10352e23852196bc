"""What the CPU tests of bf16 training and of reading judges hold, on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from rlhf.launch.machine import visible_gpus
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.token_rows import sees_padding
from tests.gpu.needs import needs_deepspeed
from tests.integration.scoring.test_padding_mask import BOTH_WAYS, CAUSAL, MAX_TOKENS, rows, save
from tests.integration.training.test_bf16 import (  # noqa: F401
    CASES,
    NUM_PAIRS,
    SAVE_GRADIENTS,
    SAVE_WEIGHTS,
    dpo_job,
    gradients,
    off_by,
    world,
)
from tests.stage_runner import run_ranks

pytestmark = pytest.mark.skipif(not visible_gpus(), reason="no NVIDIA GPU is visible")


def on_gpu(world, out, compute=None, **config):  # noqa: F811
    return dpo_job(world, out, {"device": "cuda"} | (compute or {}), **config)


@needs_deepspeed
@pytest.mark.parametrize("case", CASES)
def test_a_dpo_step_is_the_fp32_sum_of_its_bins(world, tmp_path, case):  # noqa: F811
    run_ranks(on_gpu(world, tmp_path, batch_tokens=1, **CASES[case]), hook=SAVE_GRADIENTS)
    of_bins, of_step = gradients(tmp_path)
    assert of_step.norm() > 0
    assert off_by(of_step, of_bins) < 1e-6


@needs_deepspeed
def test_a_step_does_not_depend_on_the_number_of_bins(world, tmp_path):  # noqa: F811
    run_ranks(on_gpu(world, tmp_path / "fp32", dtype="float32"), hook=SAVE_GRADIENTS)
    _, exact = gradients(tmp_path / "fp32")
    errors = []
    for batch_tokens in (3300, 400, 1):
        out = tmp_path / str(batch_tokens)
        run_ranks(on_gpu(world, out, batch_tokens=batch_tokens), hook=SAVE_GRADIENTS)
        errors.append(off_by(gradients(out)[1], exact))
    assert max(errors) == pytest.approx(min(errors), rel=0.1)


@needs_deepspeed
def test_the_fp32_weights_are_exported_and_the_model_computes_with_them_rounded(world, tmp_path):  # noqa: F811
    from safetensors.torch import load_file

    run_ranks(on_gpu(world, tmp_path, batch_size=NUM_PAIRS // 4, warmup_ratio=0.0), hook=SAVE_WEIGHTS)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    computed_with = torch.load(tmp_path / "computed_with0.pt", map_location="cpu")
    assert computed_with.keys() == exported.keys()
    for name, value in exported.items():
        assert torch.equal(value.bfloat16(), computed_with[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", CAUSAL)
def test_a_causal_judge_is_read_without_a_mask_and_scores_the_same(tmp_path, model_type, dtype):
    judge = ClassifierJudge(str(save(tmp_path, model_type, CAUSAL[model_type])), dtype, MAX_TOKENS)
    assert not judge._masked
    scores = judge._forward(rows())
    judge._masked = True
    # Other kernels: the same up to rounding.
    tolerance = 1e-4 if dtype == "float32" else 0.1
    assert scores == pytest.approx(judge._forward(rows()), abs=tolerance * max(map(abs, scores)))


@pytest.mark.parametrize("model_type", BOTH_WAYS)
def test_a_judge_that_looks_both_ways_keeps_the_mask(tmp_path, model_type):
    judge = ClassifierJudge(str(save(tmp_path, model_type, BOTH_WAYS[model_type])), max_tokens=MAX_TOKENS)
    assert judge._masked
    assert sees_padding(judge._states, 400, torch.device("cuda"))
