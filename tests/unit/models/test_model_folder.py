"""Facts of a model folder that are read without any library of models."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.errors import ModelError
from rlhf.models import folder, template_files, weight_files

CLASSIFIER = "AutoModelForSequenceClassification"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_python_code_of_a_model_is_told_by_class(tmp_path):
    assert folder.own_code(tmp_path) == {}
    write(tmp_path / "config.json", {"auto_map": {CLASSIFIER: "modeling.Judge"}})
    write(tmp_path / "tokenizer_config.json", {"auto_map": ["slow.Tokenizer", None]})
    assert folder.own_code(tmp_path) == {CLASSIFIER: "modeling.Judge", "AutoTokenizer": "slow.Tokenizer"}
    write(tmp_path / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["slow.T", "fast.T"]}})
    assert folder.own_code(tmp_path)["AutoTokenizer"] == "slow.T, fast.T"


@pytest.mark.parametrize(
    ("auto_map", "trusted", "is_refused"),
    [
        ({CLASSIFIER: "modeling.Judge"}, False, True),
        ({CLASSIFIER: "modeling.Judge"}, True, False),
        ({"AutoModel": "modeling.Body"}, False, False),
        ({}, False, False),
        ({}, True, False),
    ],
)
def test_only_a_judge_of_own_code_needs_trust(tmp_path, auto_map, trusted, is_refused):
    write(tmp_path / "config.json", {"auto_map": auto_map})
    if is_refused:
        with pytest.raises(ModelError, match=r"modeling\.Judge"):
            folder.require_trust(tmp_path, trusted)
    else:
        folder.require_trust(tmp_path, trusted)


@pytest.mark.parametrize(
    ("config", "inner"),
    [
        ({"a": 1}, {"a": 1}),
        ({"a": 1, "text_config": {"b": 2}}, {"b": 2}),
        ({"a": 1, "llm_config": {"b": 2}}, {"b": 2}),
        ({"a": 1, "text_config": {}}, {"a": 1, "text_config": {}}),
        ({"a": 1, "text_config": "b"}, {"a": 1, "text_config": "b"}),
    ],
)
def test_the_language_model_has_a_config_of_its_own(tmp_path, config, inner):
    write(tmp_path / "config.json", config)
    assert folder.text_config(tmp_path) == inner
    assert folder.language_configs(tmp_path)[-1] == config


@pytest.mark.parametrize("text", ["", "[1]", "{", "3"])
def test_a_file_without_an_object_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        folder.read_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("settings", "ids"), [({}, []), ({"eos_token_id": 0}, [0]), ({"eos_token_id": [3, 4]}, [3, 4])]
)
def test_stop_tokens_are_a_list(tmp_path, settings, ids):
    assert folder.saved_stop_ids(tmp_path) == []
    write(tmp_path / "generation_config.json", settings)
    assert folder.saved_stop_ids(tmp_path) == ids


@pytest.mark.parametrize("stops", ["</s>", [1, True], [1.0], [None]])
def test_stop_tokens_of_another_type_are_refused(tmp_path, stops):
    write(tmp_path / "generation_config.json", {"eos_token_id": stops})
    with pytest.raises(ModelError, match="is no token id"):
        folder.saved_stop_ids(tmp_path)


class EngineDeadError(Exception):
    """As vLLM's is called."""


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (EngineDeadError("x"), RuntimeError),
        (ValueError("cancelled"), RuntimeError),
        (KeyError("x"), KeyError),
    ],
)
def test_a_dead_engine_is_called_that(error, becomes):
    with pytest.raises(becomes) as raised, folder.engine_alive():
        raise error
    assert ("vLLM's engine died" in str(raised.value)) == (becomes is RuntimeError)


