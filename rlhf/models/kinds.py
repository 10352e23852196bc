"""What a path holds that is no model folder this package can use, and the way out of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError, one_line
from rlhf.models.folder import read_object
from rlhf.models.weight_files import (
    INDEX,
    SINGLE,
    file_header,
    has_weights,
    weight_files,
    weight_headers,
    weight_map,
)

_GGUF = (
    "GGUF, the quantised format of llama.cpp. Name the model it was made from, or write it out as "
    "a model folder: "
    "AutoModelForCausalLM.from_pretrained(folder, "
    "gguf_file='NAME.gguf').save_pretrained(new_folder), and the "
    "tokenizer likewise"
)
_PICKLES = (
    "other weight formats can run code when loaded and are not read. Convert to safetensors with "
    "model.save_pretrained(folder), or choose a revision that has them"
)
_OLD_FRAMEWORK = (
    "which today's transformers cannot read. Convert it with transformers 4 ({flag}=True in "
    "from_pretrained, then "
    "model.save_pretrained(folder)), or choose a revision with safetensors"
)
_BY_SUFFIX = {
    ".gguf": f"weights as {_GGUF}",
    ".msgpack": "weights of Flax, " + _OLD_FRAMEWORK.format(flag="from_flax"),
    ".h5": "weights of TensorFlow, " + _OLD_FRAMEWORK.format(flag="from_tf"),
    ".onnx": "weights as ONNX, a graph for inference alone. Name the model that it was exported from",
    ".npz": "weights of MLX or NumPy. Name the model that they were made from",
    ".bin": f"pickled weights; {_PICKLES}",
    ".pt": f"pickled weights; {_PICKLES}",
    ".pth": f"pickled weights; {_PICKLES}",
    ".ckpt": f"pickled weights; {_PICKLES}",
}
"""What files of weights are that are not read, those first that say most of the folder."""
FOREIGN_WEIGHTS = (*_BY_SUFFIX, ".ot", ".tflite", ".mlmodel", ".nemo", ".distcp")
"""Suffixes of weights in other formats."""
_NOT_WEIGHTS = {
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "optimizer.bin",
    "scheduler.bin",
}
"""What a Trainer leaves beside weights, as pickles too."""

_DEQUANTIZE = {
    "bitsandbytes": "load it with transformers and bitsandbytes, then "
    "model.dequantize().save_pretrained(new_folder)",
    "fp8": "load it with quantization_config=FineGrainedFP8Config(dequantize=True), then "
    "save_pretrained(new_folder)",
    "mxfp4": "load it with quantization_config=Mxfp4Config(dequantize=True), then "
    "save_pretrained(new_folder)",
    "compressed-tensors": (
        "load it with quantization_config=CompressedTensorsConfig(run_compressed=False), then "
        "save_pretrained(new_folder)"
    ),
}
"""How to make whole weights of quantised ones, by `quant_method`, where transformers can."""
_QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""In which GPTQ, AWQ and ModelOpt said it before config.json did."""
_QUANTISED_NAME = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|SCB|absmax|quant_map|.*_blocks)$"
)
_QUANTISED_DTYPE = re.compile(r"F8|F4|F6")

_MERGEABLE = {
    "LORA",
    "LOHA",
    "LOKR",
    "ADALORA",
    "OFT",
    "BOFT",
    "IA3",
    "VERA",
    "HRA",
    "FOURIERFT",
    "BONE",
    "MISS",
}
"""Adapters that change weights; the others (prompts, prefixes) have no weights to be merged into."""

_VOCABULARIES = (
    "tokenizer.json",
    "*.model",
    "vocab*",
    "*.tiktoken",
    "tekken.json",
    "*.vocab",
    "*.bpe",
    "*.py",
)
"""Files that hold a tokenizer's vocabulary, or make one."""


