"""Lists as people type them become one override, whatever shell they came through."""

from __future__ import annotations

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from rlhf.command.lists import with_lists
from rlhf.config.chat_tool import ChatTool
from rlhf.config.schema import Config
from rlhf.config.tools import AnswerTool
from rlhf.config.view_tools import CompareTool, ReportTool, StatusTool, WhatIfTool


def typed(*words, schema=CompareTool):
    """What the words say, as Hydra reads it."""
    found = OverridesParser.create().parse_overrides(with_lists(words, schema))
    return {each.key_or_group: each.value() for each in found}


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["runs=[a,b]"], ["a", "b"]),
        (["runs=a,b"], ["a", "b"]),
        (["runs=a", "runs=b"], ["a", "b"]),
        (["runs=[a,b]", "runs=c"], ["a", "b", "c"]),
        (["runs=a"], ["a"]),
        (["runs=runs/sweep/*"], ["runs/sweep/*"]),
        (["runs=['a b',\"c,d\"]"], ["a b", "c,d"]),
        (["runs="], [""]),
    ],
)
def test_every_form_of_a_list(words, runs):
    assert typed(*words) == {"runs": runs}


@pytest.mark.parametrize(
    "name", ["beta=0.1,seed=1", "π", "with space", "a[1]", "it's", '"quoted"', "${x}", "1e5"]
)
def test_names_that_hydra_has_no_grammar_for(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "other").mkdir()
    written = name.replace("${", "\\${")  # as OmegaConf reads it
    assert typed(f"runs={name}") == {"runs": [written]}
    assert typed(name, "other", "sort=gold") == {"sort": "gold", "runs": [written, "other"]}
    assert typed(f"runs=[other,{name}]")["runs"] == ["other", written]


def test_of_a_sweep_every_folder_is_found_in_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("beta=0.1", "beta=0.1,seed=1"):
        (tmp_path / name).mkdir()
    assert typed("runs=[beta=0.1,beta=0.1,seed=1]")["runs"] == ["beta=0.1", "beta=0.1,seed=1"]
    assert typed("runs=[beta=0.1,beta=0.7]")["runs"] == ["beta=0.1", "beta=0.7"]


def test_flags_and_settings_are_left_to_hydra_and_what_is_neither_is_a_folder():
    words = ["nothing", "--help", "sort=gold", "beta=0.7"]
    assert with_lists(words, CompareTool) == ["--help", "sort=gold", "beta=0.7", "runs=[nothing]"]


def test_values_of_settings_within_sections():
    values = typed("pair.strategy=a,b", "pair.num_candidates=4,null", "run_dir=x", schema=WhatIfTool)
    assert values == {"run_dir": "x", "pair.strategy": ["a", "b"], "pair.num_candidates": [4, None]}
    assert typed("pair.num_candidates=range(2,5)", schema=WhatIfTool) == {"pair.num_candidates": [2, 3, 4]}
    with pytest.raises(OverrideParseException):
        with_lists(["pair.strategy=a=b"], WhatIfTool)


@pytest.mark.parametrize("schema", [StatusTool, ReportTool, WhatIfTool, ChatTool])
def test_a_tool_that_looks_at_one_run_takes_its_folder_as_it_stands(schema, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "sweep/dpo.beta=0.05,seed=1 it's"
    (tmp_path / name).mkdir(parents=True)
    for words in ([name], [f"run_dir={name}"]):
        (written,) = with_lists(words, schema)
        (found,) = OverridesParser.create().parse_overrides([written])
        assert (found.key_or_group, found.value()) == ("run_dir", name)
    # One that is not there is not taken for a setting either: the tool says that it does not exist.
    assert with_lists(["nowhere"], schema) == ["run_dir=nowhere"]
    assert with_lists(["run_dir=nowhere", "debug=true", "-m"], schema) == [
        "run_dir=nowhere",
        "debug=true",
        "-m",
    ]


@pytest.mark.parametrize("schema", [Config, AnswerTool])
def test_other_tools_take_no_words(schema, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    words = ["a", "generate.temperatures=1.0,0.7", "-m"]
    assert with_lists(words, schema) == words
    assert sys.argv[1:] != words
