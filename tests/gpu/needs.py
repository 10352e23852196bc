"""What tests on a GPU need besides torch and transformers: a bare machine may lack it."""

from importlib.util import find_spec

import pytest


def needs(*packages):
    """Skip a test where one of these is not installed."""
    absent = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


needs_vllm = needs("vllm")
needs_deepspeed = needs("deepspeed", "trl", "datasets", "accelerate")
needs_the_command = needs("hydra", "deepspeed", "trl", "datasets", "accelerate", "peft")
ENGINE = "transformers" if find_spec("vllm") is None else "vllm"
"""That samples here."""
