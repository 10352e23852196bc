"""Models in and out of training: load in the right dtype, export in fp32."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.models.folder import config_text, load_config, load_weights
from rlhf.models.template_files import copy_other_templates, keep_listed_templates
from rlhf.models.weight_files import (
    INDEX,
    SHARD_BYTES,
    file_header,
    saved_dtype,
    weight_files,
    weight_headers,
    write_index,
)
from rlhf.training.buffers import restore_buffers
from rlhf.training.ranks import barrier, own_rank

_COPIED = {".json", ".jinja", ".txt", ".model", ".py"}
"""Suffixes of the small files beside the weights that an exported model keeps as they are."""
_NOT_COPIED = {"config.json", INDEX, "artifact.json"}
"""Of those, files that are written anew or that speak of the source alone."""


def resolve_dtype(name: str, folder: Path) -> torch.dtype:
    """The dtype to train in: bfloat16 if that is asked for or, with `auto`, saved; else float32.

    Float16 is never trained in: float32 holds its values exactly.
    """
    if saved_dtype(folder, name) == "bfloat16":
        return torch.bfloat16
    return torch.float32


def load_model(
    folder: Path,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    reward_model: bool = False,
) -> Any:
    """A causal LM, or a sequence classifier with one logit, without dropout.

    Under ZeRO-3 (training arguments built before) every rank keeps only its share of the weights.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto_class = AutoModelForCausalLM
    changes = {}
    if reward_model:
        auto_class = AutoModelForSequenceClassification
        changes["num_labels"] = 1
    config = load_config(folder, trust_remote_code, **changes)
    # Dropout would make the policy differ from its own log-probabilities as the reference.
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(config, name, 0.0)
    model = load_weights(
        auto_class,
        folder,
        dtype,
        trust_remote_code,
        new_head=reward_model,
        config=config,
    )
    restore_buffers(model, config, dtype)
    # And where a model has dropout without saying so in its config.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def init_master_weights(model: nn.Module, folder: Path) -> None:
    """Start DeepSpeed's fp32 weights from an fp32 file while the model itself computes in bf16.

    DeepSpeed copies them from the model, which is rounded to bf16: what earlier iterations learnt
    below bf16's spacing would be lost. Call it on every rank, after DeepSpeed has wrapped the
    model. Does nothing where nothing was rounded.

    Raises:
        ModelError: a weight has another name in the file than in the model.
    """
    from deepspeed.utils import safe_set_full_fp32_param
    from safetensors import safe_open

    if not any(tensor["dtype"] == "F32" for _, tensor in weight_headers(folder)):
        return
    file_of_weight = {}
    for path in weight_files(folder):
        for name in file_header(path):
            file_of_weight[name] = path
    opened: dict[Path, Any] = {}
    for name, parameter in model.named_parameters():
        # Of frozen weights DeepSpeed keeps no fp32 copy that could be set.
        if parameter.dtype == torch.float32 or not parameter.requires_grad:
            continue
        if _is_new(name, file_of_weight):
            continue
        if name not in file_of_weight:
            raise ModelError(
                f"{folder}: weight {name} is not in the file under that name, so its fp32 value cannot be "
                "kept while computing in bfloat16. Use dtype=float32 for this architecture."
            )
        path = file_of_weight[name]
        if path not in opened:
            opened[path] = safe_open(path, framework="pt")
        value = opened[path].get_tensor(name).to(torch.float32).to(parameter.device)
        safe_set_full_fp32_param(parameter, _with_new_rows(value, parameter))


