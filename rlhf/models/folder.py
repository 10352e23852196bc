"""Facts about a model folder that every engine needs."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError

_TRUST = "trust_remote_code=true"
_CODE = f"A model with Python code of its own needs {_TRUST} in its section, which runs it: read it first."
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of torch by those in safetensors headers; whole numbers and 8-bit weights are no dtypes to
compute in."""
_LARGEST_HEADER = 10**8
"""Bytes, as the format allows."""


def saved_dtype(path: str | Path, wanted: str = "auto") -> str:
    """The dtype to load a model in: the one asked for, or for `auto` the one most of its weights
    were saved in.

    vLLM's own `auto` turns fp32 folders into 16 bits; this one reads the safetensors headers.

    Raises:
        ModelError: the folder has no safetensors, or none of a floating type.
    """
    if wanted != "auto":
        return wanted
    # By bytes, not by tensors: a model in 16 bits may have a hundred small norms in 32.
    num_bytes = Counter[str]()
    for _, tensor in weight_headers(path):
        if tensor["dtype"] in _DTYPES:
            begin, end = tensor["data_offsets"]
            num_bytes[tensor["dtype"]] += end - begin
    if not num_bytes:
        raise ModelError(
            f"{path}: no floating-point weights in *.safetensors, so their dtype is unknown. Set "
            "the model's dtype (float32 or bfloat16), or save the weights as safetensors."
        )
    most = max(num_bytes, key=lambda name: num_bytes[name])
    return _DTYPES[most]


def own_code(path: str | Path) -> dict[str, str]:
    """What of a model folder is Python code of its own, which `trust_remote_code` runs: class by auto class.

    Example:
        {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    """
    classes: dict[str, str] = {}
    for name in ("config.json", "tokenizer_config.json"):
        file = Path(path) / name
        auto_map = _read_object(file).get("auto_map") if file.is_file() else None
        if not auto_map:
            continue
        # Old tokenizers name their classes without saying for what.
        if not isinstance(auto_map, dict):
            auto_map = {"AutoTokenizer": auto_map}
        for auto_class, names in auto_map.items():
            # A tokenizer names two, the slow and the fast one; null stands for one that does not exist.
            classes[auto_class] = names if isinstance(names, str) else ", ".join(filter(None, names))
    return classes


def own_classifier(path: str | Path) -> str | None:
    """The class that comes with a model folder to be its sequence classifier; None where it is one
    of transformers.
    """
    classes = own_code(path)
    return classes.get("AutoModelForSequenceClassification")


def require_trust(path: str | Path, trusted: bool) -> None:
    """Raise ModelError for a judge with code of its own that may not run: transformers would make
    up a head.
    """
    own = own_classifier(path)
    if own and not trusted:
        raise ModelError(
            f"{path}: this judge is computed by Python code that comes with it ({own}), and "
            f"without that it has no trained head. Look at the code; then let it run with {_TRUST} "
            "beside its path in reward_model or reward_model.others (evaluate.judges run no code), "
            "or choose another judge."
        )


def context_length(path: str | Path) -> int | None:
    """Tokens a model can hold, as its config says; None where it does not."""
    length = text_config(path).get("max_position_embeddings")
    if not isinstance(length, int):
        return None
    return int(length)


def text_config(path: str | Path) -> dict[str, Any]:
    """What config.json says of the language model; ModelError where it cannot be read."""
    config = _read_object(Path(path) / "config.json")
    # Models that also see have one config within another.
    language_model = config.get("text_config") or config
    return dict(language_model)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        problem = f"cannot be read ({error})"
        raise ModelError(f"{path}: {problem}. Save the model anew, or download it again.") from None


def check_folder(folder: Path, key: str) -> None:
    """Raise ModelError for a damaged model folder, pickled weights alone, or an adapter; reads no weights."""
    text_config(folder)
    adapter = "adapter_config.json"
    if (folder / adapter).exists():
        problem = f"holds an adapter ({adapter}), no whole model"
        raise ModelError(f"{key}={folder}: {problem}. Merge it (merge_and_unload).")
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{key}={folder}: no *.safetensors there; other weight formats can run code when "
            "loaded and are not read. Convert to safetensors with model.save_pretrained(folder), "
            "or choose a revision that has them."
        )
    with_weights = set()
    for file in files:
        # Every header is read, so that a damaged file is found now and not hours later.
        if _header(file):
            with_weights.add(file.name)
    # The index names the file of every tensor: one that was never downloaded is missed only here.
    index = folder / "model.safetensors.index.json"
    weight_map = _read_object(index).get("weight_map") if index.is_file() else {}
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index}: has no weight_map. Download or save the model anew.")
    missing = sorted(set(map(str, weight_map.values())) - with_weights)
    if missing:
        names = ", ".join(missing)
        raise ModelError(f"{key}={folder}: {names} of {index.name} is not there. Download it anew.")


