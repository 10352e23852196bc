"""Low-rank adapters (arXiv 2106.09685) for one DPO stage.

A weight W becomes W + alpha / rank · B·A, of which only A and B are trained. The adapter is merged
at the end of the stage, in fp32, into the very weights that the stage was given. So a policy is
always a plain model folder, nothing learnt in earlier iterations is rounded away, and each
iteration starts a fresh adapter. The adapter itself is kept too, as peft reads it; it belongs on
top of the stage's input policy.
"""

from __future__ import annotations

import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config.training import LoraConfig
from rlhf.data.json_text import json_text
from rlhf.errors import ConfigError
from rlhf.models.weight_files import SHARD_BYTES, file_header, weight_files, weight_names
from rlhf.training.ranks import barrier
from rlhf.training.weights import fp32_parameters, write_model

_PREFIX = "base_model.model."
"""What peft puts in front of a module's name."""


def add_adapter(model: Any, folder: Path, lora: LoraConfig, seed: int) -> Any:
    """A causal LM with fresh adapters, its own weights frozen.

    B is 0 at first, so it computes what it did before.

    Args:
        model: a loaded transformers model; it is changed in place.
        folder: where its weights came from, and where they will be read from again to merge.
        lora: the config section `dpo.lora`.
        seed: of A's random values, the same on every rank.

    Raises:
        ConfigError: `target_modules` matches nothing, or a layer that cannot be merged.
    """
    import peft

    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_modules(lora),
    )
    # Looked at before peft wraps the layers.
    linear_layers = _linear_layers(model)
    tied = _tied_head(model)
    torch.manual_seed(seed)
    try:
        # In the dtype of the model: DeepSpeed keeps the fp32 masters, and ZeRO-3 wants one dtype.
        adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(
            f"dpo.lora.target_modules={lora.target_modules}: {error}. The linear layers are {linear_layers}."
        ) from error
    saved_names = weight_names(folder)
    for peft_name, layer in adapted.named_modules():
        if not isinstance(layer, peft.tuners.lora.LoraLayer):
            continue
        name = peft_name.removeprefix(_PREFIX)
        base = layer.get_base_layer()
        # The update is added to one tensor of a file: it has to be there, and this layer's alone.
        if not isinstance(base, nn.Linear) or base is tied or f"{name}.weight" not in saved_names:
            raise ConfigError(
                f"dpo.lora.target_modules={lora.target_modules}: {name} cannot be adapted. It must be a "
                f"linear layer with a weight of its own, under its own name, in {folder}. Name other "
                f"layers ({linear_layers}), or set dpo.lora.rank=0 to train all weights."
            )
    return adapted


def num_trained(model: Any) -> int:
    """Numbers in the weights of a model that are trained."""
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 the parameter itself is empty.
            total += getattr(parameter, "ds_numel", parameter.numel())
    return total


def _target_modules(lora: LoraConfig) -> str | list[str]:
    """The layers as peft takes them: `all-linear` is a word by itself, not one of a list."""
    if lora.target_modules == ["all-linear"]:
        return "all-linear"
    return lora.target_modules


def _linear_layers(model: Any) -> list[str]:
    """The last words of the names of all linear layers: what `target_modules` may say."""
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            names.add(name.rpartition(".")[2])
    return sorted(names)


def _tied_head(model: Any) -> Any:
    """The output head where it shares its weight with the embeddings, else None."""
    if model.config.get_text_config().tie_word_embeddings:
        return model.get_output_embeddings()
    return None


def export_adapter(model: Any, source: Path, out: Path) -> None:
    """Write `out/adapter`, as peft saves one, and `out/model`, the policy merged in fp32.

    Every rank calls it.

    Args:
        model: what `add_adapter` made (not DeepSpeed's wrapper).
        source: folder its frozen weights were loaded from.
        out: where the two folders go; those that exist are replaced.
    """
    trained = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained.append((name, parameter))
    state = fp32_parameters(trained)
    if state is not None:
        settings = model.peft_config["default"]
        adapter = {}
        for name, value in sorted(state.items()):
            # In memory peft calls an adapter by its name too, in a file it does not.
            adapter[name.replace(".default.", ".")] = value.contiguous()
        _save_adapter(adapter, settings, out / "adapter")
        updates = _updates(adapter, settings.lora_alpha / settings.r)
        write_model(source, out / "model", partial(_save_merged, source, updates))
    barrier()


def _updates(adapter: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What to add to which weight: scale · B·A in fp32, by the weight's name in its file."""
    updates = {}
    for name, down in adapter.items():
        module, is_down, _ = name.partition(".lora_A.")
        if is_down:
            up = adapter[f"{module}.lora_B.weight"]
            weight_name = f"{module.removeprefix(_PREFIX)}.weight"
            updates[weight_name] = scale * (up @ down)
    assert 2 * len(updates) == len(adapter), "checked when the adapter was made"
    return updates


def _save_merged(source: Path, updates: dict[str, Tensor], folder: Path) -> None:
    """The weights of `source` in fp32 with the updates added, in files of at most `SHARD_BYTES`.

    One such file is in memory at a time.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    file_by_weight: dict[str, Path] = {}
    num_bytes: dict[str, int] = {}
    for path in weight_files(source):
        for name, tensor in file_header(path).items():
            file_by_weight[name] = path
            num_bytes[name] = 4 * math.prod(tensor["shape"])
    # In the order of names, not in the files': equal weights are to give equal bytes.
    plan = split_state_dict_into_shards_factory(
        dict(sorted(num_bytes.items())),
        get_storage_size=int,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    unused = dict(updates)
    for file_name, names in plan.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensors[name] = _merged(file_by_weight[name], name, unused)
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
    assert not unused, "checked when the adapter was made"


def _merged(path: Path, name: str, unused: dict[str, Tensor]) -> Tensor:
    """A weight of a file, in fp32 where it is a floating one; an update that was added is taken out of
    `unused`.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        value: Tensor = file.get_tensor(name)
    if value.is_floating_point():
        value = value.float()
    if name in unused:
        value = value + unused.pop(name)
    return value


def _save_adapter(adapter: dict[str, Tensor], settings: Any, out: Path) -> None:
    """Write a folder for `PeftModel.from_pretrained(policy, folder)`.

    Not by peft's own saving, which would write this machine's paths.
    """
    from safetensors.torch import save_file

    config = {
        "base_model_name_or_path": None,  # the path would make equal adapters differ in bytes
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "peft_type": "LORA",
        "r": settings.r,
        "target_modules": sorted(settings.target_modules),
        "task_type": "CAUSAL_LM",
    }
    unfinished = out.with_name(f".{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(adapter, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json_text(config, indent=2, sort_keys=True)
    (unfinished / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")
    # A folder cannot replace one that is not empty.
    shutil.rmtree(out, ignore_errors=True)
    os.replace(unfinished, out)
