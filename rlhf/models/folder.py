"""Facts about a model folder that every engine needs."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError

_CODE = "A model with Python code of its own needs trust_remote_code=true in its section, which runs it: read it first."
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
        given = _read_object(file).get("auto_map") if file.is_file() else None
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
    found = text_config(path).get("max_position_embeddings")
    return int(found) if isinstance(found, int) else None


def text_config(path: str | Path) -> dict[str, Any]:
    """What config.json says of the language model; ModelError where it cannot be read."""
    config = _read_object(Path(path) / "config.json")
    return dict(config.get("text_config") or config)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}). Save the model anew, or download it again.") from None


def check_folder(folder: Path, key: str) -> None:
    """Raise ModelError for a damaged model folder, pickled weights alone, or an adapter; reads no weights."""
    text_config(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{key}={folder}: holds an adapter (adapter_config.json), no whole model. Merge it (merge_and_unload)."
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{key}={folder}: no *.safetensors there; other weight formats can run code when loaded and are not read. "
            "Convert to safetensors with model.save_pretrained(folder), or choose a revision that has them."
        )
    there = {file.name for file in folder.glob("*.safetensors") if _header(file)}
    index = folder / "model.safetensors.index.json"
    parts = _read_object(index).get("weight_map") if index.is_file() else {}
    if not isinstance(parts, dict):
        raise ModelError(f"{index}: has no weight_map. Download or save the model anew.")
    if missing := sorted(set(map(str, parts.values())) - there):
        raise ModelError(f"{key}={folder}: {', '.join(missing)} of {index.name} is not there. Download it anew.")


def num_parameters(path: str | Path) -> int:
    """Numbers in the weights of a model folder, from the safetensors headers."""
    return sum(math.prod(tensor["shape"]) for _, tensor in weight_headers(path))


def weight_headers(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the safetensors headers of a folder say of each tensor, by name, without reading any.

    Raises:
        ModelError: a file has no such header.
    """
    for file in sorted(Path(path).glob("*.safetensors")):
        yield from _header(file).items()


def _header(file: Path) -> dict[str, dict[str, Any]]:
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = dict(json.loads(stream.read(min(length, 10**8))))
        header.pop("__metadata__", None)
        wanted = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        size = file.stat().st_size
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        raise ModelError(f"{file}: no safetensors file that can be read ({error}). Download or save it anew.") from None
    if size != wanted:
        raise ModelError(f"{file}: {size} bytes, and its header says {wanted}: it is cut short. Download it anew.")
    return header


def attention(path: str | Path, trust_remote_code: bool = False) -> str | None:
    """The attention implementation a model has to be loaded with; None is the library's choice.

    Gemma 2 caps its attention scores, which the default kernel leaves out without a word: its log-probabilities would
    not be those of the model that vLLM samples from.
    """
    config = load_config(path, trust_remote_code).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def load_config(path: str | Path, trust_remote_code: bool = False, **extra: Any) -> Any:
    """The config of a model folder, as transformers has it; ModelError where that needs code that may not run."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"{path}: its config cannot be used ({error}). {_CODE}") from error


def load_weights(
    auto: Any, path: str | Path, dtype: Any, trust_remote_code: bool = False, new_head: bool = False, **extra: Any
) -> Any:
    """A model of one of transformers' auto classes, from safetensors alone.

    Raises:
        ModelError: it cannot be loaded, or weights are not in the files, which transformers would make up at random;
            with `new_head` those of the score head may be missing, which is about to be trained.
    """
    eager = attention(path, trust_remote_code)
    extra |= {"dtype": dtype, "attn_implementation": eager, "trust_remote_code": trust_remote_code}
    try:
        model, found = auto.from_pretrained(path, use_safetensors=True, output_loading_info=True, **extra)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        import transformers

        what = auto.__name__.removeprefix("AutoModelFor")
        raise ModelError(
            f"{path}: cannot be loaded as {what} with transformers {transformers.__version__} ({error}). Check "
            f"config.json. {_CODE} Code that is too old for this version is mended in a copy of the folder."
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not (new_head and name.startswith("score.")))
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its files: {', '.join(missing[:4])}"
            f"{', …' * (len(missing) > 4)}. Download or save it anew, or mend config.json."
        )
    return model


@contextmanager
def engine_alive() -> Iterator[None]:
    """Say what it means when one of the processes of a vLLM engine is gone; its own word for it is `cancelled`."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "EngineDeadError" and str(error) != "cancelled":
            raise
        raise RuntimeError(
            "a process of vLLM's engine died (the kernel kills one when memory runs out: see dmesg)"
        ) from error
