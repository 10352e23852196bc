"""vLLM's batch-invariant mode is refused where there is none."""

import pytest

from rlhf.config.choices import Device
from rlhf.config.schema import Config, GenerateSettings
from rlhf.errors import ConfigError
from rlhf.generation.vllm_args import check_batch_invariant
from rlhf.preflight.hardware import engine_arguments


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "is_refused"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_a_cpu_has_no_such_mode_and_no_need_of_it(wanted, has_gpu, is_refused):
    settings = GenerateSettings(batch_invariant=wanted)
    if not is_refused:
        check_batch_invariant(settings, has_gpu)
        return
    with pytest.raises(ConfigError, match=r"generate\.batch_invariant=true: .* On a CPU it is not needed"):
        check_batch_invariant(settings, has_gpu)


def test_it_is_refused_before_a_run_begins():
    cfg = Config()
    cfg.compute.device = Device.cpu
    assert list(engine_arguments(cfg)) == []
    cfg.generate.batch_invariant = True
    with pytest.raises(ConfigError, match="batch_invariant"):
        list(engine_arguments(cfg))
