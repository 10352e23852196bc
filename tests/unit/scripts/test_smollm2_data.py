"""The script that makes the data of `experiment=smollm2`, on files of a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.world.instructions import instructions_of
from scripts import smollm2_data


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def alpaca(number: int) -> dict[str, str]:
    return {"instruction": f"Name {number} things.", "input": "", "output": "No."}


def test_prompts_of_a_file_get_instructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [alpaca(number) for number in range(30)]
    rows += [{"instruction": "Sum up.", "input": "A text.", "output": ""}, alpaca(3)]
    conversation = [("user", "a"), ("assistant", "b"), ("user", "c")]
    rows.append({"messages": [{"role": role, "content": text} for role, text in conversation]})
    rows.append({"prompt": "\u2028 a line\u2028separator"})
    source = written(tmp_path / "in.jsonl", rows)
    arguments = [
        f"prompts={source}",
        f"out={tmp_path / 'new' / 'out'}",
        "train=null",
        "seen=6",
        "other_kinds=4",
    ]
    assert smollm2_data.main(arguments) == 0
    said = capsys.readouterr().out
    assert "21 prompts to train on, 10 held out, of 31 that fit" in said
    assert "1 dropped/duplicate" in said and "1 dropped/several_turns" in said
    train = read(tmp_path / "new" / "out" / "prompts.jsonl")
    held_out = read(tmp_path / "new" / "out" / "held_out.jsonl")
    for row in [*train, *held_out]:
        assert instructions_of([{"role": "user", "content": row["prompt"]}])
    before = (tmp_path / "new" / "out" / "prompts.jsonl").read_bytes()
    assert smollm2_data.main(arguments) == 0
    assert (tmp_path / "new" / "out" / "prompts.jsonl").read_bytes() == before


def test_columns_can_be_named(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"ask": f"What is {number}?"} for number in range(12)])
    arguments = [
        f"prompts={source}",
        f"out={tmp_path}",
        "train=null",
        "seen=2",
        "other_kinds=2",
        "columns={question: ask}",
    ]
    assert smollm2_data.main(arguments) == 0
    assert len(read(tmp_path / "prompts.jsonl")) == 8


def test_short_pairs_are_drawn_and_long_ones_left(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Say {number}", "chosen": "yes" * (1 + number), "rejected": "no"} for number in range(20)
    ]
    source = written(tmp_path / "pairs.jsonl", rows)
    arguments = [f"pairs={source}", "prompts=null", f"out={tmp_path / 'out'}", "num_pairs=5"]
    assert smollm2_data.main([*arguments, "max_characters=30"]) == 0
    pairs = read(tmp_path / "out" / "preferences.jsonl")
    assert len(pairs) == 5
    assert all(len(pair["prompt"][0]["content"]) + len(pair["chosen"]) <= 30 for pair in pairs)
    assert not (tmp_path / "out" / "prompts.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prompts=missing.jsonl"], "missing.jsonl"),
        (["prompts=in.jsonl"], "1 questions of one paragraph"),
        (["prompts=in.jsonl", "seen=-1"], "seen=-1: must be a whole number, 0 or more."),
        (["prompts=in.jsonl", "seed=x"], "seed=x: must be a whole number, 0 or more."),
        (["prompts=in.jsonl", "train=1.5"], "train=1.5: must be a whole number, 1 or more; null"),
        (["prompts=in.jsonl", "seed=-1"], "seed=-1: must be a whole number, 0 or more."),
        (["prompts=in.jsonl", "train=0"], "train=0: must be a whole number, 1 or more; null takes all"),
        (["prompts=in.jsonl", "train="], "train=: must be a whole number, 1 or more"),
        (["prompts=in.jsonl", "seen=0", "other_kinds=0"], "held_out.jsonl would be empty"),
        (["prompts=null", "pairs=pairs.jsonl", "num_pairs=0"], "num_pairs=0: must be a whole number, 1"),
        (["prompts=null", "pairs=pairs.jsonl", "max_characters=0"], "max_characters=0: must be"),
        (["prompts=in.jsonl", f"seed={'9' * 5000}"], "must be a whole number, 0 or more."),
        (["prompts=in.jsonl", "columns={"], "columns={: cannot be read"),
        (["prompts=in.jsonl", "columns=${nowhere}"], "columns=${nowhere}: cannot be read"),
        (["prompts=in.jsonl", "columns=ask"], "columns=ask: must be a mapping"),
        (["prompts=in.jsonl", "columns={ask: question}"], "a column holds one of question"),
        (["prompts=null"], "prompts=null with pairs=null: there is nothing to make"),
        (["prompts=in.jsonl", "num_pairs=5"], "num_pairs=5: is about pairs, and pairs=null makes none"),
        (["prompts=null", "pairs=pairs.jsonl", "train=5"], "train=5: is about prompts"),
        (["prompts="], "prompts=: is empty"),
        (["prompts=~nobody_of_that_name/x"], "leads nowhere"),
        (
            ["prompts=null", "pairs=pairs.jsonl"],
            "pairs: 1 of 1 pairs have at most 900 characters, num_pairs=200",
        ),
        (["prompts=null", "pairs=in.jsonl"], "in.jsonl"),
    ],
)
def test_what_cannot_work_is_said_with_code_2_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "in.jsonl", [alpaca(1)])
    written(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert smollm2_data.main(["out=out", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", "out=: is empty"),
        ("file", "out=file: "),
        ("file/below/it", "is no folder that can be written (Not a directory)"),
        ("/proc/nothing/here", "out=/proc/nothing/here: "),
        ("made", "prompts.jsonl is a folder, in the place of a file"),
        ("loop", "leads nowhere"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm2_data, "file_of", lambda *_: pytest.fail("it was read"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "made" / "prompts.jsonl").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    assert smollm2_data.main(["prompts=in.jsonl", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["out"], ["out=x", "sed=1"], ["seed"]])
def test_other_arguments_get_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert smollm2_data.main(arguments) == 2
    assert "smollm2_data.py [out=FOLDER]" in capsys.readouterr().err
