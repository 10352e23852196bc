"""How large a model is and how it is built: from its folder, from a table by its name, or from its size."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.models.shape import Shape, read_shape
from rlhf.models.weight_files import has_weights
from rlhf.preflight.capacity import approximate_size


@dataclass(frozen=True)
class KnownShape:
    """The shape of a model, and how it is known where it is not counted in a folder."""

    shape: Shape
    assumed: str = ""


def layer_parameters(shape: Shape) -> float:
    """Of one layer: queries and output, keys and values; gate, up and down. Norms and biases are left out."""
    queries = shape.hidden * shape.heads * shape.head_size
    keys = shape.hidden * shape.key_value_heads * shape.head_size
    return float(2 * queries + 2 * keys + 3 * shape.hidden * shape.intermediate)


def _built(
    layers: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    head_size: int,
    intermediate: int,
    vocabulary: int,
    *,
    tied: bool,
) -> Shape:
    """A shape with the parameters that it has; `tied`: embeddings and output head are one matrix."""
    shape = Shape(0, layers, hidden, intermediate, heads, key_value_heads, head_size, vocabulary)
    tables = vocabulary * hidden * (1 if tied else 2)
    return replace(shape, parameters=layers * layer_parameters(shape) + tables)


# From the config.json of each model on the Hub, in the spaces of those who made it.
_TABLE = {
    "Llama-3-8B": (r"llama-?3(\.1)?-8b", _built(32, 4096, 32, 8, 128, 14336, 128256, tied=False)),
    "Llama-3-70B": (r"llama-?3(\.[13])?-70b", _built(80, 8192, 64, 8, 128, 28672, 128256, tied=False)),
    "Llama-3.2-1B": (r"llama-?3\.2-1b", _built(16, 2048, 32, 8, 64, 8192, 128256, tied=True)),
    "Llama-3.2-3B": (r"llama-?3\.2-3b", _built(28, 3072, 24, 8, 128, 8192, 128256, tied=True)),
    "Qwen2.5-0.5B": (r"qwen2(\.5)?-0\.5b", _built(24, 896, 14, 2, 64, 4864, 151936, tied=True)),
    "Qwen2.5-1.5B": (r"qwen2(\.5)?-1\.5b", _built(28, 1536, 12, 2, 128, 8960, 151936, tied=True)),
    "Qwen2.5-3B": (r"qwen2\.5-3b", _built(36, 2048, 16, 2, 128, 11008, 151936, tied=True)),
    "Qwen2.5-7B": (r"qwen2(\.5)?-7b", _built(28, 3584, 28, 4, 128, 18944, 152064, tied=False)),
    "Qwen2.5-14B": (r"qwen2\.5-14b", _built(48, 5120, 40, 8, 128, 13824, 152064, tied=False)),
    "Qwen2.5-32B": (r"qwen2\.5-32b", _built(64, 5120, 40, 8, 128, 27648, 152064, tied=False)),
    "Qwen2.5-72B": (r"qwen2\.5-72b", _built(80, 8192, 64, 8, 128, 29568, 152064, tied=False)),
    "Qwen3-0.6B": (r"qwen3-0\.6b", _built(28, 1024, 16, 8, 128, 3072, 151936, tied=True)),
    "Qwen3-1.7B": (r"qwen3-1\.7b", _built(28, 2048, 16, 8, 128, 6144, 151936, tied=True)),
    "Qwen3-4B": (r"qwen3-4b", _built(36, 2560, 32, 8, 128, 9728, 151936, tied=True)),
    "Qwen3-8B": (r"qwen3-8b", _built(36, 4096, 32, 8, 128, 12288, 151936, tied=False)),
    "Qwen3-14B": (r"qwen3-14b", _built(40, 5120, 40, 8, 128, 17408, 151936, tied=False)),
    "Qwen3-32B": (r"qwen3-32b", _built(64, 5120, 64, 8, 128, 25600, 151936, tied=False)),
    "Mistral-7B": (r"mistral-7b", _built(32, 4096, 32, 8, 128, 14336, 32000, tied=False)),
    "Gemma-2-2B": (r"gemma-2-2b", _built(26, 2304, 8, 4, 256, 9216, 256000, tied=True)),
    "Gemma-2-9B": (r"gemma-2-9b", _built(42, 3584, 16, 8, 256, 14336, 256000, tied=True)),
    "Phi-3-mini": (r"phi-3(\.5)?-mini", _built(32, 3072, 32, 32, 96, 8192, 32064, tied=False)),
    "SmolLM2-135M": (r"smollm2-135m", _built(30, 576, 9, 3, 64, 1536, 49152, tied=True)),
}
"""By a pattern of the name, in small letters and with hyphens."""
_NO_SIZE_IN_THEIR_NAME = {
    "rlhflow/llama3-sft": "Llama-3-8B",
    "sfairxc/fsfairx-llama3-rm-v0.1": "Llama-3-8B",
}
"""Models of the shipped experiments: what their cards say."""

# What `rlhf.world.build` makes: a model of 0.86 million parameters, and a judge with two layers more.
WORLD_MODEL = _built(4, 128, 4, 4, 32, 352, 406, tied=True)
WORLD_JUDGE = _built(6, 128, 4, 4, 32, 352, 406, tied=True)


def shape_of(path: str, key: str, one_logit: bool = False) -> KnownShape:
    """The shape of a model: counted in its folder, else as its name says.

    Args:
        path: folder or Hub id.
        key: of the config, for the message.
        one_logit: whether it is a scalar judge, which has no head over the vocabulary.

    Raises:
        ConfigError: it is not here, and its name says nothing.
        ModelError: its folder is damaged.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return _in_folder(folder, path, key)
    name = path.rpartition("/")[2].lower().replace("_", "-")
    known = _NO_SIZE_IN_THEIR_NAME.get(path.lower())
    for entry, (pattern, shape) in _TABLE.items():
        if entry == known or re.search(rf"(?<![a-z0-9.]){pattern}(?![a-z0-9])", name):
            if one_logit:
                shape = _without_head(shape)
            return KnownShape(shape, f"{key}={path}: shape of {entry} ({_billions(shape.parameters)})")
    size = approximate_size(path)
    if not size:
        raise ConfigError(
            f"{key}={path}: how large it is cannot be told: no model folder here, not in the table of "
            f"rlhf/preflight/shapes.py, and no size such as 8B in its name. Give a folder, or for the plan "
            f"alone a name with its size: {key}=my-8B"
        )
    return _of_size(size, f"{key}={path}")