def check_folder(folder: Path, key: str, weights: bool = True) -> None:
    """Refuse what is no whole model in safetensors; reads no weights.

    Args:
        folder: what `key` names; it exists.
        key: of the config, for the message.
        weights: whether the weights must be here, and whole.

    Raises:
        ModelError: what it is, and the way out.
    """
    where = f"{key}={folder}"
    if not folder.exists():
        # A repository of the Hub of which nothing was worth a download.
        raise ModelError(
            f"{where}: nothing that is read here is in that repository, no config.json there and "
            "no *.safetensors. It "
            "may hold GGUF or another format; name the model that it was made from."
        )
    if not folder.is_dir():
        raise ModelError(f"{where}: {_about_file(folder)}")
    # Before config.json is asked for: adapters mostly come without.
    _refuse_adapter(folder, where)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{where}: {_about_folder_without_config(folder)}")
    config = read_object(folder / "config.json")
    _refuse_quantised(folder, config, where)
    if not weights:
        return
    if not has_weights(folder):
        raise ModelError(f"{where}: no *.safetensors there; {_about_other_weights(folder)}.")
    # In this order: headers are whole from here on.
    _check_weight_files(folder, where)
    _refuse_quantised_weights(folder, where)


def _about_file(path: Path) -> str:
    """What to say of a file where a folder should be."""
    if path.suffix in _BY_SUFFIX:
        return f"a file of {_BY_SUFFIX[path.suffix]}."
    if path.suffix == ".safetensors":
        return f"a file of weights, no config.json there. Name the folder that it lies in, {path.parent}."
    return (
        "a file, no folder: no config.json there. Name the folder of a model, with config.json "
        "and *.safetensors."
    )


def _refuse_adapter(folder: Path, where: str) -> None:
    # With config.json beside it too: transformers would put the adapter on by itself where peft is
    # installed, and vLLM would not.
    description = folder / "adapter_config.json"
    if not description.is_file():
        if any(folder.glob("adapter_model.*")) and not (folder / SINGLE).exists():
            raise ModelError(
                f"{where}: holds an adapter without its adapter_config.json, no whole model. Download it "
                "anew, and merge it (merge_and_unload)."
            )
        return
    adapter = read_object(description)
    base = one_line(adapter.get("base_model_name_or_path") or "its base model")
    kind = one_line(adapter.get("peft_type") or "LORA")
    holds = f"holds an adapter ({kind}, adapter_config.json) of {base}, no whole model"
    if kind not in _MERGEABLE:
        raise ModelError(
            f"{where}: {holds}, and one of this kind cannot be merged into weights. Use {base} itself, or "
            "another model."
        )
    is_classifier = adapter.get("task_type") == "SEQ_CLS"
    auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    raise ModelError(
        f"{where}: {holds}. Merge it into {base} and name the merged folder: "
        f"PeftModel.from_pretrained({auto}.from_pretrained({base!r}), {str(folder)!r})"
        ".merge_and_unload().save_pretrained(new_folder), and save the tokenizer there too."
    )


