"""From a file to a file: what is written, what is refused, and what stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.command.file_tool import account, check_output
from rlhf.errors import ConfigError, UserError
from rlhf.run.artifact import Artifact
from tests.unit.refusals import jsonl, run_here

ROWS = [
    {"prompt": f"question {number}", "responses": ["a", "b", "c"], "rewards": [1.0, 3.0, 2.0]}
    for number in range(5)
]
COMMAND = "pair input=in.jsonl output=out.jsonl"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(jsonl(ROWS))
    return tmp_path


def made(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "in.jsonl")


def test_the_output_appears_whole_and_nothing_else_stays(folder, monkeypatch, capsys):
    (folder / "in.jsonl").write_bytes(jsonl([*ROWS, ROWS[0], ROWS[1] | {"responses": []}]))
    assert run_here(monkeypatch, COMMAND) == 0
    assert made(folder) == ["out.jsonl"]
    pairs = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("b", "a")
    ] * 5
    said = capsys.readouterr().out
    assert f"{folder / 'out.jsonl'}: 2 to do" in said
    assert "7 rows = 5 kept + 2 dropped (duplicate 1, no_responses 1); 5 written to" in said


def test_a_refused_input_leaves_nothing(folder, monkeypatch, capsys):
    (folder / "in.jsonl").write_bytes(jsonl([{"prompt": "q"}]))
    assert run_here(monkeypatch, COMMAND) == 2
    assert made(folder) == []
    assert "No responses" in capsys.readouterr().err


def test_finished_work_is_kept_and_gone_on_with(folder, monkeypatch, capsys):
    work = folder / ".out.jsonl.work"
    monkeypatch.setattr("rlhf.command.file_tool.write_rows", lambda *arguments: 1 / 0)
    assert run_here(monkeypatch, COMMAND) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert (work / "read" / "artifact.json").is_file() and not (folder / "out.jsonl").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    # With other settings it is refused, and kept.
    capsys.readouterr()
    assert run_here(monkeypatch, f"{COMMAND} pair.min_margin=1") == 2
    said = capsys.readouterr().err
    assert "pair.min_margin" in said or "min_margin: 0.0 there, 1.0 now" in said
    assert "output=<another file>" in said and (work / "read" / "artifact.json").is_file()
    assert run_here(monkeypatch, COMMAND) == 0
    assert "2 stages are finished, 0 to do" in capsys.readouterr().out
    assert made(folder) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([{"rows": 3}], "3 rows = 3 kept + 0 dropped"),
        (
            [{"rows": 3, "dropped/empty": 1}, {"dropped/tie": 1}],
            "3 rows = 1 kept + 2 dropped (empty 1, tie 1)",
        ),
        ([{"rows": 3, "dropped/a": 1}, {"rows": 9, "dropped/a": 1}], "3 rows = 1 kept + 2 dropped (a 2)"),
        ([{"rows": 3, "comparisons": 7, "dropped/a": 2}], "7 rows = 5 kept + 2 dropped (a 2)"),
    ],
)
def test_every_row_is_accounted_for(counts, text):
    assert account([Artifact(Path("a"), "d", {"counts": each}) for each in counts]) == text


def test_an_output_of_another_kind_is_refused(tmp_path):
    check_output(tmp_path / "o.json", ".json")
    with pytest.raises(ConfigError, match=r"this tool writes \.json;"):
        check_output(tmp_path / "o.jsonl", ".json")


def test_an_output_that_exists_is_refused_with_the_work_that_is_left(tmp_path):
    output, work = tmp_path / "o.json", tmp_path / ".o.json.work"
    output.write_text("")
    for left in (None, work):
        with pytest.raises(UserError) as error:
            check_output(output, ".json", left)
        assert f"Ways out: name another output, or remove it first: rm {output}" in str(error.value)
        assert "rm -r" not in str(error.value)
    work.mkdir()
    with pytest.raises(UserError, match=f"nothing left to do but rm -r {work}"):
        check_output(output, ".json", work)


def test_one_object_is_no_lines(folder, monkeypatch, capsys):
    rows = [{"prompt": "Reverse: a b c", "chosen": "c b a.", "rejected": "a"}]
    (folder / "in.jsonl").write_bytes(jsonl(rows))
    command = "rewardbench input=in.jsonl reward_model.rule=rlhf.world.tasks:gold output="
    assert run_here(monkeypatch, f"{command}out.jsonl") == 2
    assert "this tool writes .json; name the file so" in capsys.readouterr().err
    assert run_here(monkeypatch, f"{command}out.json") == 0
    assert isinstance(json.loads((folder / "out.json").read_text()), dict)
