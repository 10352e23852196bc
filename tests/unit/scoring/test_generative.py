"""A generative judge: what it is asked, how it is read, what is kept, and how patiently a server is asked."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from rlhf.config.choices import JudgeKind
from rlhf.config.generative_limits import generative_problems
from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerativeStage, RuleStage
from rlhf.data.judge_files import SHIPPED, Unread, judge_file, load_judge_file
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.errors import ConfigError, DataError, ModelError, WorkerFailed
from rlhf.run.attempt_folder import attempt_folder, end_attempts, take_shard
from rlhf.run.job import Job
from rlhf.run.stage_table import folders_beside
from rlhf.scoring.chat_server import ChatServer, endpoint, retry_after
from rlhf.scoring.generative_judge import GenerativeJudge
from rlhf.scoring.judge import RuleJudge
from rlhf.scoring.kept import KeptAnswers, kept_answers, kept_path
from rlhf.stages import score
from tests.chat_server import fake_chat
from tests.stage_runner import FakeWorker, make_job
from tests.unit import rules

HI = [{"role": "user", "content": "Hi"}]


class FastClock:
    """A clock whose pauses take no time; `slept` are their seconds."""

    def __init__(self) -> None:
        self.time, self.slept = 0.0, list[float]()

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float, given_up: asyncio.Event) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


def config(url: str, template: str = "score_1_10", **values: Any) -> GenerativeStage:
    return GenerativeStage(judge_file=load_judge_file(template), url=url, served_model="m", **values)


@pytest.mark.parametrize(
    ("template", "answer", "value"),
    [
        ("score_1_10", "Good.\nRating: 7", 7),
        ("score_1_10", "Rating: 3, no: **Rating:** 8.5", 8.5),
        ("score_1_10", "Rating: 11", Unread.out_of_range),
        ("score_1_10", "seven", Unread.no_match),
        ("score_1_10", " \n", Unread.empty),
        ("a_or_b", "Verdict: B", 0),
        ("a_or_b", "verdict: [[A]]", 1),
        ("a_or_b", "Verdict: tie", 0.5),
        ("a_or_b", "Verdict: Both", Unread.no_match),
        ("self_rewarding", "It is fine.\nScore: 4", 4),
        ("self_rewarding", "Score: 0", 0),
        ("self_rewarding", "Score: 6", Unread.out_of_range),
        ("self_rewarding", "Score: -1", Unread.no_match),
        ("self_rewarding", "Score: 3+1=4", Unread.no_match),
        ("self_rewarding", "Score: 1 + 1 + 1", Unread.no_match),
        ("self_rewarding", "Score: 4/5", 4),
        ("self_rewarding", "Score: 4/10", Unread.no_match),
        ("score_1_10", "Rating: 7/10", 7),
        ("score_1_10", "**Rating:** **7** out of 10.", 7),
        ("score_1_10", "Rating: [[7]]", 7),
        ("score_1_10", "Rating: ７", 7),
        ("score_1_10", "Rating: 7, since", 7),
        ("score_1_10", "Rating: 7. Fine\n8", 7),
        ("score_1_10", "Rating:\n- 7", 7),
        ("score_1_10", "Rating: 7-ish", 7),
        ("score_1_10", "Rating: 7 – good", 7),
        ("a_or_b", "Verdict: Tie.", 0.5),
        ("a_or_b", "**VERDICT: B**", 0),
        ("a_or_b", "Verdict: A. B is poor", 1),
        ("a_or_b", "Verdict: A, not B", 1),
        ("a_or_b", "Verdict: B (a clear case)\nA is poor", 0),
    ],
)
def test_answers_are_read(template: str, answer: str, value: object) -> None:
    assert judge_file(load_judge_file(template)).read(answer) == value


@pytest.mark.parametrize(
    "rest",
    [
        "-7",
        "−7",
        "–7",
        ".5",
        ",5",
        "7,5",
        "7，5",
        "1,000",
        "1 000",
        "1'000",
        "7.5.1",
        "7½",
        "7 1/2",
        "1e1",
        "1-10",
        "1 – 10",
        "7~8",
        "7 or 8",
        "6 to 8",
        "4/5",
        "4 / 5",
        "**4**/5",
        "4 out of 5",
    ],
)
@pytest.mark.parametrize("before", ["", "Rating: 9\n"])
def test_a_piece_of_a_number_is_no_rating(before: str, rest: str) -> None:
    file = judge_file(load_judge_file("score_1_10"))
    assert file.read(f"{before}Rating: {rest}") is Unread.no_match
    own = judge_file({"prompt": "{question} {response}", "pattern": r"=\W*(?P<score>\d+)", "highest": 10})
    assert own.read(f"= {rest}") is Unread.no_match and own.read("= 7/10") == 7


@pytest.mark.parametrize(
    "rest", ["A or B", "B/A", "A and B", "A better one is B", "A is worse", "B's", "A, tie", "tied", "a"]
)
def test_more_than_a_choice_is_no_verdict(rest: str) -> None:
    assert judge_file(load_judge_file("a_or_b")).read(f"Verdict: {rest}") is Unread.no_match


def test_patterns_may_take_in_what_stands_around_a_score() -> None:
    def read(pattern: str, answer: str) -> object:
        return judge_file({"prompt": "{question} {response}", "pattern": pattern}).read(answer)

    assert read(r"(?P<score>-?\d+)", "= -7") == -7 and read(r"Score-(?P<score>\d+)", "Score-7") == 7
    assert read(r"(?P<score>\d+)-\d+", "2-5") == 2 and read(r"=(?P<score>\d+)", "=85/100") == 85
    assert read(r"(?P<score>.*)", " x") is Unread.no_match and read(r"=(?P<score>.*)", "=") is Unread.no_match
    assert read(r".*(?P<score>\d+)", "= 10") is Unread.no_match


def test_choices_are_read_whatever_their_capitals() -> None:
    content = {"prompt": "{question} {response}", "pattern": r"(?P<choice>\w+)"}
    file = judge_file({**content, "choices": {"Yes": 1, "no": 0, "NO": 2}})
    assert file.read("yes") == 1 and file.read("NO") == 2 and file.read("No") is Unread.no_match


@pytest.mark.parametrize("end", ["1", "1.", "7/1", "7 ", "3\nRating: 1"])
def test_a_number_that_a_cut_may_have_shortened_is_not_read(end: str) -> None:
    file = judge_file(load_judge_file("score_1_10"))
    assert file.read(f"Rating: {end}", was_cut=True) is Unread.cut
    assert file.read(f"Rating: {end}\n", was_cut=True) is not Unread.cut
    verdict = judge_file(load_judge_file("a_or_b"))
    assert (
        verdict.read("Verdict: A", was_cut=True) is Unread.cut
        and verdict.read("[[A]]", was_cut=True) is Unread.cut
    )
    assert verdict.read("Verdict: [[A]]", was_cut=True) == 1


def test_a_cut_answer_is_told_from_another_form() -> None:
    file = judge_file(load_judge_file("score_1_10"))
    assert file.read("It is", was_cut=True) is Unread.cut and file.read("Rating: 2\n", was_cut=True) == 2


def test_what_a_response_spells_of_places_stays_text() -> None:
    content = {"prompt": "{question} | {response} | {{response}} | {1}", "pattern": "(?P<score>.)"}
    (turn,) = judge_file(content).messages(HI, "{question} {response}")
    assert turn["content"] == "Hi | {question} {response} | {response} | {1}"
    assert len(list(SHIPPED.glob("*.yaml"))) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "holds list"),
        ({"prompt": "{question} {response}", "pattern": "(?P<score>.)", "x": 1}, "x: no such key"),
        ({"prompt": "{question} {answer}", "pattern": "(?P<score>.)"}, "{answer} is no place"),
        ({"prompt": "{question}", "pattern": "(?P<score>.)"}, "no response"),
        ({"prompt": "{question} {response_a}", "pattern": "(?P<score>.)"}, "both {response_a}"),
        ({"prompt": "{response}", "pattern": "(?P<score>.)"}, "shows no question"),
        ({"prompt": "{question} {response}", "pattern": "("}, "no regular expression"),
        ({"prompt": "{question} {response}", "pattern": "."}, "(?P<score>…)"),
        ({"prompt": "{question} {response}", "pattern": "(?P<choice>.)", "choices": {True: 1}}, "in quotes"),
        (
            {
                "prompt": "{question} {response_a} {response_b}",
                "pattern": "(?P<choice>.)",
                "choices": {"A": 2},
            },
            "from 0",
        ),
    ],
)
def test_a_wrong_file_is_refused(content: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        judge_file(content, "t")
    assert said in str(error.value)


def test_a_torn_line_and_a_damaged_one_are_asked_for_again(tmp_path: Path) -> None:
    path = kept_path(tmp_path, 3)
    with KeptAnswers(path) as kept:
        for name in "abc":
            kept.add(name, {"text": name})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"text": "b"', b'"text": "x"') + b"0123 {torn")
    with KeptAnswers(path) as kept:
        assert kept.num_damaged == 1 and kept.get("b") is None and kept.get("c") == {"text": "c"}
        kept.add("d", {"text": "d"})
    assert KeptAnswers(path).get("d") == {"text": "d"} and KeptAnswers(path).num_damaged == 1


def test_what_another_writer_has_kept_is_read_and_never_touched(tmp_path: Path) -> None:
    asleep, at_work = kept_path(tmp_path, 3, "a-0"), kept_path(tmp_path, 3, "b-0")
    with KeptAnswers(asleep) as kept:
        kept.add("a", {"text": "a"})
    whole = asleep.read_bytes()
    asleep.write_bytes(whole + whole[:20])  # in the middle of a line when it was stopped
    kept_path(tmp_path, 30).write_bytes(whole.replace(b"a", b"b"))  # of another shard
    with kept_answers(tmp_path, 3, "b-0") as kept:
        assert kept.get("a") == {"text": "a"} and kept.num_damaged == 0
        kept.add("b", {"text": "b"})
    with open(asleep, "ab") as file:
        file.write(whole[20:])  # it wakes
    assert asleep.read_bytes() == 2 * whole and at_work.read_bytes().count(b"\n") == 1
    # And on one machine again.
    with kept_answers(tmp_path, 3) as kept:
        assert kept.get("a") and kept.get("b") and kept.num_damaged == 0
        kept.add("c", {"text": "c"})
    assert kept_path(tmp_path, 3).read_bytes().count(b"\n") == 1 and at_work.read_bytes().count(b"\n") == 1


class LateWorker(FakeWorker):
    """A worker that was given a shard before another one has made it."""

    def shards(self) -> Iterator[int]:
        yield 0


@pytest.mark.parametrize("template", ["score_1_10", "a_or_b"])
def test_who_wakes_after_its_attempts_end_changes_no_answer(tmp_path: Path, template: str) -> None:
    rating = {"score_1_10": "Rating: 5", "a_or_b": "Verdict: A"}[template]
    with fake_chat(lambda number, body: (200, {}, rating)) as fake:
        job = score_job(tmp_path, config(fake.url, template), [["fine", "poor"]])
        folders = [attempt_folder(job.out_path, name) for name in ("lost/0", "new/0")]
        lost, new = (replace(job, shards_out=str(folder)) for folder in folders)
        scored(new, LateWorker())
        take_shard(job.out_path, folders[1], 0, folders_beside(job))
        before = {path: path.read_bytes() for path in job.out_path.rglob("shard_*") if path.parts[-3] != "0"}
        assert job.out_path / "answers" / shard_name(0) in before
        rating = {"score_1_10": "Rating: 9", "a_or_b": "Verdict: B"}[template]
        shutil.rmtree(job.out_path / ".answers")  # so that it asks, and is told something else
        scored(lost, LateWorker())
        end_attempts(job.out_path)
    after = {path: path.read_bytes() for path in job.out_path.rglob("shard_*")}
    assert after == {path: content for path, content in before.items() if ".attempts" not in path.parts}
    assert sum_counts(job.out_path)["answers"] == 2


def completion(text: object, finish_reason: object = "stop", **usage: object) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": finish_reason}], "usage": usage}


NO_FILE_HOLDS = [
    completion("Rating: 5 \ud800", prompt_tokens=3, completion_tokens=2),
    completion("Rating: 5 \udfff\ud83d\ude00", "\udc00", prompt_tokens=3, completion_tokens=2),
    completion("Rating: 5", prompt_tokens=2**70, completion_tokens=2**63),
    completion("Rating: 5", prompt_tokens=-1, completion_tokens="2"),
    completion("Rating: 5", prompt_tokens=1.0, completion_tokens=True),
]


@pytest.mark.parametrize("told", NO_FILE_HOLDS)
def test_an_answer_that_no_file_holds_is_made_fit_for_one(tmp_path: Path, told: dict[str, Any]) -> None:
    with fake_chat(lambda n, body: (200, {}, told)) as fake:
        job = score_job(tmp_path, config(fake.url), [["a"]])
        scored(job, FakeWorker())
    (answer,) = read_all_rows(job.out_path / "answers")
    kept = kept_path(job.out_path, 0).read_text()
    assert answer["value"] == 5 and not any(half in kept for half in (r"\ud800", r"\udfff", r"\udc00"))
    content = told["choices"][0]["message"]["content"]
    assert len(answer["answer"]) == len(content) - content.count("\ude00")
    is_counted = told["usage"]["prompt_tokens"] == 3
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == ((3, 2) if is_counted else (None, None))


@pytest.mark.parametrize("told", NO_FILE_HOLDS)
def test_what_was_kept_before_answers_were_made_fit_is_read(tmp_path: Path, told: dict[str, Any]) -> None:
    choice = told["choices"][0]
    record = {"text": choice["message"]["content"], "finish_reason": choice["finish_reason"], **told["usage"]}
    with fake_chat(lambda n, body: (500, {}, {})) as fake:
        job = score_job(tmp_path, config(fake.url), [["a"]])
        judge = GenerativeJudge(job.config, ChatServer(job.config))
        messages = judge.file.messages([{"role": "user", "content": "question 0"}], "a")
        with kept_answers(job.out_path, 0) as kept:
            kept.add(judge._key(messages), record)
        scored(job, FakeWorker())
        assert not fake.bodies
    assert [row["scores"] for row in read_all_rows(job.out_path)] == [[5.0]]


PARTS = [{"type": "text", "text": "Rating: "}, {"type": "image_url"}, "5"]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"choices": []}, ""),
        ({"choices": None}, ""),
        ({"choices": [None]}, ""),
        ({"choices": [{}], "error": None}, ""),
        ({"choices": [{"message": None, "finish_reason": "content_filter"}]}, ""),
        ({"choices": [{"message": {"role": "assistant"}}]}, ""),
        (completion(None), ""),
        (completion([]), ""),
        (completion(PARTS), "Rating: 5"),
        ({"choices": [{"text": "Rating: 5"}]}, "Rating: 5"),
        (completion("Rating: 5", 3), "Rating: 5"),
        (completion("Rating: 5") | {"usage": [1]}, "Rating: 5"),
        (completion("Rating: 5") | {"usage": "none"}, "Rating: 5"),
        (completion("Rating: 5") | {"error": {"message": "slow"}}, "Rating: 5"),
    ],
)
def test_answers_of_any_form_are_taken(told: dict[str, Any], text: str) -> None:
    got = []
    with fake_chat(lambda n, body: (200, {}, told)) as fake:
        ChatServer(config(fake.url)).ask([HI], lambda number, answer: got.append(answer.text))
    assert got == [text]


def test_a_count_of_thousands_of_digits_loses_no_answer() -> None:
    text = json.dumps(completion("Rating: 5", prompt_tokens=0)).replace(": 0", f": {'9' * 5000}")
    answer = ChatServer(config("http://x"))._answer(httpx.Response(200, text=text))
    assert answer.text == "Rating: 5" and answer.prompt_tokens is None


@pytest.mark.parametrize(
    ("status", "headers", "told", "said"),
    [
        (200, {}, {"error": {"message": "overloaded", "code": 7}}, "an answer: overloaded\n"),
        (200, {}, {"error": "too long", "choices": []}, "an answer: too long\n"),
        (200, {}, {"error": {"code": 7}}, r"an answer: \{\"code\": 7\}\n"),
        (200, {}, {"object": "list"}, "no completion .*base URL"),
        (200, {}, [1], "no completion .*base URL"),
        (200, {}, completion(7), "no completion .*the content is no text"),
        (200, {}, {"choices": "none"}, "no completion .*choices is no list"),
        (201, {}, completion("Rating: 5"), "HTTP 201: .*comes with HTTP 200"),
        (301, {"Location": "http://other/v1"}, {}, "HTTP 301: .*on, to http://other/v1, and no redirect"),
        (307, {}, {}, "a place that it does not name"),
        (405, {}, {}, "base URL"),
        (422, {}, {}, "about length"),
    ],
)
def test_what_is_no_completion_has_its_own_way_out(
    status: int, headers: dict[str, str], told: Any, said: str
) -> None:
    server = fake_chat(lambda n, body: (status, headers, told))
    with server as fake, pytest.raises(ModelError, match=f"(?s){said}") as error:
        ChatServer(config(fake.url)).ask([HI], print)
    assert ("All answers that came are kept" in str(error.value)) == ("no completion" not in said)


def test_rate_limits_and_failures_are_waited_out() -> None:
    def behave(number: int, body: Any) -> Any:
        if number == 0:
            return 429, {"Retry-After": "7"}, {}
        return (503, {}, {}) if number < 3 else (200, {}, "Rating: 5")

    clock, got = FastClock(), []
    with fake_chat(behave) as fake:
        server = ChatServer(config(fake.url, concurrency=1), clock)  # type: ignore[arg-type]
        server.ask([HI, HI], lambda number, answer: got.append((number, answer.text)))
    assert got == [(0, "Rating: 5"), (1, "Rating: 5")] and clock.slept == [7.0, 1.0, 2.0]


@pytest.mark.parametrize("told", ["0", "0.01", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_who_may_ask_again_at_once_still_waits_longer_each_time(told: str) -> None:
    clock = FastClock()
    with fake_chat(lambda n, body: (429, {"Retry-After": told}, {}) if n < 4 else (200, {}, "x")) as fake:
        server = ChatServer(config(fake.url, concurrency=1), clock)  # type: ignore[arg-type]
        server.ask([HI], lambda number, answer: None)
    assert [pause for pause in clock.slept if pause > 0.1] == [0.5, 1.0, 2.0, 4.0]


def test_a_server_that_says_at_once_is_given_up_in_the_end() -> None:
    with fake_chat(lambda n, body: (503, {"Retry-After": "0"}, {})) as fake:
        server = ChatServer(config(fake.url, retry_seconds=10), FastClock())  # type: ignore[arg-type]
        with pytest.raises(WorkerFailed, match="next attempt would be in 8 s"):
            server.ask([HI], print)
        assert len(fake.bodies) == 5


def test_patience_ends_and_what_came_is_there() -> None:
    got = []
    with fake_chat(lambda n, body: (200, {}, "x") if n == 0 else (500, {}, {"error": "full"})) as fake:
        server = ChatServer(config(fake.url, concurrency=1, retry_seconds=60), FastClock())  # type: ignore[arg-type]
        with pytest.raises(WorkerFailed, match=r"(?s)HTTP 500.*full.*retry_seconds=60"):
            server.ask([HI, HI], lambda number, answer: got.append(number))
    assert got == [0]
    told_to_wait = fake_chat(lambda n, body: (429, {"Retry-After": "3600"}, {}))
    with told_to_wait as fake, pytest.raises(WorkerFailed, match="in 3600 s"):
        ChatServer(config(fake.url), FastClock()).ask([HI], print)  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "said"), [(401, "MY_KEY"), (404, "generative.model=m"), (400, "length")])
def test_what_is_refused_is_told_without_the_key(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with fake_chat(lambda n, body: (status, {}, {"error": "no sk-secret"})) as fake:
        with pytest.raises(ModelError) as error:
            ChatServer(config(fake.url, api_key_variable="MY_KEY")).ask([HI], print)
        assert fake.headers[0]["Authorization"] == "Bearer sk-secret" and len(fake.bodies) == 1
    assert said in str(error.value) and "no ***" in str(error.value) and "secret" not in str(error.value)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="export MY_KEY"):
        ChatServer(config("http://x", api_key_variable="MY_KEY"))


def test_where_requests_go() -> None:
    from rlhf.config.choices import ChatApi

    assert endpoint("http://h:1/", ChatApi.chat) == "http://h:1/v1/chat/completions"
    assert endpoint("https://h/openai/v1/", ChatApi.completions) == "https://h/openai/v1/completions"
    assert retry_after("1.5") == 1.5 and retry_after("soon") is None
    assert retry_after(f"Mon, 1 Jan {'9' * 20} 00:00:00 GMT") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def candidates(folder: Path, texts: list[list[str]], per_shard: int) -> Path:
    folder.mkdir()
    sampled = {"token_ids": [], "finish_reason": "stop", "logprob": 0.0, "seed": 0, "temperature": 1.0}
    rows = []
    for number, answers in enumerate(texts):
        messages = [{"role": "user", "content": f"question {number}"}]
        found = [{"text": text, **sampled} for text in answers]
        rows.append({"id": f"{number}", "messages": messages, "prompt_token_ids": [], "candidates": found})
    for index, start in enumerate(range(0, len(rows), per_shard)):
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, rows[start : start + per_shard])
    return folder


def score_job(folder: Path, told: Any, texts: list[list[str]], per_shard: int = 100) -> Job[Any]:
    found = folder / "candidates"
    if not found.exists():
        candidates(found, texts, per_shard)
    (folder / "out").mkdir(exist_ok=True)
    made = make_job("score", told, {"candidates": found}, folder / "out")
    return Job("score", "score", told, made.inputs, made.out, 1, made.compute)


def scored(job: Job[Any], worker: FakeWorker) -> Any:
    worker.out, worker.num_shards = job.out, len(list(job.input_path("candidates").glob("shard_*")))
    return score.run(job, worker)


def test_scores_counts_cost_and_answers(tmp_path: Path) -> None:
    two = threading.Barrier(2)

    def behave(number: int, body: Any) -> Any:
        if number < 2:
            two.wait(60)  # for the other one, which has to come before this one is answered
        text = body["messages"][-1]["content"]
        return 200, {}, "no idea" if "bad" in text else f"Rating: {5 if 'fine' in text else 2}"

    with fake_chat(behave) as fake:
        told = config(fake.url, prompt_price=100.0, answer_price=1000.0, body={"seed": 1, "max_tokens": None})
        job = score_job(tmp_path, told, [["fine", "poor", "fine"], ["bad", "poor", "x"]])
        outcome = scored(job, FakeWorker())
        assert 1 < fake.most_at_once <= told.concurrency and set(fake.answered.values()) == {1}
        assert fake.bodies[0]["seed"] == 1 and "max_tokens" not in fake.bodies[0]
    found = [row["scores"] for row in read_all_rows(job.out_path)]
    assert found[0] == [5, 2, 5] and math.isnan(found[1][0]) and found[1][1:] == [2, 2]
    counts = sum_counts(job.out_path)
    assert counts["answers"] == 5 and counts["unread/no_match"] == 1 and counts["non_finite"] == 1
    assert counts["judge_prompt_tokens"] == 50 and outcome.metrics["cost"] == 0.03
    assert "no idea" in outcome.metrics["warning"] and "judge_calls" not in counts
    answers = list(read_all_rows(job.out_path / "answers"))
    assert [row["value"] for row in answers] == [5, 2, None, 2, 2] and answers[2]["unread"] == "no_match"


def test_both_orders_are_asked_and_a_leaning_counted(tmp_path: Path) -> None:
    def behave(number: int, body: Any) -> Any:
        first, _, second = body["messages"][-1]["content"].partition("Answer B:")
        if "odd" in first + second:
            return 200, {}, "Verdict: A" if "odd" in first else "hm"
        if "good" in first and "poor" in second:
            return 200, {}, "Verdict: A"
        return 200, {}, "Verdict: B" if "good" in second and "poor" in first else "Verdict: A"

    with fake_chat(behave) as fake:
        texts = [["good", "poor"], ["alike", "same"], ["odd", "x"]]
        job = score_job(tmp_path, config(fake.url, "a_or_b"), texts)
        scored(job, FakeWorker())
    found = [row["scores"] for row in read_all_rows(job.out_path)]
    assert found[:2] == [[1, 0], [0.5, 0.5]] and all(map(math.isnan, found[2]))
    counts = sum_counts(job.out_path)
    assert counts["judge_calls"] == counts["answers"] == 6 and counts["leaning/first"] == 1
    assert counts["comparisons"] == 2 and counts["comparisons_left_out"] == 1


def test_a_judge_that_nobody_can_read_is_refused(tmp_path: Path) -> None:
    answer = "as you like"
    with fake_chat(lambda n, body: (200, {}, answer)) as fake:
        job = score_job(tmp_path, config(fake.url), [["a", "b"]])
        with pytest.raises(DataError, match=r"2 of 2 answers.*2 no_match.*as you like") as error:
            scored(job, FakeWorker())
        # The way out that it names: the judge was mended, and is to be asked again.
        answer = "Rating: 5"
        assert f"remove the folder of this unfinished stage, {job.out_path}, first" in str(error.value)
        shutil.rmtree(job.out_path)
        scored(score_job(tmp_path, job.config, [["a", "b"]]), FakeWorker())
        assert len(fake.bodies) == 4
    assert [row["scores"] for row in read_all_rows(job.out_path)] == [[5, 5]]


def run_in_child(job: Job[Any]) -> None:
    scored(job, FakeWorker())


def wait_for(path: Path, lines: int) -> None:
    for _ in range(3000):
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was kept")


def killed(job: Job[Any], lines: int) -> None:
    child = multiprocessing.get_context("spawn").Process(target=run_in_child, args=(job,))
    child.start()
    try:
        wait_for(kept_path(job.out_path, 0), lines)
    finally:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()


def test_a_kill_loses_no_answer(tmp_path: Path) -> None:
    texts = [[f"answer {n} {m}" for m in range(4)] for n in range(10)]
    resumed, held = threading.Event(), threading.Event()

    def behave(number: int, body: Any) -> Any:
        if number >= 25 and not resumed.is_set():
            held.wait(60)  # on its way when the kill comes: neither answered nor paid
            return 500, {}, {}
        return 200, {}, f"Rating: {1 + len(body['messages'][-1]['content']) % 9}"

    with fake_chat(behave) as fake:
        job = score_job(tmp_path, config(fake.url), texts)
        killed(job, lines=25)
        assert sum(fake.answered.values()) == 25
        resumed.set()
        held.set()
        scored(job, FakeWorker())
        assert len(fake.answered) == 40 and set(fake.answered.values()) == {1}
        (tmp_path / "whole").mkdir()
        whole = score_job(tmp_path / "whole", config(fake.url), texts)
        scored(whole, FakeWorker())
    for name in (shard_name(0), f"answers/{shard_name(0)}"):
        assert (job.out_path / name).read_bytes() == (whole.out_path / name).read_bytes()


@pytest.mark.parametrize(("rule", "expected"), [("slow", 10), ("many", 10), ("slow_many", 10)])
def test_rules_that_are_async_or_take_lists(rule: str, expected: int, tmp_path: Path) -> None:
    from tests.unit import rules

    rules.calls.clear()
    told = RuleStage(rule=f"tests.unit.rules:{rule}", concurrency=4)
    job = score_job(tmp_path, told, [["a" * (n + 1), "b"] for n in range(expected)])
    scored(job, FakeWorker())
    found = [row["scores"] for row in read_all_rows(job.out_path)]
    assert found == [[n + 1.0, 1.0] for n in range(expected)] and not (job.out_path / "answers").exists()
    asked = len(rules.calls)
    (job.out_path / shard_name(0)).unlink()  # killed after the last answer, before the shard
    scored(job, FakeWorker())
    assert len(rules.calls) == asked, "what was kept is not called again"


def test_a_rule_of_lists_gives_back_as_many() -> None:
    with pytest.raises(DataError, match="gave back 1 values for 2 responses"):
        RuleJudge("tests.unit.rules:too_few").score([(HI, "a"), (HI, "b")])


@pytest.mark.parametrize(
    "found",
    [
        {1.0, 2.0},
        frozenset({1, 2}),
        {"a": 1.0, "b": 2.0},
        {"a": 1}.keys() | {2},
        "12",
        b"12",
        bytearray(b"12"),
    ],
    ids=lambda found: type(found).__name__,
)
def test_what_has_no_order_of_values_is_no_list(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "NEXT_ANSWER", [found])
    with pytest.raises(
        DataError, match=rf"\({type(found).__name__}\) for 2 responses. Let it give back a list"
    ):
        RuleJudge("tests.unit.rules:next_answer").score([(HI, "a"), (HI, "b")])


@pytest.mark.parametrize("kind", [list, tuple, deque, np.array, torch.tensor, lambda v: array("d", v)])
def test_any_kind_of_list_is_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "NEXT_ANSWER", [kind([0.5, -1.5])])
    scored = RuleJudge("tests.unit.rules:next_answer").score([(HI, "a"), (HI, "b")])
    assert scored.scores == [0.5, -1.5]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"path": "@policy", "kind": JudgeKind.scalar}, "kind=generative"),
        ({"rule": "a:b", "path": "x"}, "rule=a:b"),
        ({"data": "d", "path": "x"}, "data=d"),
        ({"url": "http://x"}, "generative.model"),
        ({}, "is a classifier"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], said: str) -> None:
    cfg = Config()
    for key, value in ({"kind": JudgeKind.generative} | values).items():
        setattr(cfg.reward_model, key, value)
    assert any(said in line for line in generative_problems(cfg))


def test_a_look_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf.preflight.findings import Level, collect
    from rlhf.preflight.generative import generative_judge

    cfg = Config()
    cfg.reward_model.kind = JudgeKind.generative
    cfg.reward_model.generative.model = "m"
    for answer, level in (("Rating: 9", Level.ok), ("nine", Level.warning)):
        with fake_chat(lambda n, body, answer=answer: (200, {}, answer)) as fake:
            cfg.reward_model.url = fake.url
            found = collect("judge", generative_judge(cfg, [HI], asks=True))
            assert [item.level for item in found] == [Level.ok, level] and len(fake.bodies) == 1
    with fake_chat(lambda n, body: (401, {}, {})) as fake:
        cfg.reward_model.url = fake.url
        found = collect("judge", generative_judge(cfg, [HI], asks=True))
        assert found[-1].level is Level.error and "RLHF_JUDGE_API_KEY" in found[-1].way_out + found[-1].text
