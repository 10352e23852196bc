"""Buffers of a model, such as rotary frequencies, in the precision that its code gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def restore_buffers(model: nn.Module, config: Any, dtype: torch.dtype) -> None:
    """Undo the rounding of buffers that loading under ZeRO-3 does in 16 bits.

    While a model is made, ZeRO-3 turns every new floating point tensor to the dtype of the weights. Of
    weights that is right, but rotary frequencies in bfloat16 are off by up to 1/512, which at position 1000
    is a whole radian or two. Does nothing to models that were loaded otherwise.

    Args:
        model: as it was loaded.
        config: that its class makes it of.
        dtype: of its weights.
    """
    is_under_zero3 = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if not is_under_zero3 or dtype == torch.float32:
        return
    for name, value in _computed_buffers(type(model), config, dtype).items():
        module_name, _, buffer_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        rounded = getattr(module, buffer_name)
        # What the weight files hold has been read, and is no business of the model's code.
        is_saved = buffer_name not in module._non_persistent_buffers_set
        if not is_saved and rounded.dtype != value.dtype:
            setattr(module, buffer_name, value.to(rounded.device))


def _computed_buffers(model_class: Any, config: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The buffers of a model by name, made by its code alone; no weight takes memory."""
    from accelerate import init_empty_weights
    from transformers.modeling_utils import set_zero3_state

    previous = torch.get_default_dtype()
    # As transformers does while it loads.
    torch.set_default_dtype(dtype)
    try:
        # A judge makes its backbone by `AutoModel.from_config`, as multimodal models make their parts; under
        # ZeRO-3 that would divide weights among the ranks, and here are none.
        with init_empty_weights(include_buffers=False), set_zero3_state():
            skeleton = model_class(config)
    finally:
        torch.set_default_dtype(previous)
    return dict(skeleton.named_buffers())
