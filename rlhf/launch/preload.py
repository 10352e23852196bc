"""Imported once by the process that workers with an engine are forked from, so that each starts in a moment.

Nothing here may touch a GPU or start a thread that a fork would lose
(`tests/integration/launch/test_preload.py`). What cannot be imported is left for the stage that needs it to
complain about.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

from rlhf.launch.server import become_server

MODULES = (
    "torch",
    "pyarrow.parquet",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "datasets",
    "accelerate",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # else 2 s of torch._dynamo when an optimizer is set up
    "trl",
    "trl.trainer.dpo_config",
    "trl.trainer.sft_trainer",
    "trl.trainer.reward_trainer",
    "rlhf.models.chat_template",
    "rlhf.training",
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.layers.quantization.online.base",
    "rlhf.generation.vllm_sampler",
    "rlhf.scoring.classifier_judge",
    "rlhf.training.dpo",
    "rlhf.training.sft",
    "rlhf.training.reward_model",
)

become_server()

gc.disable()  # for the imports: it saves a fifth of their time
for name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(name)

# Some hundred thousand objects that live for ever: out of every worker's collections, they stay shared.
gc.collect()
gc.freeze()
gc.enable()
