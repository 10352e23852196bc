"""A generative judge: what it is asked, how it is read, what is kept, and how patiently a server is asked."""

from __future__ import annotations

import asyncio
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
    ],
)
def test_answers_are_read(template: str, answer: str, value: object) -> None:
    assert judge_file(load_judge_file(template)).read(answer) == value


def test_a_cut_answer_is_told_from_another_form() -> None:
    file = judge_file(load_judge_file("score_1_10"))
    assert file.read("It is", was_cut=True) is Unread.cut and file.read("Rating: 2", was_cut=True) == 2


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
    def behave(number: int, body: Any) -> Any:
        time.sleep(0.02)
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
    with fake_chat(lambda n, body: (200, {}, "as you like")) as fake:
        job = score_job(tmp_path, config(fake.url), [["a", "b"]])
        with pytest.raises(DataError, match=r"2 of 2 answers.*2 no_match.*as you like"):
            scored(job, FakeWorker())


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