def _about_folder_without_config(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return (
            "an empty folder, no config.json there. Download the model into it (`hf download`), "
            "or name another folder."
        )
    if "model_index.json" in names:
        return "a pipeline of several models (model_index.json), no config.json there. Name a language model."
    if "params.json" in names:
        return (
            "weights in their maker's own format (params.json), no config.json there. Take the version for "
            "transformers, or convert it (transformers' convert_*_weights_to_hf.py)."
        )
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return (
            "a checkpoint of DeepSpeed, no config.json there. Make a model of it with its "
            "zero_to_fp32.py, or name "
            "what was saved when the training ended."
        )
    # A folder of checkpoints, or one that was unpacked one level too deep.
    within = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    if within:
        return f"no config.json there, but in its folders {one_line(', '.join(within))}. Name one of them."
    weights = _foreign_weights(folder)
    if weights:
        return f"no config.json there, only {one_line(weights[0].name)}: {_BY_SUFFIX[weights[0].suffix]}."
    return (
        "no config.json there, so it is no model folder. Point at the one that has config.json "
        "and *.safetensors."
    )


def _foreign_weights(folder: Path) -> list[Path]:
    """Files of weights in other formats, those first that say most of the folder."""
    files = []
    # A dict keeps its order, and with it which kind is named first.
    for suffix in _BY_SUFFIX:
        for file in sorted(folder.glob(f"*{suffix}")):
            if file.name not in _NOT_WEIGHTS:
                files.append(file)
    return files


def _about_other_weights(folder: Path) -> str:
    foreign = _foreign_weights(folder)
    if foreign:
        return f"{one_line(foreign[0].name)} is {_BY_SUFFIX[foreign[0].suffix]}"
    # What lies on the Hub in other formats is not downloaded.
    return f"it may have its weights in another format ({', '.join(_BY_SUFFIX)}), but {_PICKLES}"


def _refuse_quantised(folder: Path, config: dict[str, Any], where: str) -> None:
    """Raise ModelError where a folder's configs say that its weights are quantised."""
    inner = config.get("text_config")
    for settings in (config, inner if isinstance(inner, dict) else {}):
        quantisation = settings.get("quantization_config") or settings.get("compression_config")
        if quantisation:
            method = "compressed-tensors" if "compression_config" in settings else ""
            if isinstance(quantisation, dict):
                method = str(quantisation.get("quant_method") or method or "unknown method")
            else:
                quantisation = {}
            # Configs of bitsandbytes once did without a name.
            if "load_in_4bit" in quantisation or "load_in_8bit" in quantisation:
                method = "bitsandbytes"
            _raise_quantised(where, method, "quantization_config in config.json")
    for name in _QUANTISED_FILES:
        if (folder / name).is_file():
            _raise_quantised(where, "", name)


def _refuse_quantised_weights(folder: Path, where: str) -> None:
    """Raise ModelError for weights that are quantised though no config says so."""
    for name, tensor in weight_headers(folder):
        if _QUANTISED_NAME.search(name) or _QUANTISED_DTYPE.match(tensor["dtype"]):
            _raise_quantised(where, "", f"{name} in {tensor['dtype']}")


def _raise_quantised(where: str, method: str, sign: str) -> None:
    dequantize = _DEQUANTIZE.get(method.lower(), "dequantize it with the library that made it")
    shown = f"{method}: " if method else ""
    raise ModelError(
        f"{where}: its weights are quantised ({one_line(shown + sign)}), and here models are read, trained "
        "and saved whole. "
        f"Name the model that it was made from, or dequantize it: {dequantize}. If the weights are whole, "
        "take that out of a copy of the folder."
    )


def _check_weight_files(folder: Path, where: str) -> None:
    """Raise ModelError for weight files that are damaged, missing, or not those that transformers looks
    for.
    """
    named = set(weight_map(folder).values())
    wanted = named | {file.name for file in weight_files(folder)}
    with_weights = set()
    for file in sorted(folder.glob("*.safetensors")):
        # Every header is read, so that a damaged file is found now and not hours later.
        if file.name in wanted and file_header(file):
            with_weights.add(file.name)
    index = folder / INDEX
    # The index names the file of every tensor: one that was never downloaded is missed only here.
    missing = sorted(named - with_weights)
    if missing:
        names = one_line(", ".join(missing))
        raise ModelError(f"{where}: {names} of {index.name} is not there. Download it anew.")
    if index.is_file() or (folder / SINGLE).is_file():
        return
    # Of other names transformers finds none, and which file is which only the index could say.
    files = [one_line(file.name) for file in weight_files(folder)]
    if not files:
        names = one_line(", ".join(sorted(file.name for file in folder.glob("*.safetensors"))))
        raise ModelError(
            f"{where}: holds its weights in their maker's own format alone ({names}). Take the version for "
            f"transformers, with {SINGLE}."
        )
    if len(files) > 1:
        raise ModelError(
            f"{where}: {len(files)} weight files ({files[0]}, …) and no {INDEX}, which says what "
            "is in which. Download "
            "it too, or save the model anew with model.save_pretrained(folder)."
        )
    raise ModelError(
        f"{where}: its weights are called {files[0]}, and transformers looks for {SINGLE}. Rename "
        "the file, if "
        "it is the whole model."
    )


def check_tokenizer_files(folder: Path) -> None:
    """Raise ModelError for a folder in which nothing is a tokenizer's vocabulary; asked where loading one has
    failed.

    A few tokenizers have none, so its absence alone proves nothing.
    """
    for pattern in _VOCABULARIES:
        if any(folder.glob(pattern)):
            return
    raise ModelError(
        f"{folder}: no usable tokenizer (there is no tokenizer.json, nor another vocabulary). Save "
        "that of the model "
        "it was made from beside the weights: AutoTokenizer.from_pretrained(BASE).save_pretrained(folder) "
        "(tokenizer.save_pretrained)."
    )