def num_parameters(path: str | Path) -> int:
    """Numbers in the weights of a model folder, from the safetensors headers."""
    total = 0
    for _, tensor in weight_headers(path):
        total += math.prod(tensor["shape"])
    return total


def weight_headers(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the safetensors headers of a folder say of each tensor, by name, without reading any.

    Raises:
        ModelError: a file has no such header.

    Example:
        ("model.norm.weight", {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]})
    """
    for file in sorted(Path(path).glob("*.safetensors")):
        header = _header(file)
        yield from header.items()


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of one file: eight bytes of length, then as many of JSON."""
    # Not by `safetensors.safe_open`: of a file cut short it says neither that nor how many bytes
    # are missing, it gives no sizes in bytes, and it reads no header with a dtype that is newer
    # than the library.
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            # In a file of another kind the first eight bytes may be any number.
            text = stream.read(min(length, _LARGEST_HEADER))
        header = dict(json.loads(text))
        header.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in header.values()]
        expected_size = 8 + length + max(ends, default=0)
        size = file.stat().st_size
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        problem = f"no safetensors file that can be read ({error})"
        raise ModelError(f"{file}: {problem}. Download or save it anew.") from None
    if size != expected_size:
        raise ModelError(
            f"{file}: {size} bytes, and its header says {expected_size}: it is cut short. Download it anew."
        )
    return header


def attention(path: str | Path, trust_remote_code: bool = False) -> str | None:
    """The attention implementation a model has to be loaded with; None is the library's choice.

    Gemma 2 caps its attention scores, which the default kernel leaves out without a word: its
    log-probabilities would not be those of the model that vLLM samples from.
    """
    config = load_config(path, trust_remote_code).get_text_config()
    caps_scores = bool(getattr(config, "attn_logit_softcapping", None))
    return "eager" if caps_scores else None


def load_config(path: str | Path, trust_remote_code: bool = False, **extra: Any) -> Any:
    """The config of a model folder, as transformers has it; ModelError where that needs code that
    may not run.
    """
    # Here and not at the top: the driver reads folders too, and does not wait for transformers.
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"{path}: its config cannot be used ({error}). {_CODE}") from error


def load_weights(
    auto: Any,
    path: str | Path,
    dtype: Any,
    trust_remote_code: bool = False,
    new_head: bool = False,
    **extra: Any,
) -> Any:
    """A model of one of transformers' auto classes, from safetensors alone.

    Raises:
        ModelError: it cannot be loaded, or weights are not in the files, which transformers would
            make up at random; with `new_head` those of the score head may be missing, which is
            about to be trained.
    """
    extra["dtype"] = dtype
    extra["attn_implementation"] = attention(path, trust_remote_code)
    extra["trust_remote_code"] = trust_remote_code
    try:
        model, info = auto.from_pretrained(path, use_safetensors=True, output_loading_info=True, **extra)
    # As many kinds as there are ways for a config and weights not to fit; what other code raises is a bug.
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        import transformers

        task = auto.__name__.removeprefix("AutoModelFor")
        raise ModelError(
            f"{path}: cannot be loaded as {task} with transformers {transformers.__version__} "
            f"({error}). Check config.json. {_CODE} Code that is too old for this version is "
            "mended in a copy of the folder."
        ) from error
    missing = []
    for name in sorted(info["missing_keys"]):
        may_be_missing = new_head and name.startswith("score.")
        if not may_be_missing:
            missing.append(name)
    if missing:
        shown = ", ".join(missing[:4])
        if len(missing) > 4:
            shown += ", …"
        raise ModelError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its files: "
            f"{shown}. Download or save it anew, or mend config.json."
        )
    return model


@contextmanager
def engine_alive() -> Iterator[None]:
    """Say what it means when one of the processes of a vLLM engine is gone; its own word for it is
    `cancelled`.
    """
    try:
        yield
    except Exception as error:
        # By name: the class is vLLM's, and importing vLLM takes seconds.
        if type(error).__name__ != "EngineDeadError" and str(error) != "cancelled":
            raise
        raise RuntimeError(
            "a process of vLLM's engine died (the kernel kills one when memory runs out: see dmesg)"
        ) from error
