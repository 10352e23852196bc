"""The remote judge: against vLLM's own server, killed half-way, and against a stand-in that misbehaves."""

import dataclasses
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.data.schemas import CANDIDATES_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from rlhf.errors import ModelError, WorkerFailed
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.remote_judge import RemoteJudge
from tests.serving import Server
from tests.stage_runner import make_job, run_here
from tests.tiny import tiny_reward_model

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # heads of 32, as vLLM wants on CPU
MAX_TOKENS = 512


def items(num):
    """Several responses to each prompt, of many lengths, some the same."""
    made = []
    for i in range(num):
        messages = [{"role": "user", "content": f"question {i // 4} " + "about this and that " * (i // 4)}]
        made.append((messages, f"{'yes ' * (1 + 40 * i // num)}{i % 4 // 2}"))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    started = Server(str(folder / "judge"), folder / "log", MAX_TOKENS)  # its imports take longest
    try:
        tiny_reward_model(folder / "judge", seed=3, **SHAPE)
        started.tell("start")  # and no waiting: the judge does that
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def path(server):
    return server.path


def test_scores_are_those_of_the_classifier(server, path):
    pairs = items(48)
    remote = RemoteJudge(path, server.url, max_tokens=MAX_TOKENS, batch_tokens=600, retry_seconds=120)
    assert server.is_up()
    scored, expected = remote.score(pairs), ClassifierJudge(path, max_tokens=MAX_TOKENS).score(pairs)
    assert scored.scores == pytest.approx(expected.scores, abs=1e-4)
    assert (
        max(scored.scores) - min(scored.scores) > 1e-2 and min(scored.scores) < 0
    )  # and not through a sigmoid
    long = [([{"role": "user", "content": "q"}], "abcdefghij " * 300)]
    cut, expected = remote.score(long), ClassifierJudge(path, max_tokens=MAX_TOKENS).score(long)
    assert cut.num_truncated == expected.num_truncated == 1
    assert cut.scores == pytest.approx(expected.scores, abs=1e-4)


def test_what_the_server_refuses_is_told_with_its_own_words(server, path):
    long = [([{"role": "user", "content": "q"}], "abcdefghij " * 300)]
    remote = RemoteJudge(path, server.url + "/", max_tokens=4096, retry_seconds=120)
    with pytest.raises(
        ModelError, match=r"(?s)HTTP 400.*maximum context length is 512.*score\.max_tokens=4096"
    ):
        remote.score(long)
    with pytest.raises(ModelError, match=r"(?s)HTTP 404.*base URL \(no /v1\)"):
        RemoteJudge(path, server.url + "/v1", retry_seconds=120).score(items(2))


def candidates(folder, pairs, per_shard):
    folder.mkdir()
    sampled = {"token_ids": [], "finish_reason": "stop", "logprob": 0.0, "seed": 0, "temperature": 1.0}
    for index, start in enumerate(range(0, len(pairs), per_shard)):
        rows = []
        for number, (messages, text) in enumerate(pairs[start : start + per_shard], start):
            row = {
                "id": f"{number}",
                "messages": messages,
                "prompt_token_ids": [],
                "candidates": [{"text": text}],
            }
            row["candidates"][0] |= sampled
            rows.append(row)
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, rows)
    return folder


def score_job(path, pairs, folder, url, per_shard, **extra):
    inputs = {"candidates": candidates(folder / "candidates", pairs, per_shard), "judge": Path(path)}
    settings = {"url": url, "rule": None, "max_tokens": MAX_TOKENS} | extra
    return make_job("score", Config().score, inputs, folder / "out", **settings)


def test_nothing_is_lost_when_the_server_restarts_half_way(server, path, tmp_path, monkeypatch, capsys):
    pairs = items(120)
    answered, half_way, restarted = [], threading.Event(), threading.Event()
    ask = RemoteJudge._ask

    def counting(judge, rows):
        scores = ask(judge, rows)
        answered.append(rows)
        if len(answered) == 45:  # of the second shard's
            half_way.set()
        return scores

    def restart():
        half_way.wait(120)
        server.tell("kill")
        time.sleep(0.5)
        server.tell("start")
        restarted.set()

    monkeypatch.setattr(RemoteJudge, "_ask", counting)
    killer = threading.Thread(target=restart)
    killer.start()
    one_by_one = {"batch_tokens": 1, "concurrency": 2, "retry_seconds": 120.0}
    job = score_job(path, pairs, tmp_path, server.url, per_shard=40, **one_by_one)
    outcome = run_here(job)
    killer.join()
    assert outcome.counts == {} and restarted.is_set()
    assert "/classify: " in capsys.readouterr().out  # requests did fail meanwhile
    scores = [score for row in read_all_rows(job.out_path) for score in row["scores"]]
    expected = ClassifierJudge(path, max_tokens=MAX_TOKENS).score(pairs).scores
    assert scores == pytest.approx(expected, abs=1e-4)
    shards = [pairs[start : start + 40] for start in (0, 40, 80)]
    distinct = sum(len({(messages[0]["content"], text) for messages, text in shard}) for shard in shards)
    assert len(answered) == distinct < len(pairs)  # an answer that was there is not asked for again


@contextmanager
def stand_in(behave=None):
    """A server that scores a conversation by its length; `behave(number)` says what request `number` gets
    instead."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(200, b"")

        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
            with lock:
                number = len(asked)
                asked.append(rows)
                now.append(None)
                most.append(len(now))
            time.sleep(0.02)
            instead = behave(number) if behave else None
            data = [{"index": i, "probs": [len(row) / 8]} for i, row in enumerate(rows)]
            with lock:
                now.pop()
            self.answer(*(instead or (200, json.dumps({"data": data[::-1]}).encode())))

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    lock, asked, now, most = threading.Lock(), [], [], []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.asked, httpd.most, httpd.url = asked, most, f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()


def test_passing_troubles_pass(path):
    troubles = {0: (500, b"engine died"), 2: (429, b"too many"), 3: (503, b"loading")}
    with stand_in(troubles.get) as httpd:
        scores = RemoteJudge(path, httpd.url, batch_tokens=600).score(items(24)).scores
        assert len(httpd.asked) > len(troubles) + 2
    with stand_in() as httpd:
        assert scores == RemoteJudge(path, httpd.url, batch_tokens=10**6).score(items(24)).scores
        assert len(httpd.asked) == 1


def test_so_many_requests_are_on_their_way_and_no_more(path):
    with stand_in() as httpd:
        RemoteJudge(path, httpd.url, batch_tokens=1, concurrency=3).score(items(48))
        assert max(httpd.most) == 3


def test_a_slow_answer_is_asked_for_again(path):
    with stand_in(lambda number: time.sleep(1) if number == 0 else None) as httpd:
        started = time.monotonic()
        RemoteJudge(path, httpd.url, timeout_seconds=0.2).score(items(2))
        assert time.monotonic() - started < 1 and len(httpd.asked) == 2


def test_a_server_that_stays_down_is_given_up_and_named(path):
    with stand_in(lambda number: (500, b"engine died") if number else None) as httpd:
        judge = RemoteJudge(path, httpd.url, batch_tokens=1, retry_seconds=0.6)
        started = time.monotonic()
        with pytest.raises(
            WorkerFailed, match=r"(?s)HTTP 500: engine died.*same command.*score\.retry_seconds=0\.6"
        ):
            judge.score(items(24))
        assert time.monotonic() - started < 3
    with pytest.raises(WorkerFailed, match=r"/health: still no answer.*ConnectError.*reward_model\.url"):
        RemoteJudge(path, httpd.url, retry_seconds=0.1)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>welcome</html>", r"answered no list of scores .*welcome"),
        (200, b'{"data": 5}', "answered no list of scores"),
        (200, b'{"data": [{"index": 0, "probs": [0.5]}]}', "answered 1 scores for 2 conversations"),
        (
            200,
            b'{"data": [{"index": 0, "probs": [1, 2]}, {"index": 1, "probs": [1, 2]}]}',
            "else than one number",
        ),
        (
            200,
            b'{"data": [{"index": 0, "probs": ["x"]}, {"index": 1, "probs": [1]}]}',
            "else than one number",
        ),
        (400, b"your input is bad", "HTTP 400: your input is bad"),
        (301, b"moved", "HTTP 301: moved"),
    ],
)
def test_a_wrong_answer_is_refused_at_once(path, status, body, said):
    with stand_in(lambda number: (status, body)) as httpd:
        with pytest.raises(ModelError, match=said):
            RemoteJudge(path, httpd.url).score([items(24)[0], items(24)[2]])
        assert len(httpd.asked) == 1


def test_a_refusal_does_not_wait_for_what_is_tried_again(path):
    with stand_in(lambda number: (500, b"down") if number else (400, b"bad")) as httpd:
        started = time.monotonic()
        with pytest.raises(ModelError, match="bad"):
            RemoteJudge(path, httpd.url, batch_tokens=1, retry_seconds=60).score(items(24))
        assert time.monotonic() - started < 3


def test_the_same_command_goes_on_where_the_server_failed_for_good(path, tmp_path):
    pairs = items(96)
    whole = {"retry_seconds": 0.3, "batch_tokens": 10**6}
    with stand_in(lambda number: (503, b"gone") if number else None) as httpd:
        job = score_job(path, pairs, tmp_path, httpd.url, per_shard=32, **whole)
        with pytest.raises(WorkerFailed, match="HTTP 503: gone"):
            run_here(job)
    assert [file.name for file in job.out_path.glob("shard_*")] == [shard_name(0)]
    with stand_in() as httpd:
        run_here(dataclasses.replace(job, config=dataclasses.replace(job.config, url=httpd.url)))
        assert len(httpd.asked) == 2  # the first shard was kept
        expected = RemoteJudge(path, httpd.url, max_tokens=MAX_TOKENS).score(pairs).scores
    assert [score for row in read_all_rows(job.out_path) for score in row["scores"]] == expected