def test_other_templates_are_copied_file_by_file(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    template_files.copy_other_templates(source, target)
    assert not list(target.iterdir())
    for name in ("rag", "tool_use"):
        path = source / "additional_chat_templates" / f"{name}.jinja"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    template_files.copy_other_templates(source, target)
    copied = sorted((target / "additional_chat_templates").iterdir())
    assert [path.read_text() for path in copied] == ["rag", "tool_use"]


def test_listed_templates_become_files_but_the_main_one_and_what_leads_out(tmp_path):
    listed = [{"name": name, "template": name} for name in ("default", "../out", ".hidden", "a-1.b", "rag")]
    write(tmp_path / "source" / "tokenizer_config.json", {"chat_template": listed})
    folder_of_files = tmp_path / "target" / "additional_chat_templates"
    folder_of_files.mkdir(parents=True)
    (folder_of_files / "rag.jinja").write_text("kept")
    template_files.keep_listed_templates(tmp_path / "source", tmp_path / "target")
    written = {path.name: path.read_text() for path in folder_of_files.iterdir()}
    assert written == {"a-1.b.jinja": "a-1.b", "rag.jinja": "kept"}
    assert not list(tmp_path.glob("*.jinja")) and not list((tmp_path / "target").glob("*.jinja"))


def test_listed_templates_need_no_folder_that_is_there_already(tmp_path):
    write(tmp_path / "source" / "tokenizer_config.json", {"chat_template": [{"name": "a", "template": "x"}]})
    (tmp_path / "target").mkdir()
    for _ in range(2):
        template_files.keep_listed_templates(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "additional_chat_templates" / "a.jinja").read_text() == "x"


@pytest.mark.parametrize("config", [None, {}, {"chat_template": "one"}])
def test_one_template_is_no_list(tmp_path, config):
    if config is not None:
        write(tmp_path / "tokenizer_config.json", config)
    template_files.keep_listed_templates(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def weights(path, **shapes):
    """A file of tensors by name: dtype of numpy and shape."""
    save_file({name: np.zeros(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}, path)


def test_the_single_file_goes_before_the_index_and_the_index_before_the_rest(tmp_path):
    assert not weight_files.has_weights(tmp_path)
    for name in ("b", "a", "consolidated", "adapter_model"):
        weights(tmp_path / f"{name}.safetensors", w=(np.float32, (2,)))
    assert weight_files.has_weights(tmp_path)

    def names(files):
        return [file.name.removesuffix(".safetensors") for file in files]

    assert names(weight_files.weight_files(tmp_path)) == ["a", "b"]
    assert names(weight_files.second_copies(tmp_path)) == ["adapter_model", "consolidated"]
    write(tmp_path / weight_files.INDEX, {"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}})
    assert names(weight_files.weight_files(tmp_path)) == ["b"]
    assert weight_files.INDEX not in names(weight_files.second_copies(tmp_path))
    weights(tmp_path / weight_files.SINGLE, w=(np.float32, (2,)))
    assert names(weight_files.weight_files(tmp_path)) == ["model"]
    assert names(weight_files.second_copies(tmp_path))[-2:] == ["consolidated", weight_files.INDEX]


def test_names_come_from_the_index_where_the_weights_are_not_here(tmp_path):
    assert weight_files.weight_names(tmp_path) == set()
    write(tmp_path / weight_files.INDEX, {"weight_map": {"x": "b.safetensors"}})
    assert weight_files.weight_names(tmp_path) == {"x"}
    weights(tmp_path / "b.safetensors", y=(np.float32, (1,)))
    assert weight_files.weight_names(tmp_path) == {"y"}


def test_an_index_without_a_map_is_refused(tmp_path):
    write(tmp_path / weight_files.INDEX, {"weight_map": ["a"]})
    with pytest.raises(ModelError, match="has no weight_map"):
        weight_files.weight_map(tmp_path)


def test_auto_is_the_dtype_of_most_bytes(tmp_path):
    weights(
        tmp_path / "a.safetensors",
        small=(np.float32, (3,)),
        also_small=(np.float32, (2,)),
        large=(np.float16, (11,)),
        whole=(np.int64, (99,)),
    )
    assert weight_files.saved_dtype(tmp_path) == "float16"
    assert weight_files.saved_dtype(tmp_path, "bfloat16") == "bfloat16"
    weights(tmp_path / "b.safetensors", more=(np.float32, (1,)))
    assert weight_files.saved_dtype(tmp_path) == "float32"
    assert weight_files.num_parameters(tmp_path) == 3 + 2 + 11 + 99 + 1


def test_weights_in_no_floating_type_have_no_dtype(tmp_path):
    weights(tmp_path / "a.safetensors", whole=(np.int64, (2, 3)))
    with pytest.raises(ModelError, match="no floating-point weights"):
        weight_files.saved_dtype(tmp_path)
    assert weight_files.num_parameters(tmp_path) == 6


def safetensors(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ONE = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def test_a_header_is_read_without_its_metadata(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors(ONE | {"__metadata__": {"format": "pt"}}, bytes(8)))
    assert weight_files.file_header(file) == ONE
    file.write_bytes(safetensors({}, b""))
    assert weight_files.file_header(file) == {}


@pytest.mark.parametrize(
    "content", [safetensors(ONE, bytes(7)), safetensors(ONE, bytes(9)), safetensors({}, b"x")]
)
def test_a_file_of_another_size_is_cut_short(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="it is cut short"):
        weight_files.file_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 8, b"\x08" + bytes(7) + b'{"w": 3}', safetensors({"w": {}}, b"")],
)
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        weight_files.file_header(tmp_path / "a.safetensors")


class LlamaForCausalLM:
    """A model that has been loaded."""


class AutoModelForCausalLM:
    """Loads a model of which these weights are not in the files."""

    missing: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, path, **settings):
        cls.settings = settings
        return LlamaForCausalLM(), {"missing_keys": cls.missing}


@pytest.fixture
def auto(monkeypatch):
    """The auto class, of a folder whose configs ask for nothing."""
    monkeypatch.setattr(folder, "attention", lambda path, trusted: "eager" if trusted else None)
    monkeypatch.setattr(folder, "_generation_config", lambda path: None)
    monkeypatch.setattr(AutoModelForCausalLM, "missing", ())
    return AutoModelForCausalLM


@pytest.mark.parametrize(
    ("missing", "new_head", "shown"),
    [
        ([], False, None),
        (["score.weight"], True, None),
        (["score.weight"], False, "1 weights of LlamaForCausalLM are not in its files: score.weight. Down"),
        (
            ["score.weight", "a.score.weight"],
            True,
            "1 weights of LlamaForCausalLM are not in its files: a.score",
        ),
        (list("dcba"), True, "4 weights of LlamaForCausalLM are not in its files: a, b, c, d. Down"),
        (list("edcba"), False, "5 weights of LlamaForCausalLM are not in its files: a, b, c, d, …. Down"),
    ],
)
def test_weights_that_are_not_in_the_files_are_named(tmp_path, auto, missing, new_head, shown):
    auto.missing = missing
    if shown is None:
        assert isinstance(folder.load_weights(auto, tmp_path, "float32", new_head=new_head), LlamaForCausalLM)
        return
    with pytest.raises(ModelError) as error:
        folder.load_weights(auto, tmp_path, "float32", new_head=new_head)
    assert shown in str(error.value)


def test_a_model_is_loaded_from_safetensors_with_what_was_asked_for(tmp_path, auto):
    folder.load_weights(auto, tmp_path, "bfloat16", trust_remote_code=True, num_labels=1)
    assert auto.settings == {
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "trust_remote_code": True,
        "generation_config": None,
        "num_labels": 1,
        "use_safetensors": True,
        "output_loading_info": True,
    }
