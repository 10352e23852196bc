"""A chat answers as the stages would: the same tokens, the same scores; in a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.shards import read_all_rows
from tests.tiny import tiny_llama

ROOT = Path(__file__).resolve().parents[3]
OLD_RUN = ROOT / "tests" / "data" / "old_run.tar.gz"
SECONDS = 120


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder with `given` and `run`."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(folder, filter="data")
    return folder


def command(old, *words):
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{old / 'given'}",
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm",
    }
    return {
        "args": [sys.executable, "-m", "rlhf.chat", "run_dir=../run", *words],
        "cwd": old / "given",
        "env": environment,
    }


def chat(old, *words, typed=""):
    done = subprocess.run(
        **command(old, *words), input=typed, capture_output=True, text=True, timeout=SECONDS
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model") / "m", seed=3, max_position_embeddings=64)


def talker(model, **settings):
    from rlhf.generation.talker import Talker

    config = GenerateStage(dtype="float32", **settings)
    return Talker(config, model, seed=0), config


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_pieces_are_what_the_sampler_gives(model, temperature, seed):
    from rlhf.generation.request import Request, Sampling

    one, config = talker(model, top_k=200, top_p=0.95)
    ids, _ = one.fitted([{"role": "user", "content": "Reverse: ä c"}], 20)
    drawn: list[int] = []
    text = "".join(one.pieces(ids, temperature, 20, seed, drawn))
    sampling = Sampling(20, config.top_p, config.top_k, one._stops)
    (candidate,) = one._sampler.sample([Request(ids, temperature, seed)], sampling)
    assert drawn == candidate.token_ids
    # Bytes of a character may come one by one, and are shown when it is whole.
    assert text.replace("\n", "") == one.text_of(drawn).replace("\n", "")
    assert one.has_ended(drawn) == (candidate.finish_reason == "stop")


def test_a_full_context_loses_its_oldest_turns_and_says_how_many(model):
    from rlhf.errors import ModelError

    one, _ = talker(model)
    turns = []
    for number in range(5):
        turns += [{"role": "user", "content": f"{number} abc"}, {"role": "assistant", "content": "d e f"}]
    turns.append({"role": "user", "content": "last"})
    ids, num_left_out = one.fitted(turns, 20)
    assert len(ids) + 20 <= 64 and 0 < num_left_out < 5
    shorter, none_left_out = one.fitted(turns[2 * num_left_out :], 20)
    assert shorter == ids and none_left_out == 0
    longer, _ = talker(model)[0].fitted(turns[2 * num_left_out - 2 :], 1)
    assert len(longer) + 20 > 64, "no more than is needed"
    with pytest.raises(ModelError, match="The question has"):
        one.fitted([{"role": "user", "content": "a b c " * 40}], 20)
    with pytest.raises(ModelError, match="leaves no room"):
        one.fitted(turns[-1:], 64)


def test_a_chat_scores_as_the_run_has_scored(old, monkeypatch):
    from rlhf.chat import _as_made, _judges, _settings_of
    from rlhf.run.plan import Run
    from rlhf.view.run_folder import open_run

    monkeypatch.chdir(old / "given")
    monkeypatch.syspath_prepend(str(old / "given"))
    folder = open_run(str(old / "run"))
    cfg = _as_made(_settings_of(folder.path), folder)
    scoring = _judges(cfg, Run(folder.path, cfg), folder.artifacts["iteration_001/dpo"].part("model"))
    assert scoring.missing == {} and set(scoring.judges) == {"judge", "words"}
    held_out = old / "run" / "iteration_002" / "held_out"
    candidates = read_all_rows(held_out / "generate")
    of_judge = read_all_rows(held_out / "score")
    of_words = read_all_rows(held_out / "score_words")
    num_compared = 0
    for row, judged, counted in zip(candidates, of_judge, of_words, strict=True):
        for place, candidate in enumerate(row["candidates"]):
            scores = scoring.scores(row["messages"], candidate["text"])
            assert scores["judge"] == pytest.approx(judged["scores"][place], abs=1e-5)
            assert scores["words"] == counted["scores"][place]
            num_compared += 1
    assert num_compared == 10


def test_one_question_gives_one_document(old):
    code, said, errors = chat(old, "iterations=[0,2]", "--once", "a = ?", "json=true", "max_new_tokens=5")
    document = json.loads(said)
    assert code == 0 and "Traceback" not in errors
    assert document["question"] == "a = ?" and [row["policy"] for row in document["answers"]] == ["π0", "π2"]
    for row in document["answers"]:
        assert set(row["scores"]) == {"judge", "words"} and row["num_tokens"] <= 5


def test_a_script_talks_through_a_pipe(old, tmp_path):
    lines = [
        "Hi",
        "/temperature 0",
        "And?",
        "/again",
        f"/save {tmp_path / 'talk.jsonl'}",
        "/exit",
        "not reached",
    ]
    code, said, _ = chat(old, "iterations=[1,2]", "max_new_tokens=4", typed="\n".join(lines))
    assert code == 0 and "not reached" not in said and "(temperature 0)" in said
    assert said.count("π1> ") == said.count("π2> ") == 3
    rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [len(row["messages"]) for row in rows] == [4, 4] and len(rows[0]["answers"]) == 2


def test_a_script_hears_of_a_line_that_failed(old):
    code, said, errors = chat(old, "max_new_tokens=4", "scores=false", typed="/nope\nHi\n")
    assert code == 2 and "you> Hi" in said and "judge" not in said, "the others are answered"
    assert errors.count("/nope: no such command") == 2


def test_without_its_judge_a_run_talks_and_says_why(old):
    judge = old / "run" / "reward_model"
    judge.rename(old / "run" / "elsewhere")
    try:
        code, said, errors = chat(old, "once=Hi", "max_new_tokens=4")
    finally:
        (old / "run" / "elsewhere").rename(judge)
    assert code == 0 and "π" in said and "! no scores by the judge: the run has not trained it yet" in errors


class Pty:
    """A chat at a terminal of 100 columns."""

    def __init__(self, old, *words):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            **command(old, *words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.said = ""
        self._read = 0
        """How much of it tests have waited for already."""

    def until(self, text):
        """Read until the terminal has shown a text, behind the one of the last call."""
        end = time.monotonic() + SECONDS
        while text not in self.said[self._read :]:
            assert time.monotonic() < end, self.said[self._read :]
            if select.select([self.master], [], [], 1)[0]:
                self.said += os.read(self.master, 65536).decode(errors="replace")
        self._read = self.said.index(text, self._read) + len(text)

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def leave(self):
        """Press Ctrl-C as a person does: once more where nothing happens, and the exit status.

        Python's readline loses a signal that comes between its last look and its wait for a key.
        """
        end = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end, self.said[self._read :]
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
        return self.process.returncode


@pytest.fixture
def terminal(old, request):
    opened = []

    def open_terminal(*words):
        opened.append(Pty(old, *words))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


def test_ctrl_c_stops_an_answer_and_two_leave(terminal):
    one = terminal("iterations=2", "max_new_tokens=7000", "scores=false")
    one.until("you> ")
    one.type("Hi\n")
    one.until("π2> ")
    one.interrupt()
    one.until("stopped by Ctrl-C")
    one.until("you> ")
    one.type("/max 3\n")
    one.until("at most 3 tokens")
    one.until("you> ")
    assert one.leave() == 0
    one.until("once more leaves")


def test_a_pasted_text_is_one_message_and_ctrl_d_leaves(terminal, tmp_path):
    one = terminal("iterations=[0,1]", "max_new_tokens=3", "scores=false")
    one.until("you> ")
    one.type("one\ntwo\nthree\n")
    one.until("tokens")
    one.until("you> ")
    one.type(f"/save {tmp_path / 'talk.jsonl'}\n")
    one.until("(written")
    one.until("you> ")
    one.type("\x04")
    assert one.process.wait(SECONDS) == 0
    row = json.loads((tmp_path / "talk.jsonl").read_text().splitlines()[0])
    assert row["messages"][0]["content"] == "one\ntwo\nthree"
