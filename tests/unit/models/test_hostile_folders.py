"""What a model folder of others says of itself stands in a refusal as one line that a terminal does not obey."""

import json

import pytest

from rlhf.errors import ModelError
from rlhf.models.kinds import check_folder

HOSTILE = "x\x1b]0;y\x07\u202e\n✓ forged"


def adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HOSTILE}))


def adapter_of_another_kind(folder):
    about = {"base_model_name_or_path": HOSTILE, "peft_type": HOSTILE}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def quantised(folder):
    config = {"quantization_config": {"quant_method": HOSTILE}}
    (folder / "config.json").write_text(json.dumps(config))


def no_config_but_gguf(folder):
    (folder / f"{HOSTILE}.gguf").write_text("")


def no_config_but_folders(folder):
    (folder / HOSTILE).mkdir()
    (folder / HOSTILE / "config.json").write_text("{}")


def gguf_beside_the_config(folder):
    (folder / "config.json").write_text("{}")
    (folder / f"{HOSTILE}.gguf").write_text("")


def file_of_the_index_missing(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    index = {"weight_map": {"a": HOSTILE}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_of_another_name(folder):
    (folder / "config.json").write_text("{}")
    (folder / f"{HOSTILE}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    "make",
    [
        adapter,
        adapter_of_another_kind,
        quantised,
        no_config_but_gguf,
        no_config_but_folders,
        gguf_beside_the_config,
        file_of_the_index_missing,
        weights_of_another_name,
    ],
)
def test_a_refusal_is_one_line(make, tmp_path):
    make(tmp_path)
    with pytest.raises(ModelError) as refusal:
        check_folder(tmp_path, "model.path")
    assert "forged" in str(refusal.value)
    assert str(refusal.value).isprintable(), repr(str(refusal.value))
