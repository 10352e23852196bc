"""Models in and out of training: load in the right dtype, export in fp32."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.models.folder import load_config, load_weights, saved_dtype, weight_headers

_COPIED = {".json", ".jinja", ".txt", ".model", ".py"}
"""Suffixes of the small files beside the weights that an exported model keeps as they are."""
_WRITTEN = {"config.json", "model.safetensors.index.json", "artifact.json"}


def used_weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers loads: those in the index, where there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def weight_names(folder: Path) -> set[str]:
    """The names of all tensors in a model folder."""
    return {name for path in used_weight_files(folder) for name in _names(path)}


def resolve_dtype(name: str, folder: Path) -> torch.dtype:
    """The dtype to train in: bfloat16 if that is asked for or, with `auto`, saved; else float32.

    Float16 is never trained in: float32 holds its values exactly.
    """
    return torch.bfloat16 if saved_dtype(folder, name) == "bfloat16" else torch.float32


def load_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False, reward_model: bool = False) -> Any:
    """A causal LM, or a sequence classifier with one logit, without dropout.

    Under ZeRO-3 (training arguments built before) every rank keeps only its share of the weights.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    config = load_config(folder, trust_remote_code, **({"num_labels": 1} if reward_model else {}))
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(config, name, 0.0)
    model = load_weights(auto, folder, dtype, trust_remote_code, new_head=reward_model, config=config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def init_master_weights(model: nn.Module, folder: Path) -> None:
    """Start DeepSpeed's fp32 weights from an fp32 file while the model itself computes in bf16.

    DeepSpeed copies them from the model, which is rounded to bf16: what earlier iterations learnt below bf16's spacing
    would be lost. Call it on every rank, after DeepSpeed has wrapped the model. Does nothing where nothing was rounded.

    Raises:
        ModelError: a weight has another name in the file than in the model.
    """
    from deepspeed.utils import safe_set_full_fp32_param
    from safetensors import safe_open

    where = {name: path for path in folder.glob("*.safetensors") for name in _names(path)}
    in_fp32 = {name for name, tensor in weight_headers(folder) if tensor["dtype"] == "F32"}
    opened: dict[Path, Any] = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32 or not in_fp32 or not parameter.requires_grad:
            continue
        if name not in where:
            if _is_new(name):
                continue
            raise ModelError(
                f"{folder}: weight {name} is not in the file under that name, so its fp32 value cannot be kept while "
                "computing in bfloat16. Use dtype=float32 for this architecture."
            )
        if where[name] not in opened:
            opened[where[name]] = safe_open(where[name], framework="pt")
        value = opened[where[name]].get_tensor(name).to(torch.float32)
        safe_set_full_fp32_param(parameter, value.to(parameter.device))


def _is_new(name: str) -> bool:
    return name.startswith("score.") or ".lora_" in name


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def fp32_parameters(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor] | None:
    """Named weights in fp32 on the CPU, from the fp32 masters where there are any: on rank 0, None on the others.

    Every rank calls it; under ZeRO each weight is put together from its shards, one after another. They must be
    weights that are trained: DeepSpeed keeps no masters of others.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    rank_zero = not dist.is_initialized() or dist.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, parameter in parameters:
        sharded = hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")  # under ZeRO 2 or 3
        value = safe_get_full_fp32_param(parameter) if sharded else parameter.detach()
        if rank_zero:
            assert value is not None, name
            state[name] = (
                value.detach().to("cpu", torch.float32, copy=True).view(getattr(parameter, "ds_shape", parameter.shape))
            )
    return state if rank_zero else None


def full_state(model: nn.Module) -> dict[str, Tensor] | None:
    """All weights and buffers in fp32 on the CPU: on rank 0, None on the others. Every rank calls it."""
    state = fp32_parameters(model.named_parameters())
    if state is None:
        return None
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state |= {name: value.cpu() for name, value in model.state_dict().items() if name not in aliases}
    return state


def export_model(
    model: Any, source: Path, out: Path, config: dict[str, Any] | None = None, tokenizer: Any = None
) -> None:
    """Write a model folder in fp32: equal weights give equal bytes, and the folder appears whole. Every rank calls it.

    Args:
        model: the trained transformers model (not DeepSpeed's wrapper).
        source: folder it was loaded from; tokenizer, chat template, generation config and code are copied from there.
        out: the folder to make; one that exists is replaced.
        config: what config.json says besides `dtype`; None takes the source's.
        tokenizer: saved over the source's; None keeps that.
    """
    state = full_state(model)
    if state is not None:
        write_model(source, out, lambda folder: model.save_pretrained(folder, state_dict=state), config, tokenizer)
    if dist.is_initialized():
        dist.barrier()


def write_model(
    source: Path,
    out: Path,
    save: Callable[[Path], Any],
    config: dict[str, Any] | None = None,
    tokenizer: Any = None,
) -> None:
    """Make a model folder, on one rank: what `save` writes into it, and the rest as `export_model` has it."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED and path.name not in _WRITTEN:
            shutil.copyfile(path, partial / path.name)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    model_config = json.loads((source / "config.json").read_text()) if config is None else dict(config)
    for key in ("torch_dtype", "_name_or_path"):
        model_config.pop(key, None)
    model_config["dtype"] = "float32"
    (partial / "config.json").write_text(json.dumps(model_config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)  # made durable with the rest of the stage, when it is committed
