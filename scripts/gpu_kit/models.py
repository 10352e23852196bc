"""Models of random weights in the shapes of real ones, and what they are given to read."""

from __future__ import annotations

import json
import random
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_kit.figures import Kit, SkipStepError
from gpu_kit.own_process import in_a_process
from rlhf.data.json_text import json_text
from rlhf.launch.machine import visible_gpus

VOCABULARY = 128_256
"""Llama 3's."""
TOY_VOCABULARY = 640
_SEED = 0


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama that decide what it costs."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool

    @property
    def weights_of_layer(self) -> int:
        """Of the matrices of one layer: queries and output, keys and values, the three of the MLP."""
        head_size = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * head_size * self.key_value_heads
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights_of_head(self) -> int:
        """Of the head, which is as large as the embedding."""
        return self.hidden * self.vocabulary

    @property
    def num_parameters(self) -> int:
        """Of the whole model; norms are too few to count."""
        tables = 1 if self.tied else 2
        return self.layers * self.weights_of_layer + tables * self.weights_of_head

    def config(self) -> Any:
        """As transformers has it."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=8192,
            tie_word_embeddings=self.tied,
            dtype="bfloat16",
        )


LLAMA_1B = Shape(2048, 8192, 16, 32, 8, VOCABULARY, tied=True)
LLAMA_8B = Shape(4096, 14336, 32, 32, 8, VOCABULARY, tied=False)
SMALL = Shape(1024, 4096, 8, 16, 8, VOCABULARY, tied=True)
"""Where a model has to start often."""
TOY = Shape(64, 128, 2, 2, 1, TOY_VOCABULARY, tied=True)
TOY_OF_8B = Shape(64, 128, 4, 2, 1, TOY_VOCABULARY, tied=False)


def one_billion(kit: Kit) -> Shape:
    """Llama 3.2 1B, or the toy of it."""
    return TOY if kit.is_toy else LLAMA_1B


def small(kit: Kit) -> Shape:
    """A model that starts in a moment, or the toy of it."""
    return TOY if kit.is_toy else SMALL


def on_gpu() -> bool:
    """Whether there is a GPU to use, told without torch."""
    return bool(visible_gpus())


def device_name() -> str:
    """Where models are put."""
    return "cuda" if on_gpu() else "cpu"


def model_dtype() -> Any:
    """bf16 on a GPU; on a CPU fp32, in which a toy's figures are exact."""
    import torch

    return torch.bfloat16 if on_gpu() else torch.float32


def random_model(config: Any, dtype: Any, classifier: bool = False) -> Any:
    """A model of random weights made where it is used, the same at each call: nothing is written."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    torch.manual_seed(_SEED)
    with torch.device(device_name()):
        return auto.from_config(config, dtype=dtype)


def require_disk(folder: Path, num_bytes: float) -> None:
    """Refuse to begin what the disk cannot hold, before a byte is written."""
    free = shutil.disk_usage(folder).free
    if num_bytes > 0.9 * free:
        raise SkipStepError(f"{num_bytes / 1e9:.1f} GB would be written, and {free / 1e9:.1f} GB are free")


def save_model(folder: Path, shape: Shape, classifier: bool = False) -> Path:
    """A model with its tokenizer as a folder, in bf16 on a GPU; one that is there already is kept."""
    if (folder / "tokenizer_config.json").is_file():
        return folder
    config = shape.config()
    tokenizer = tokenizer_of(shape.vocabulary)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    if classifier:
        config.num_labels = 1
    dtype = model_dtype()
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_disk(folder.parent, shape.num_parameters * dtype.itemsize)
    random_model(config, dtype, classifier).save_pretrained(folder)
    # Last, as the sign that all is there.
    tokenizer.save_pretrained(folder)
    return folder


def make_model(kit: Kit, name: str, shape: Shape, classifier: bool = False) -> Path:
    """`save_model` below the kit's folder; on a GPU in a process of its own, which gives all memory back."""
    folder = kit.work / "models" / name
    if not on_gpu():
        return save_model(folder, shape, classifier)
    made: Path = in_a_process(save_model, folder, shape, classifier, seconds=kit.seconds_left)
    return made


def save_header(folder: Path, shape: Shape) -> Path:
    """A folder whose weight file has a header and no data: for who only looks at sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    shape.config().save_pretrained(folder)
    tokenizer_of(shape.vocabulary).save_pretrained(folder)
    itemsize = model_dtype().itemsize
    end = shape.num_parameters * itemsize
    dtype = "BF16" if itemsize == 2 else "F32"
    entry = {"dtype": dtype, "shape": [shape.num_parameters], "data_offsets": [0, end]}
    header = json_text({"weights": entry}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        # A hole: it takes no room.
        stream.truncate(8 + len(header) + end)
    return folder


def tokenizer_of(vocabulary: int) -> Any:
    """The quickstart's tokenizer with as many tokens as a model's vocabulary, so that every id has a text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from rlhf.world.tokenizer import build_tokenizer

    base = build_tokenizer()
    core = json.loads(base.backend_tokenizer.to_str())
    ids = core["model"]["vocab"]
    # Before the special tokens, which stay the last, as in Llama 3. No merge makes them.
    more = vocabulary - len(base)
    for number in range(len(ids), len(ids) + more):
        ids[f"zq{number:x}"] = number
    for token in core["added_tokens"]:
        token["id"] += more
    for token in core["post_processor"]["special_tokens"].values():
        token["ids"] = [number + more for number in token["ids"]]
    options: dict[str, Any] = {
        "bos_token": base.bos_token,
        "eos_token": base.eos_token,
        "pad_token": base.pad_token,
        "chat_template": base.chat_template,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json_text(core)),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )


def random_pairs(kit: Kit, vocabulary: int, number: int) -> list[list[list[int]]]:
    """Prompt, chosen and rejected as token ids: 1,024 to 2,048 tokens of prompt and response."""
    rng = random.Random(_SEED)
    prompt = (8, 16) if kit.is_toy else (128, 512)
    whole = (24, 48) if kit.is_toy else (1024, 2048)
    pairs = []
    for _ in range(number):
        lengths = [rng.randint(*prompt)]
        for _ in range(2):
            lengths.append(rng.randint(*whole) - lengths[0])
        pairs.append([[rng.randrange(10, vocabulary) for _ in range(length)] for length in lengths])
    return pairs


def write_prompts(path: Path, number: int) -> Path:
    """Prompts as JSON lines."""
    lines = [json_text({"prompt": f"Say {index} in words"}) + "\n" for index in range(number)]
    path.write_text("".join(lines), encoding="utf-8")
    return path
