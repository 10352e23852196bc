"""Settings that differ: those alone, whatever version wrote them."""

from __future__ import annotations

from pathlib import Path

from rlhf.config.fields import plain
from rlhf.config.schema import Config
from rlhf.view.run_folder import RunFolder
from rlhf.view.settings_table import settings_section
from rlhf.view.several_runs import NamedRun


def section_of(*configs):
    runs = []
    for letter, config in zip("ABC", configs, strict=False):
        runs.append(NamedRun(letter, letter, RunFolder(Path("/"), config, {})))
    return settings_section(runs)


def config(**changes):
    values = plain(Config())
    for key, value in changes.items():
        section, name = key.split("__")
        values[section][name] = value
    return values


def test_only_what_differs():
    section = section_of(config(dpo__beta=0.1), config(dpo__beta=0.05, pair__length_penalty=0.001))
    assert section.heads == ["setting", "A", "B"]
    assert section.rows == [["pair.length_penalty", "0.0", "0.001"], ["dpo.beta", "0.1", "0.05"]]
    assert section_of(config(), config()).notes == ["None: the runs have the same settings."]


def test_where_a_run_lies_is_no_difference():
    here, there = config(), config()
    here |= {"run_dir": "runs/a", "reuse": ["runs/b"]}
    assert not section_of(here, there | {"run_dir": "runs/b"}).rows


def test_a_setting_that_an_older_run_has_not():
    old = config()
    del old["dpo"]["beta"]
    assert not section_of(old, config()).rows, "it did what is the default now"
    assert section_of(old, config(dpo__beta=0.5)).rows == [["dpo.beta", "default (0.1)", "0.5"]]
    other = config()
    other["dpo"]["gone"] = 1
    assert section_of(config(), other).rows == [["dpo.gone", "default", "1"]]


def test_mappings_are_told_by_what_is_in_them_and_an_empty_one_is_null():
    judges = {"second": "/models/other"}
    rows = section_of(config(evaluate__judges={}), config(evaluate__judges=judges)).rows
    assert rows == [["evaluate.judges.second", "default", "/models/other"]]
    assert not section_of(config(prompts__columns={}), config(prompts__columns=None)).rows


def test_a_run_without_settings():
    section = section_of({}, config(dpo__beta=0.1), config(dpo__beta=0.2))
    assert section.rows == [["dpo.beta", "?", "0.1", "0.2"]]
    assert section.notes == ["A: its settings are not known (no readable config.yaml)."]
    assert section_of({}, config()).notes == ["A: its settings are not known (no readable config.yaml)."]


def test_a_value_of_any_length():
    section = section_of(config(model__path="x" * 10**6), config(model__path="y"))
    assert section.rows == [["model.path", "x" * 200 + "… (1000000 characters)", "y"]]
