"""Headers of weights and files of models whose values have other types than they must: refused by name."""

from __future__ import annotations

import json
import struct

import pytest

from rlhf.errors import ModelError
from rlhf.models.folder import own_code, read_object
from rlhf.models.heads import unnamed_labels
from rlhf.models.kinds import check_folder
from rlhf.models.weight_files import file_header, num_parameters, saved_dtype, weight_map
from tests.unit.refusals import model

TENSOR = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def with_header(folder, header):
    """A model folder whose weights have this header, as JSON or as text."""
    model(folder)
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    return folder


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("[]", r"its header is \[\], and must be an object"),
        ('[["w", 1]]', "its header is"),
        ("5", "its header is 5"),
        ("null", "its header is null"),
        ("[" * 100_000, "recursion"),
        ({"w": 5}, "w is 5 in its header, and must be an object"),
        ({"w": None}, "w is null"),
        ({"w": [TENSOR]}, "w is "),
        ({"w": TENSOR | {"dtype": 32}}, "w.dtype is 32 in its header, and must be a text"),
        ({"w": TENSOR | {"dtype": None}}, "w.dtype is null"),
        ({"w": TENSOR | {"shape": 8}}, "w.shape is 8 in its header, and must be whole numbers"),
        ({"w": TENSOR | {"shape": ["2", 4]}}, "w.shape is "),
        ({"w": TENSOR | {"shape": [2, -4]}}, "w.shape is "),
        ({"w": TENSOR | {"shape": [2.0, 4]}}, "w.shape is "),
        ({"w": TENSOR | {"shape": [True, 4]}}, "w.shape is "),
        ({"w": TENSOR | {"data_offsets": "0-32"}}, "w.data_offsets is "),
        ({"w": TENSOR | {"data_offsets": [32]}}, "w.data_offsets is "),
        ({"w": TENSOR | {"data_offsets": [32, 0]}}, "w.data_offsets is "),
        ({"w": TENSOR | {"data_offsets": [0, None]}}, "w.data_offsets is "),
        ({"w": {"dtype": "F32", "shape": [2, 4]}}, "w.data_offsets is null"),
    ],
)
def test_a_header_of_another_type_is_refused_by_name(tmp_path, header, said):
    folder = with_header(tmp_path / "m", header)
    readers = [
        lambda: file_header(folder / "model.safetensors"),
        lambda: saved_dtype(folder),
        lambda: num_parameters(folder),
        lambda: unnamed_labels(folder),
        lambda: check_folder(folder, "model.path"),
    ]
    for read in readers:
        with pytest.raises(
            ModelError, match=rf"model\.safetensors: no safetensors file[\s\S]*{said}[\s\S]*anew"
        ):
            read()


def test_a_right_header_is_read(tmp_path):
    folder = with_header(tmp_path / "m", {"__metadata__": {"format": "pt"}, "w": TENSOR})
    assert file_header(folder / "model.safetensors") == {"w": TENSOR}
    with_header(tmp_path / "scalar", {"score.weight": TENSOR | {"shape": []}})
    assert unnamed_labels(tmp_path / "scalar") is None


@pytest.mark.parametrize("content", ["[]", '[["a", 1]]', "null", "5", '"x"', "", "{", "[" * 100_000])
def test_a_file_that_holds_no_object_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read[\s\S]*Save the model anew"):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize("file", [5, None, ["a"], {"a": 1}, True])
def test_an_index_that_names_no_file_is_refused_by_name(tmp_path, file):
    index = {"weight_map": {"layer.weight": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json: weight_map has .* for layer\.weight"):
        weight_map(tmp_path)


@pytest.mark.parametrize("auto_map", [5, True, [1], {"AutoModel": 5}, {"AutoModel": ["a.B", 1]}])
def test_code_without_a_class_is_refused_by_name(tmp_path, auto_map):
    model(tmp_path / "m", auto_map=auto_map)
    with pytest.raises(ModelError, match=r"config\.json: auto_map of \w+ is .*names no class"):
        own_code(tmp_path / "m")


def test_code_has_its_classes_by_name(tmp_path):
    model(
        tmp_path / "m", auto_map={"AutoTokenizer": ["a.Slow", None], "AutoModel": "a.B", "AutoConfig": None}
    )
    assert own_code(tmp_path / "m") == {"AutoTokenizer": "a.Slow", "AutoModel": "a.B"}


@pytest.mark.parametrize("value", [5, True, "x", ["x"]])
def test_a_quantisation_of_another_type_is_refused(tmp_path, value):
    folder = model(tmp_path / "m", quantization_config=value)
    with pytest.raises(ModelError, match=r"quantised \(quantization_config in config\.json\)"):
        check_folder(folder, "model.path")
