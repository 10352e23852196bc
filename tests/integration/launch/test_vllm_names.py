"""The environment that vLLM is started with, held against the installed vLLM."""

import pytest
from vllm import envs
from vllm.v1.sample.ops import topk_topp_sampler

from rlhf.config.schema import ComputeConfig
from rlhf.launch.machine import environments, starting_environment
from rlhf.run.job import Kind


@pytest.mark.parametrize("visible", ["", "0"])
def test_vllm_knows_every_variable_that_is_set_for_it(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    names = {*starting_environment("auto"), *environments(Kind.inference, ComputeConfig(), 1, 1)[0]}
    ours = {name for name in names if name.startswith("VLLM_")}
    assert len(ours) >= 4 and ours <= envs.environment_variables.keys()


def test_flashinfer_is_not_even_asked_whether_it_could_sample(monkeypatch):
    monkeypatch.setattr(topk_topp_sampler.current_platform, "is_cuda", lambda: True, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    # Without our setting vLLM goes on to ask for the GPU, which is not here.
    with pytest.raises((AssertionError, ImportError, AttributeError, NotImplementedError)):
        topk_topp_sampler.flashinfer_sampler_supported()
    for name, value in starting_environment("auto").items():
        monkeypatch.setenv(name, value)
    assert topk_topp_sampler.flashinfer_sampler_supported() is False
