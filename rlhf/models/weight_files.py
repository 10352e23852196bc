"""The weight files of a model folder, and what their headers say without any weight being read."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.errors import ModelError
from rlhf.models.folder import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 10**9
"""Bytes of weights that one file holds at most, unless one weight alone is larger. Models with more are
written as several files, which are hashed and loaded side by side; smaller ones as one, as ever."""
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of torch by those in safetensors headers; whole numbers and 8-bit weights are no dtypes to
compute in."""
_LARGEST_HEADER = 10**8
"""Bytes, as the format allows."""


def has_weights(path: str | Path) -> bool:
    """Whether weights are here; of a model on the Hub the checks before a run fetch only the small files."""
    return any(Path(path).glob("*.safetensors"))


def weight_files(path: str | Path) -> list[Path]:
    """The files that transformers loads the weights from.

    Many folders hold all weights a second time, in a file such as `consolidated.safetensors`: that
    is neither counted nor loaded.
    """
    folder = Path(path)
    # In the order in which transformers looks for them.
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return [folder / name for name in sorted(set(weight_map(folder).values()))]
    files = []
    for file in sorted(folder.glob("*.safetensors")):
        if not file.name.startswith(("consolidated", "adapter_model")):
            files.append(file)
    return files


def second_copies(path: str | Path) -> list[Path]:
    """The weight files of a folder that transformers does not load, and an index that it does not look at."""
    folder = Path(path)
    loaded = {file.name for file in weight_files(folder)}
    copies = []
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in loaded:
            copies.append(file)
    if SINGLE in loaded and (folder / INDEX).exists():
        copies.append(folder / INDEX)
    return copies


def weight_map(folder: Path) -> dict[str, str]:
    """The file of each weight, as the index has it; nothing without an index.

    Example:
        {"model.norm.weight": "model-00002-of-00002.safetensors"}
    """
    index = folder / INDEX
    if not index.is_file():
        return {}
    file_by_weight = read_object(index).get("weight_map")
    if not isinstance(file_by_weight, dict):
        raise ModelError(f"{index}: has no weight_map. Download or save the model anew.")
    for name, file in file_by_weight.items():
        if not isinstance(file, str):
            raise ModelError(
                f"{index}: weight_map has {json_text(file):.80} for {name}, which is no name of a file. "
                "Download or save the model anew."
            )
    return file_by_weight


def write_index(folder: Path) -> None:
    """Write the index of a folder that holds its weights in several files, as their headers have it.

    Does nothing where one file holds them all.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return
    file_by_weight = {}
    total_size = 0
    for file in files:
        for name, tensor in file_header(file).items():
            file_by_weight[name] = file.name
            begin, end = tensor["data_offsets"]
            total_size += end - begin
    index = {"metadata": {"total_size": total_size}, "weight_map": file_by_weight}
    text = json_text(index, indent=2, sort_keys=True)
    (folder / INDEX).write_text(f"{text}\n", encoding="utf-8")


def weight_names(path: str | Path) -> set[str]:
    """The names of all weights; of a model on the Hub, whose weights are not here, those in its index if it
    has one.
    """
    folder = Path(path)
    if not has_weights(folder):
        return set(weight_map(folder))
    return {name for name, _ in weight_headers(folder)}


def weight_headers(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the safetensors headers of a folder say of each tensor, by name, without reading any.

    Raises:
        ModelError: a file has no such header.

    Example:
        ("model.norm.weight", {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]})
    """
    for file in weight_files(path):
        yield from file_header(file).items()


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


def num_parameters(path: str | Path) -> int:
    """Numbers in the weights of a model folder, from the safetensors headers."""
    total = 0
    for _, tensor in weight_headers(path):
        total += math.prod(tensor["shape"])
    return total


def file_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of one file: eight bytes of length, then as many of JSON."""
    # Not by `safetensors.safe_open`: of a file cut short it says neither that nor how many bytes
    # are missing, it gives no sizes in bytes, and it reads no header with a dtype that is newer
    # than the library.
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            # In a file of another kind the first eight bytes may be any number.
            text = stream.read(min(length, _LARGEST_HEADER))
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError(f"its header is {json_text(header):.80}, and must be an object")
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            _check_tensor(name, tensor)
        ends = [tensor["data_offsets"][1] for tensor in header.values()]
        expected_size = 8 + length + max(ends, default=0)
        size = file.stat().st_size
    except (OSError, ValueError, RecursionError, struct.error) as error:
        problem = f"no safetensors file that can be read ({error})"
        raise ModelError(f"{file}: {problem}. Download or save it anew.") from None
    if size != expected_size:
        raise ModelError(
            f"{file}: {size} bytes, and its header says {expected_size}: it is cut short. Download it anew."
        )
    return header


def _check_tensor(name: str, tensor: Any) -> None:
    """Raise ValueError for what a header says of a tensor where the format has other types."""
    if not isinstance(tensor, dict):
        raise ValueError(f"{name} is {json_text(tensor):.80} in its header, and must be an object")
    dtype = tensor.get("dtype")
    if not isinstance(dtype, str):
        raise ValueError(f"{name}.dtype is {json_text(dtype):.80} in its header, and must be a text")
    for field in ("shape", "data_offsets"):
        if not _are_sizes(tensor.get(field)):
            found = json_text(tensor.get(field))
            raise ValueError(
                f"{name}.{field} is {found:.80} in its header, and must be whole numbers from 0 on"
            )
    offsets = tensor["data_offsets"]
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name}.data_offsets is {offsets} in its header, and must be a begin and an end")


def _are_sizes(value: Any) -> bool:
    """Whether a value out of JSON is a list of whole numbers that are not negative."""
    if not isinstance(value, list):
        return False
    return all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value)
