"""Low-rank adapters (arXiv 2106.09685) for one DPO stage: W + alpha / rank · B·A, of which only A and B are trained.

The adapter is merged at the end of the stage, in fp32, into the very weights that the stage was given. So a policy is
always a plain model folder, nothing learnt in earlier iterations is rounded away, and each iteration starts a fresh
adapter. The adapter itself is kept too, as peft reads it; it belongs on top of the stage's input policy.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.config.training import LoraConfig
from rlhf.errors import ConfigError
from rlhf.training.weights import fp32_parameters, used_weight_files, weight_names, write_model

_PREFIX = "base_model.model."
"""What peft puts in front of a module's name."""


def add_adapter(model: Any, folder: Path, lora: LoraConfig, seed: int) -> Any:
    """A causal LM with fresh adapters, its own weights frozen; B = 0, so it computes what it did before.

    Args:
        model: a loaded transformers model; it is changed in place.
        folder: where its weights came from, and where they will be read from again to merge.
        lora: the config section `dpo.lora`.
        seed: of A's random values, the same on every rank.

    Raises:
        ConfigError: `target_modules` matches nothing, or a layer that cannot be merged.
    """
    import peft

    targets = lora.target_modules
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
    linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    torch.manual_seed(seed)
    try:
        # In the dtype of the model: DeepSpeed keeps the fp32 masters, and ZeRO-3 wants one dtype.
        adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"dpo.lora.target_modules={targets}: {error}. The linear layers are {linear}.") from error
    there = weight_names(folder)
    for peft_name, layer in adapted.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            name, base = peft_name.removeprefix(_PREFIX), layer.get_base_layer()
            if not isinstance(base, nn.Linear) or base is tied or f"{name}.weight" not in there:
                raise ConfigError(
                    f"dpo.lora.target_modules={targets}: {name} cannot be adapted. It must be a linear layer with a "
                    f"weight of its own, under its own name, in {folder}. Name other layers ({linear}), or set "
                    "dpo.lora.rank=0 to train all weights."
                )
    return adapted


def export_adapter(model: Any, source: Path, out: Path) -> None:
    """Write `out/adapter`, as peft saves one, and `out/model`, the merged policy in fp32. Every rank calls it.

    Args:
        model: what `add_adapter` made (not DeepSpeed's wrapper).
        source: folder its frozen weights were loaded from.
        out: where the two folders go; those that exist are replaced.
    """
    state = fp32_parameters((name, p) for name, p in model.named_parameters() if p.requires_grad)
    if state is not None:
        settings = model.peft_config["default"]
        state = {name.replace(".default.", "."): value.contiguous() for name, value in sorted(state.items())}
        _save_adapter(state, settings, out / "adapter")
        updates = _updates(state, settings.lora_alpha / settings.r)
        write_model(source, out / "model", lambda folder: _save_merged(source, folder, updates))
    if dist.is_initialized():
        dist.barrier()


def _updates(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What to add to which weight: scale · B·A in fp32, by the weight's name in its file."""
    updates = {}
    for name, down in state.items():
        module, is_down, _ = name.partition(".lora_A.")
        if is_down:
            updates[f"{module.removeprefix(_PREFIX)}.weight"] = scale * (state[f"{module}.lora_B.weight"] @ down)
    assert 2 * len(updates) == len(state), "checked when the adapter was made"
    return updates


def _save_merged(source: Path, folder: Path, updates: dict[str, Tensor]) -> None:
    """The weight files of `source` in fp32 with the updates added, one file in memory at a time."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    size, left = 0, dict(updates)
    for path in used_weight_files(source):
        tensors: dict[str, Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                value = file.get_tensor(name)
                tensors[name] = value.float() if value.is_floating_point() else value
                if name in left:
                    tensors[name] = tensors[name] + left.pop(name)
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
        size += sum(value.nbytes for value in tensors.values())
    assert not left, "checked when the adapter was made"
    index = source / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["metadata"] = content.get("metadata", {}) | {"total_size": size}
        (folder / index.name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _save_adapter(state: dict[str, Tensor], settings: Any, out: Path) -> None:
    """A folder for `PeftModel.from_pretrained(policy, folder)`; peft's own saving would write this machine's paths."""
    from safetensors.torch import save_file

    config = {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "peft_type": "LORA",
        "r": settings.r,
        "target_modules": sorted(settings.target_modules),
        "task_type": "CAUSAL_LM",
    }
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(state, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    (partial / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
