"""What is said of models, files, prompts and servers before a run: each number at its boundary."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.preflight import inputs
from rlhf.preflight.findings import Level, collect
from tests.unit.refusals import jsonl, model

OK, WARNING, ERROR = Level.ok, Level.warning, Level.error


def changed(settings):
    """The default config with other values at dotted keys."""
    cfg = Config(num_iterations=1)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def write(folder, name, rows):
    path = folder / name
    path.write_bytes(jsonl(rows))
    return path


def questions(*numbers):
    return [{"prompt": f"question {number}"} for number in numbers]


def looked_at(cfg, files):
    """Findings about prompts as level and text, and the sample of prompts."""
    sample = []
    found = collect("prompts", inputs.prompts(cfg, files, sample))
    return [(each.level, each.text) for each in found], sample


@pytest.mark.parametrize(
    ("status", "level"), [(200, OK), (404, OK), (499, OK), (500, WARNING), (503, WARNING)]
)
def test_a_server_that_answers_is_fine_unless_it_says_it_is_not(monkeypatch, status, level):
    asked = []

    def get(url, timeout):
        asked.append((url, timeout))
        return SimpleNamespace(status_code=status)

    monkeypatch.setattr(httpx, "get", get)
    found = inputs._server("http://h:1/")
    assert (found.level, found.text) == (level, f"reward_model.url=http://h:1/: HTTP {status}")
    assert asked[0][0] == "http://h:1/health" and asked[0][1] > 0


def test_models_are_told_by_size_and_dtype(tmp_path):
    cfg = changed({"model.path": str(model(tmp_path / "policy")), "reward_model.path": "@world/judge"})
    folders, sizes = {}, {}
    policy, judge = [each.text for each in inputs.models(cfg, folders, sizes)]
    assert policy.startswith(f"model.path={tmp_path / 'policy'}: 8e-06 M parameters, float32")
    assert judge == "reward_model.path=@world/judge: – made by this run"
    assert folders == {"model.path": tmp_path / "policy"} and sizes == {"model.path": 8.0}


@pytest.mark.parametrize(("dropped", "level"), [(0, OK), (1, OK), (2, WARNING), (3, WARNING)])
def test_many_dropped_rows_are_odd(tmp_path, dropped, level):
    rows = questions(*range(10 - dropped)) + [{"prompt": ""}] * dropped
    cfg = changed({"prompts.num_per_iteration": 1, "prompts.num_held_out": 1})
    found, _ = looked_at(cfg, {"prompts.path": write(tmp_path, "p.jsonl", rows)})
    text = f"prompts.path: {10 - dropped} prompts in 10 rows"
    assert [each for each, said in found if said.startswith(text)] == [level]


@pytest.mark.parametrize(
    ("settings", "num_prompts", "error"),
    [
        ({"prompts.num_held_out": 2, "prompts.num_per_iteration": 3}, 5, None),
        ({"prompts.num_held_out": 2, "prompts.num_per_iteration": 3}, 4, "needs 3 training prompts"),
        ({"prompts.num_held_out": 2, "prompts.num_per_iteration": 3}, 2, "no prompt is left to train on"),
        ({"prompts.num_held_out": 2, "prompts.num_per_iteration": 1}, 3, None),
    ],
)
def test_prompts_have_to_be_enough(tmp_path, settings, num_prompts, error):
    file = write(tmp_path, "p.jsonl", questions(*range(num_prompts)))
    found, _ = looked_at(changed(settings), {"prompts.path": file})
    errors = [text for level, text in found if level is ERROR]
    assert len(errors) == (error is not None) and all(error in text for text in errors)


def test_only_files_of_prompts_are_read_and_the_held_out_ones_are_cut_once(tmp_path):
    settings = {"num_iterations": 2, "prompts.path": "set{iteration}", "prompts.num_held_out": 2}
    files = {
        "sft.data": tmp_path / "no_prompts",
        "prompts.path.1": write(tmp_path, "1.jsonl", questions(1, 2)),
        "pair.data": tmp_path / "no_prompts",
        "prompts.path.2": write(tmp_path, "2.jsonl", questions(3, 1)),
    }
    found, sample = looked_at(changed(settings), files)
    texts = [text for _, text in found]
    assert "prompts.path.1: no prompt is left to train on." in texts
    assert "prompts.path.2: no prompt is left to train on." not in texts
    assert "prompts.path.2: 1 of 2 prompts are held out or in an earlier iteration's set" in texts
    assert len(sample) == 4


def test_held_out_prompts_of_a_file_of_their_own_are_not_cut_off(tmp_path):
    settings = {"prompts.num_held_out": 9, "prompts.held_out_path": "x", "prompts.num_per_iteration": 2}
    files = {
        "prompts.held_out_path": write(tmp_path, "h.jsonl", questions(7)),
        "prompts.path": write(tmp_path, "p.jsonl", questions(1, 2)),
    }
    found, sample = looked_at(changed(settings), files)
    assert {level for level, _ in found} == {OK} and len(sample) == 2


@pytest.mark.parametrize(
    ("num_prompts", "num_shown"), [(1, 1), (99, 99), (100, 100), (199, 199), (200, 100), (300, 100)]
)
def test_about_a_hundred_prompts_are_rendered(tmp_path, num_prompts, num_shown):
    cfg = changed({"prompts.num_held_out": 0})
    _, sample = looked_at(cfg, {"prompts.path": write(tmp_path, "p.jsonl", questions(*range(num_prompts)))})
    assert len(sample) == num_shown and sample[0] == [{"role": "user", "content": "question 0"}]


@pytest.mark.parametrize(("num_rows", "is_part"), [(3, False), (4, True), (5, True)])
def test_of_a_large_file_the_beginning_is_read(tmp_path, monkeypatch, num_rows, is_part):
    monkeypatch.setattr(inputs, "MAX_ROWS", 3)
    reading = inputs._first_prompts(write(tmp_path, "p.jsonl", questions(*range(num_rows))), None)
    assert (len(reading.prompts), reading.is_part) == (min(num_rows, 4), is_part)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prompts.path": "a"}, {"prompts.path": "a"}),
        ({"prompts.path": ["a", "b"]}, {"prompts.path": "a", "prompts.path.file2": "b"}),
        (
            {"prompts.path": "a{iteration}", "num_iterations": 2, "evaluate.gold": "m:f"},
            {"evaluate.gold": "m:f", "prompts.path.1": "a1", "prompts.path.2": "a2"},
        ),
        (
            {"prompts.path": ["a{iteration}", "b"], "sft.data": "c"},
            {"sft.data": "c", "prompts.path.1": "a1", "prompts.path.1.file2": "b"},
        ),
    ],
)
def test_what_a_config_names(settings, named):
    assert inputs._named_data(changed(settings)) == named
