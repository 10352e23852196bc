"""`python -m rlhf.chat` up to where models are loaded: its command line, and what it refuses."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.chat import _foot, _question, _with_question, chat
from rlhf.config.chat_tool import ChatTool
from rlhf.errors import ConfigError, UserError
from rlhf.view.chat_session import Answer

OLD_RUN = Path(__file__).resolve().parents[1] / "data" / "old_run.tar.gz"


@pytest.fixture
def run(tmp_path, monkeypatch):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "given")
    return tmp_path / "run"


TEXTS = [
    "2 + 3 = ?",
    "null",
    "3",
    "[a,b]",
    "${oc.env:HOME}",
    'say "hi"',
    "back\\slash\\",
    "two\nlines",
    "a=b",
    "ü…",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("written", ["--once TEXT", "--once=TEXT", "once=TEXT"])
def test_a_question_is_taken_as_it_stands(text, written):
    words = _with_question([word.replace("TEXT", text) for word in written.split()])
    (found,) = OverridesParser.create().parse_overrides(words)
    # What OmegaConf makes of it: `\${` is `${`.
    assert found.key_or_group == "once" and found.value().replace("\\${", "${") == text


def test_a_question_in_quotes_and_other_words_stay():
    words = ["run_dir=RUN", 'once="a: b"', "iterations=[0,3]", "--cfg", "job"]
    assert _with_question(words) == words


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"once": " "}, "the question is empty"),
        ({"once": "a\udcff"}, "no text"),
        ({"json": True}, "goes with once"),
        ({"once": "a", "temperature": -1.0}, "temperature=-1.0"),
        ({"once": "a", "temperature": float("nan")}, "temperature=nan"),
        ({"once": "a", "max_new_tokens": 0}, "max_new_tokens=0"),
        ({"once": "a", "seed": -3}, "seed=-3"),
        ({"once": "a", "run_dir": "nowhere"}, "does not exist"),
        ({"once": "a", "run_dir": "."}, "no run's folder"),
        ({"once": "a", "run_dir": "../run/iteration_001"}, "a part of the run"),
        ({"once": "a", "iterations": [0, 9]}, "no iterate 9 that can be loaded; it has 0, 1, 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(run, given, said):
    with pytest.raises(ConfigError, match=said):
        chat(ChatTool(**({"run_dir": str(run)} | given)))


def test_an_iterate_under_way_or_damaged_is_told_with_the_reason(run):
    (run / "iteration_001" / "dpo").rename(run / "iteration_001" / ".dpo.partial")
    shutil.rmtree(run / "iteration_002" / "dpo" / "model")
    with pytest.raises(
        ConfigError, match=r"no iterate 1 that can be loaded \(it is not finished\); it has 0"
    ):
        chat(ChatTool(run_dir=str(run), iterations=1))
    with pytest.raises(ConfigError, match=r"no iterate 2 that can be loaded \(.*iteration_002/dpo"):
        chat(ChatTool(run_dir=str(run), iterations=[0, 2]))


def test_damaged_weights_do_not_talk(run):
    weights = run / "iteration_002" / "dpo" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        chat(ChatTool(run_dir=str(run), iterations=[2]))


def test_a_run_without_settings_says_so(run):
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        chat(ChatTool(run_dir=str(run)))


def test_a_base_model_that_is_gone_is_named(run):
    shutil.rmtree(run / "sft")
    shutil.rmtree("policy")
    with pytest.raises(UserError, match=r"model\.path=policy"):
        chat(ChatTool(run_dir=str(run), iterations=[0]))


def test_standard_input_may_be_the_question(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("two\nlines ü".encode())))
    assert _question(ChatTool(run_dir="r", once="-")) == "two\nlines ü"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    with pytest.raises(ConfigError, match="no text"):
        _question(ChatTool(run_dir="r", once="-"))


def test_what_stands_below_an_answer():
    answer = Answer("x", 3, "length", {"judge": 1.25, "other": None})
    assert _foot(answer, 0) == "judge +1.250, other –, 3 tokens, cut at the limit"
    assert _foot(Answer("", 0, "interrupted"), 2) == (
        "0 tokens, stopped by Ctrl-C, without the first 2 exchanges, for which the context has no room"
    )
