"""The real command on a GPU, in bf16 with random weights; skipped where there is none."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from rlhf.launch.machine import visible_gpus
from tests.commands import digests, loop
from tests.gpu.needs import ENGINE, needs_the_command
from tests.tiny import tiny_llama, tiny_reward_model

pytestmark = pytest.mark.skipif(not visible_gpus(), reason="no NVIDIA GPU is visible")


def test_the_preload_touches_no_gpu():
    code = "import rlhf.launch.preload, torch; assert not torch.cuda.is_initialized(); print('untouched')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "untouched" in done.stdout, done.stderr[-2000:]


@needs_the_command
def test_one_iteration_with_every_gpu(tmp_path):
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    tiny_llama(tmp_path / "policy", seed=1, **shape)
    tiny_reward_model(tmp_path / "judge", seed=2, **shape)
    rows = [{"prompt": f"Say {i} in words"} for i in range(80)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = loop(
        tmp_path / "run",
        f"model.path={tmp_path / 'policy'}",
        f"reward_model.path={tmp_path / 'judge'}",
        f"prompts.path={tmp_path / 'prompts.jsonl'}",
        "model.dtype=bfloat16",
        "prompts.num_per_iteration=64",
        "prompts.num_held_out=8",
        "num_iterations=1",
        f"generate.engine={ENGINE}",
        "generate.max_new_tokens=32",
        "generate.gpu_memory_utilization=0.3",
        "pair.truncated=allow",
        "dpo.batch_size=16",
        "compute.device=cuda",
    )
    assert code == 0, said
    assert "iteration_001/dpo" in digests(tmp_path / "run")
    first = json.loads((tmp_path / "run/iteration_001/dpo/metrics.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx(
        math.log(2), abs=2e-2
    )  # reference and policy share bf16 weights, not batches