def _with_new_rows(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """The file's rows of an embedding, followed by those of tokens that were added to the model since.

    A judge gets a pad token of its own where its tokenizer has none. Other weights are given back as they
    are.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    # Under ZeRO-3 a weight itself is empty, and says here what it is.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if len(value) == shape[0]:
        return value
    # Every rank has the same difference, and so comes here.
    whole: Tensor = safe_get_full_fp32_param(parameter).clone()
    whole[: len(value)] = value
    return whole


def _is_new(name: str, saved: Container[str]) -> bool:
    """Whether a weight was made here, a score head or an adapter, and is in no file."""
    if name in saved:
        return False
    return name.startswith("score.") or ".lora_" in name


def fp32_parameters(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor] | None:
    """Named weights in fp32 on the CPU, from the fp32 masters where there are any.

    On rank 0; the others get None.

    Every rank calls it; under ZeRO each weight is put together from its shards, one after another.
    They must be weights that are trained: DeepSpeed keeps no masters of others.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    is_rank_zero = own_rank() == 0
    state: dict[str, Tensor] = {}
    for name, parameter in parameters:
        value = parameter.detach()
        # DeepSpeed marks weights with the first under ZeRO-2, with the second under ZeRO-3.
        if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            # On all ranks, also those that keep nothing: each sends its shard.
            value = safe_get_full_fp32_param(parameter)
        if is_rank_zero:
            assert value is not None, name
            # In any case a copy: on a CPU the value may be the weight itself.
            copy = value.detach().to("cpu", torch.float32, copy=True)
            # Under ZeRO-3 the parameter itself is empty, and the value may be flat.
            state[name] = copy.view(getattr(parameter, "ds_shape", parameter.shape))
    return state if is_rank_zero else None


def full_state(model: nn.Module) -> dict[str, Tensor] | None:
    """All weights and buffers in fp32 on the CPU; None on all ranks but 0. Every rank calls it."""
    state = fp32_parameters(model.named_parameters())
    if state is None:
        return None
    # With the second names of tied weights, which are parameters too and must not be saved twice.
    parameter_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameter_names:
            state[name] = value.cpu()
    return state


def export_model(
    model: Any, source: Path, out: Path, config: dict[str, Any] | None = None, tokenizer: Any = None
) -> None:
    """Write a model folder in fp32. Every rank calls it.

    Equal weights give equal bytes, and the folder appears whole.

    Args:
        model: the trained transformers model (not DeepSpeed's wrapper).
        source: folder it was loaded from; tokenizer, chat template, generation config and code are
            copied from there.
        out: the folder to make; one that exists is replaced.
        config: what config.json says besides `dtype`; None takes the source's.
        tokenizer: saved over the source's; None keeps that.
    """
    state = full_state(model)
    if state is not None:
        save = partial(model.save_pretrained, state_dict=state, max_shard_size=SHARD_BYTES)
        write_model(source, out, save, config, tokenizer)
    # No rank goes on, and perhaps ends, before the folder is there.
    barrier()


def write_model(
    source: Path,
    out: Path,
    save: Callable[[Path], Any],
    config: dict[str, Any] | None = None,
    tokenizer: Any = None,
) -> None:
    """Make a model folder, on one rank: the weight files that `save` writes, and the rest as `export_model`
    has it.
    """
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save(unfinished)
    # Also over transformers' own, whose count of parameters is 0 under ZeRO-3.
    write_index(unfinished)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED and path.name not in _NOT_COPIED:
            shutil.copyfile(path, unfinished / path.name)
    copy_other_templates(source, unfinished)
    if tokenizer is not None:
        # Whether it was loaded with HF_HUB_OFFLINE=1 is no part of it: equal models have equal bytes.
        tokenizer.init_kwargs.pop("local_files_only", None)
        tokenizer.save_pretrained(unfinished)
        keep_listed_templates(source, unfinished)
    # Not what transformers wrote: that has a path of this machine, and defaults of its version.
    if config is None:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model_config = dict(config)
    # The old name of `dtype`, and the path.
    for key in ("torch_dtype", "_name_or_path"):
        model_config.pop(key, None)
    model_config["dtype"] = "float32"
    text = config_text(model_config, sort_keys=True)
    (unfinished / "config.json").write_text(text, encoding="utf-8")
    # A folder cannot replace one that is not empty.
    shutil.rmtree(out, ignore_errors=True)
    os.replace(unfinished, out)  # made durable with the rest of the stage, when it is committed
