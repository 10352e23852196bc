"""What is no whole model in safetensors says what it is and the way out; second copies of weights do not
count."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.errors import ModelError
from rlhf.models.context import context_length
from rlhf.models.folder import saved_stop_ids
from rlhf.models.kinds import check_folder, check_tokenizer_files
from rlhf.models.weight_files import num_parameters, saved_dtype, second_copies, weight_names
from tests.unit.refusals import model


def written(folder, **files):
    """A folder with these files; a `__` in a name is a point, and an object is JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def without_weights(folder, *files):
    model(folder)
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(b"x")
    return folder


def adapter(folder, with_config=False, **settings):
    if with_config:
        model(folder)
    save_adapter = {"peft_type": "LORA", "base_model_name_or_path": "my/base", "task_type": "CAUSAL_LM"}
    return written(folder, adapter_config__json=save_adapter | settings)


def quantised(folder, **settings):
    return model(folder, quantization_config=settings)


def shards(folder, *names):
    model(folder)
    (folder / "model.safetensors").unlink()
    for name in names:
        save_file({name: np.zeros(8, dtype=np.float32)}, folder / name)
    return folder


def gguf_file(path):
    path = path.with_suffix(".gguf")
    path.write_bytes(b"GGUF")
    return path


def file_of_weights(path):
    path = path.with_suffix(".safetensors")
    save_file({"w": np.zeros(8, dtype=np.float32)}, path)
    return path


