"""Which of the two engines a model is loaded in: vLLM where it can, else transformers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

from rlhf.config.choices import Engine
from rlhf.errors import UserError

VllmT = TypeVar("VllmT")
TransformersT = TypeVar("TransformersT")


def vllm_is_installed() -> bool:
    """Whether vLLM is there, without importing it, which takes seconds."""
    return find_spec("vllm") is not None


def may_be_vllm(engine: Engine) -> bool:
    """Whether what a config names may come to be vLLM here."""
    return engine is Engine.vllm or (engine is Engine.auto and vllm_is_installed())


def load_in_engine(
    engine: Engine, load_vllm: Callable[[], VllmT], load_transformers: Callable[[str], TransformersT]
) -> VllmT | TransformersT:
    """What the engine that a config names has loaded; `auto` tries vLLM first.

    Args:
        engine: `vllm`, `transformers` or `auto`.
        load_vllm: imports vLLM and loads the model in it.
        load_transformers: the same with transformers; it takes a note why, mostly empty, that
            people are to see.

    Raises:
        UserError: vLLM is asked for by name and is missing, or cannot load the model.
    """
    if engine is Engine.transformers:
        return load_transformers("")
    try:
        return load_vllm()
    except UserError as error:
        # Who names vLLM wants it; who leaves the choice open wants results, and to know where they come from.
        if engine is Engine.vllm:
            raise
        note = f"transformers, since vLLM refuses: {error}"
    # Outside of the handler: an error raised there would drag that of vLLM along as its context.
    free_engine()
    return load_transformers(note)


def free_engine() -> None:
    """Give back the memory of a vLLM engine that nobody holds any more, before another model is loaded.

    One that failed while it started takes nothing down by itself.
    """
    import torch

    # Those of the preloading process, among them, are out of collections.
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
