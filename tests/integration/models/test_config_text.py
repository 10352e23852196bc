"""A config.json with infinite limits, as this package writes it, is the same model to transformers."""

import math

from rlhf.models.folder import config_text


def test_transformers_reads_infinite_limits_back(tmp_path):
    from transformers import AutoConfig

    config = {"model_type": "mamba2", "time_step_limit": [0.0, math.inf]}
    (tmp_path / "config.json").write_text(config_text(config))
    assert list(AutoConfig.from_pretrained(tmp_path).time_step_limit) == [0.0, math.inf]
