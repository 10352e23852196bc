"""What is believed of drivers, packages and memory, on a machine that has a GPU; skipped where there is none.

Written from the libraries' source on machines without a GPU: what fails here first may be the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.launch.machine import num_devices, visible_gpus
from rlhf.launch.nvidia import driver_cuda, is_too_old, listed_gpus
from rlhf.launch.ports import free_port
from rlhf.preflight.cuda import cuda, cuda_of_torch
from rlhf.preflight.findings import Level
from tests.commands import loop
from tests.gpu.needs import ENGINE, needs_deepspeed, needs_the_command, needs_vllm
from tests.tiny import tiny_llama, tiny_reward_model

pytestmark = pytest.mark.skipif(not visible_gpus(), reason="no NVIDIA GPU is visible")

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
PRELOAD = """
import os
import rlhf.launch.preload
from rlhf.run.processes import children_of
print("children", children_of(os.getpid()))
"""
SAMPLE = """
import sys
from rlhf.config.stage_configs import GenerateStage
from rlhf.generation.request import Request, Sampling
from rlhf.generation.vllm_sampler import VllmSampler
config = GenerateStage(max_new_tokens=8, gpu_memory_utilization=0.3)
sampler = VllmSampler(config, sys.argv[1], 1, 64)
requests = [Request([5, 6, 7 + i], 1.0, 100 + i) for i in range(16)]
sampling = Sampling(max_new_tokens=8, top_p=0.9, top_k=50, stop_token_ids=[])
once = [each.token_ids for each in sampler.sample(requests, sampling)]
again = [each.token_ids for each in sampler.sample(requests, sampling)]
print("the same", once == again, "different", len(set(map(tuple, once))) > 1)
"""
JUDGE = """
import sys, torch
from rlhf.config.choices import Engine
from rlhf.config.stage_configs import ScoreStage
from rlhf.scoring.choose_judge import load_judge
free, total = torch.cuda.mem_get_info()
judge = load_judge(ScoreStage(engine=Engine.vllm, gpu_memory_utilization=0.2), {"judge": sys.argv[1]})
left, _ = torch.cuda.mem_get_info()
print("share", (free - left) / total)
"""
GROUPS = """
import torch
from rlhf.config.choices import Device
from rlhf.config.schema import ComputeConfig
from rlhf.training.deepspeed import init_process_group
init_process_group(ComputeConfig(device=Device.cuda, hang_seconds=5000.0))
import deepspeed.comm, torch.distributed as dist
deepspeed.comm.new_group([0])
groups = list(dist.distributed_c10d._world.pg_map)
options = [group._get_backend(torch.device("cuda")).options for group in groups]
print("timeouts", [each._timeout.total_seconds() for each in options], dist.get_backend())
"""


def said(code, *arguments, **environment):
    """What a program of its own prints; it runs in the environment that workers have."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # Before what is there: packages may have been carried to this machine and named in it.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = dict(os.environ, PYTHONPATH=path, VLLM_ENABLE_V1_MULTIPROCESSING="0", **environment)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_the_preload_starts_no_process():
    assert "children []" in said(PRELOAD)


def test_the_driver_says_what_is_read_of_it():
    code = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    count, made_for = said(code, CUDA_VISIBLE_DEVICES=",".join(map(str, range(num_devices())))).split()[:2]
    assert int(count) == num_devices() == len(listed_gpus())
    assert cuda_of_torch() == made_for
    driver = driver_cuda()
    assert driver is not None and not is_too_old(driver, made_for)
    assert Level.error not in {finding.level for finding in cuda(Config())}


@needs_vllm
def test_seeded_requests_need_no_flashinfer(tmp_path):
    model = tiny_llama(tmp_path / "policy", seed=1, **SHAPE)
    output = said(SAMPLE, model)
    assert "the same True different True" in output
    # vLLM's own words, if it logs at all.
    assert "Using FlashInfer for top-p" not in output


@needs_vllm
def test_a_judge_takes_its_share_of_memory(tmp_path):
    judge = tiny_reward_model(tmp_path / "judge", seed=2, **SHAPE)
    words = said(JUDGE, judge).split()
    assert 0.05 < float(words[words.index("share") + 1]) < 0.3


@needs_deepspeed
def test_groups_on_gpus_wait_as_long_as_the_driver():
    place = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    assert "timeouts [5000.0, 5000.0] nccl" in said(GROUPS, **place)


def small_loop(tmp_path, *overrides):
    """One iteration on a tiny policy and judge."""
    tiny_llama(tmp_path / "policy", seed=1, **SHAPE)
    tiny_reward_model(tmp_path / "judge", seed=2, **SHAPE)
    rows = [{"prompt": f"Say {i} in words"} for i in range(80)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return loop(
        tmp_path / "run",
        f"model.path={tmp_path / 'policy'}",
        f"reward_model.path={tmp_path / 'judge'}",
        f"prompts.path={tmp_path / 'prompts.jsonl'}",
        "prompts.num_per_iteration=64",
        "prompts.num_held_out=8",
        "num_iterations=1",
        "generate.max_new_tokens=32",
        "generate.shard_size=8",
        "pair.truncated=allow",
        "dpo.batch_size=16",
        *overrides,
    )


@needs_the_command
def test_the_quickstarts_processes_fit_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_gpus()[0])
    settings = ["num_iterations=1", "generate.gpu_memory_utilization=0.3", f"generate.engine={ENGINE}"]
    code, output = loop(tmp_path / "run", "experiment=quickstart", *settings)
    assert code == 0, output
    assert "compute.num_training_ranks=1, not 2 as the config files prefer" in output
    manifest = json.loads((tmp_path / "run" / "iteration_001" / "dpo" / "artifact.json").read_text())
    assert manifest["compute"]["num_training_ranks"] == 1


@needs_the_command
@needs_vllm
@pytest.mark.skipif(len(visible_gpus()) < 2, reason="one engine over two GPUs needs two")
def test_the_memory_of_an_engine_over_two_gpus_is_free_for_the_next_stage(tmp_path):
    # Each stage asks for nearly all of it: what the last one's processes still held would be missing.
    sizes = [f"{stage}.tensor_parallel_size=2" for stage in ("generate", "score")]
    shares = [f"{stage}.gpu_memory_utilization=0.9" for stage in ("generate", "score")]
    code, output = small_loop(tmp_path, "score.engine=vllm", "compute.num_gpus=2", *sizes, *shares)
    assert code == 0, output