KINDS = {
    "adapter": (adapter, ["adapter (LORA", "my/base", "merge_and_unload", "AutoModelForCausalLM"]),
    "adapter of a judge": (
        lambda f: adapter(f, task_type="SEQ_CLS"),
        ["my/base", "AutoModelForSequenceClassification"],
    ),
    "adapter and config": (lambda f: adapter(f, with_config=True), ["adapter (LORA", "merge_and_unload"]),
    "adapter of prompts": (
        lambda f: adapter(f, peft_type="PROMPT_TUNING"),
        ["PROMPT_TUNING", "cannot be merged"],
    ),
    "adapter of nobody": (
        lambda f: adapter(f, base_model_name_or_path=None),
        ["its base model", "merge_and_unload"],
    ),
    "adapter's weights": (
        lambda f: written(f, adapter_model__bin=""),
        ["an adapter without its adapter_config.json"],
    ),
    "gguf folder": (lambda f: written(f, a__gguf=""), ["GGUF", "llama.cpp", "gguf_file="]),
    "gguf with config": (lambda f: without_weights(f, "a.gguf"), ["no *.safetensors", "GGUF"]),
    "gguf file": (gguf_file, ["a file of", "GGUF"]),
    "weights file": (file_of_weights, ["a file of weights", "Name the folder"]),
    "empty": (written, ["an empty folder", "hf download"]),
    "bitsandbytes": (
        lambda f: quantised(f, load_in_4bit=True),
        ["quantised (bitsandbytes", "model.dequantize()"],
    ),
    "gptq": (
        lambda f: quantised(f, quant_method="gptq", bits=4),
        ["quantised (gptq", "made from", "dequantize"],
    ),
    "awq": (lambda f: quantised(f, quant_method="awq"), ["quantised (awq"]),
    "fp8": (lambda f: quantised(f, quant_method="fp8"), ["quantised (fp8", "FineGrainedFP8Config"]),
    "compressed": (
        lambda f: quantised(f, quant_method="compressed-tensors"),
        ["compressed-tensors", "run_compressed=False"],
    ),
    "quantised within": (
        lambda f: model(f, text_config={"quantization_config": {"quant_method": "mxfp4"}}),
        ["quantised (mxfp4"],
    ),
    "old gptq": (lambda f: written(model(f), quantize_config__json={"bits": 4}), ["quantize_config.json"]),
    "shards without index": (
        lambda f: shards(f, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ["2 weight files", "no model.safetensors.index.json"],
    ),
    "weights of another name": (
        lambda f: shards(f, "weights.safetensors"),
        ["called weights.safetensors", "Rename"],
    ),
    "maker's format": (
        lambda f: shards(f, "consolidated.safetensors"),
        ["maker's own format", "consolidated"],
    ),
    "pickles": (
        lambda f: without_weights(f, "pytorch_model.bin"),
        ["pytorch_model.bin is pickled", "save_pretrained"],
    ),
    "pth": (lambda f: without_weights(f, "a.pth"), ["a.pth is pickled"]),
    "pt": (lambda f: without_weights(f, "a.pt"), ["a.pt is pickled"]),
    "flax": (lambda f: without_weights(f, "flax_model.msgpack"), ["Flax", "from_flax=True"]),
    "tensorflow": (lambda f: without_weights(f, "tf_model.h5"), ["TensorFlow", "from_tf=True"]),
    "optimizer only": (lambda f: without_weights(f, "training_args.bin"), ["another format", "safetensors"]),
    "in a folder below": (lambda f: model(f / "checkpoint-9").parent, ["in its folders checkpoint-9"]),
    "llama's own": (lambda f: written(f, params__json={}), ["params.json", "convert"]),
    "deepspeed": (lambda f: written(f, zero_to_fp32__py=""), ["DeepSpeed", "zero_to_fp32.py"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told(tmp_path, kind):
    make, said = KINDS[kind]
    path = make(tmp_path / "there")
    with pytest.raises(ModelError) as refusal:
        check_folder(path, "model.path")
    message = str(refusal.value)
    assert not [phrase for phrase in [f"model.path={path}", *said] if phrase not in message], message


@pytest.mark.parametrize("kind", ["adapter", "fp8", "gptq", "empty"])
def test_small_files_alone_tell_it_too(tmp_path, kind):
    """Of a model on the Hub the checks before a run fetch no weights."""
    KINDS[kind][0](tmp_path / "there")
    for file in (tmp_path / "there").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError):
        check_folder(tmp_path / "there", "model.path", weights=False)


def test_a_repository_of_which_nothing_is_read_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"in that repository.*GGUF"):
        check_folder(tmp_path / "snapshot", "model.path", weights=False)


def test_quantised_weights_are_found_without_a_config(tmp_path):
    folder = model(tmp_path / "there")
    save_file({"layer.qweight": np.zeros(8, dtype=np.int32)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"layer\.qweight in I32"):
        check_folder(folder, "model.path")


def test_a_second_copy_of_the_weights_does_not_count(tmp_path):
    folder = model(tmp_path / "there")
    size = num_parameters(folder)
    save_file({"v": np.zeros(10**4, dtype=np.float16)}, folder / "consolidated.safetensors")
    (folder / "original").mkdir()
    save_file({"v": np.zeros(10**4, dtype=np.float16)}, folder / "original" / "model.safetensors")
    check_folder(folder, "model.path")
    assert num_parameters(folder) == size == 8 and saved_dtype(folder) == "float32"
    assert weight_names(folder) == {"w"}
    assert [file.name for file in second_copies(folder)] == ["consolidated.safetensors"]
    # Nor where the weights are in several files.
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_folder(folder, "model.path")
    assert num_parameters(folder) == size and saved_dtype(folder) == "float32"


def test_a_torn_second_copy_is_no_reason_to_refuse(tmp_path):
    folder = model(tmp_path / "there")
    (folder / "consolidated.safetensors").write_bytes(b"version https://git-lfs")
    check_folder(folder, "model.path")


def test_a_tokenizer_that_is_missing_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"no usable tokenizer .*no tokenizer\.json.*AutoTokenizer"):
        check_tokenizer_files(model(tmp_path / "there"))
    check_tokenizer_files(written(tmp_path / "there", tokenizer__json={}))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"n_positions": 64}, 64),
        ({"n_ctx": 64}, 64),
        ({"max_seq_len": 64}, 64),
        ({"max_sequence_length": 64}, 64),
        ({"seq_length": 64}, 64),
        ({"max_position_embeddings": 128, "model_max_length": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"text_config": {"vocab_size": 9}, "max_position_embeddings": 64}, 64),
        ({"llm_config": {"seq_length": 64}}, 64),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": True}, None),
        ({}, None),
    ],
)
def test_the_context_has_many_names(tmp_path, config, length):
    assert context_length(written(tmp_path, config__json=config)) == length


def test_stop_tokens_are_read_from_any_generation_config(tmp_path):
    assert saved_stop_ids(tmp_path) == []
    for eos, ids in ((401, [401]), ([401, 404], [401, 404]), (None, [])):
        settings = {"eos_token_id": eos, "temperature": 0.9, "max_new_tokens": -1, "num_return_sequences": 3}
        assert saved_stop_ids(written(tmp_path, generation_config__json=settings)) == ids
    for bad in ("401", [4.5], True):
        with pytest.raises(ModelError, match=r"eos_token_id=.*generate\.stop_token_ids"):
            saved_stop_ids(written(tmp_path, generation_config__json={"eos_token_id": bad}))
    with pytest.raises(ModelError, match="cannot be read"):
        saved_stop_ids(written(tmp_path, generation_config__json="{"))
