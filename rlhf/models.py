"""Facts about a model folder that every engine needs."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def saved_dtype(path: str | Path, wanted: str = "auto") -> str:
    """The dtype to load a model in: the one asked for, or for `auto` the one most of its weights were saved in.

    vLLM's own `auto` turns fp32 folders into 16 bits; this one reads the safetensors headers.

    Raises:
        ModelError: the folder has no safetensors, or none of a floating type.
    """
    if wanted != "auto":
        return wanted
    sizes: dict[str, int] = {}
    for _, tensor in weight_headers(path):
        if tensor["dtype"] in _DTYPES:
            begin, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - begin
    if not sizes:
        raise ModelError(
            f"{path}: no floating-point weights in *.safetensors, so their dtype is unknown. Set the model's dtype "
            "(float32 or bfloat16), or save the weights as safetensors."
        )
    return _DTYPES[max(sizes, key=lambda name: sizes[name])]


def own_code(path: str | Path) -> dict[str, str]:
    """What of a model folder is Python code of its own, which `trust_remote_code` runs: class by auto class."""
    found: dict[str, str] = {}
    for file in (Path(path) / name for name in ("config.json", "tokenizer_config.json")):
        given = json.loads(file.read_text(encoding="utf-8")).get("auto_map") if file.is_file() else None
        named = given if isinstance(given, dict) else {"AutoTokenizer": given} if given else {}
        found |= {key: name if isinstance(name, str) else ", ".join(filter(None, name)) for key, name in named.items()}
    return found


def own_classifier(path: str | Path) -> str | None:
    """The class that comes with a model folder to be its sequence classifier; None where it is one of transformers."""
    return own_code(path).get("AutoModelForSequenceClassification")


def require_trust(path: str | Path, trusted: bool) -> None:
    """Raise ModelError for a judge with code of its own that may not run: transformers would make up a head."""
    if (own := own_classifier(path)) and not trusted:
        raise ModelError(
            f"{path}: this judge is computed by Python code that comes with it ({own}), and without that it has no "
            "trained head. Look at the code; then let it run with trust_remote_code=true beside its path in "
            "reward_model or reward_model.others (evaluate.judges run no code), or choose another judge."
        )


def context_length(path: str | Path) -> int | None:
    """Tokens a model can hold, as its config says; None where it does not."""
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    found = config.get("text_config", config).get("max_position_embeddings")
    return int(found) if isinstance(found, int) else None


def num_parameters(path: str | Path) -> int:
    """Numbers in the weights of a model folder, from the safetensors headers."""
    return sum(math.prod(tensor["shape"]) for _, tensor in weight_headers(path))


def weight_headers(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the safetensors headers of a folder say of each tensor, by name, without reading any.

    Raises:
        ModelError: a file has no such header.
    """
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with open(file, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length))
        except (ValueError, struct.error, MemoryError, OverflowError) as error:
            raise ModelError(f"{file}: no safetensors header. A Git LFS pointer? Fetch the file.") from error
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def attention(path: str | Path, trust_remote_code: bool = False) -> str | None:
    """The attention implementation a model has to be loaded with; None is the library's choice.

    Gemma 2 caps its attention scores, which the default kernel leaves out without a word: its log-probabilities would
    not be those of the model that vLLM samples from.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None