def _without_head(shape: Shape) -> Shape:
    """The same with one matrix over the vocabulary, the embeddings."""
    body = shape.layers * layer_parameters(shape)
    return replace(shape, parameters=body + shape.vocabulary * shape.hidden)


def _in_folder(folder: Path, path: str, key: str) -> KnownShape:
    """As config.json and the headers of the weights say."""
    size = approximate_size(path)
    if not size:
        raise ConfigError(
            f"{key}={path}: how large it is cannot be told: it has no weights, and no size such as 8B in its "
            f"name. For the plan alone give a name with its size: {key}=my-8B"
        )
    shape = read_shape(folder, size)
    if shape is None:
        return _of_size(size, f"{key}={path}")
    return KnownShape(shape, "" if has_weights(folder) else f"{key}={path}: {_billions(size)}, by its name")


def _of_size(size: float, what: str) -> KnownShape:
    """The shape of the most similar model of the table, with as many layers as make it so large."""
    nearest = min(_TABLE, key=lambda entry: abs(_TABLE[entry][1].parameters - size))
    shape = _TABLE[nearest][1]
    layers = max(1, round(shape.layers * size / shape.parameters))
    return KnownShape(
        replace(shape, parameters=size, layers=layers), f"{what}: {_billions(size)}, built like {nearest}"
    )


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.3g} billion parameters"
