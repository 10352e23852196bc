"""A Bradley-Terry reward model behind vLLM's HTTP server (`vllm serve MODEL --runner pooling`)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import httpx

from rlhf.config.choices import SpecialTokens
from rlhf.data.records import Message
from rlhf.errors import ModelError, WorkerFailed, one_line
from rlhf.models.batches import bins_by_tokens, unbinned
from rlhf.models.chat_template import load_tokenizer
from rlhf.models.context import judge_context
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.heads import judge_config, require_one_logit
from rlhf.run.output import show
from rlhf.scoring.judge import Scored
from rlhf.scoring.servers import API_KEY, key_in, may_pass, quoted
from rlhf.scoring.token_rows import TokenIds, score_distinct

# The pause doubles from the first to the longest: short hiccups cost little, and a server that
# starts is not flooded.
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 2.0
_LARGEST_ANSWER = 64 * 2**20
"""Bytes, after decompression; 16384 scores take 2 MB."""


class RemoteJudge:
    """Sends the token ids that `ClassifierJudge` reads to `/classify`, asks for raw logits.

    The tokenizer and chat template are those of the local folder `path`. A request holds at most
    `batch_tokens` padded tokens, and `concurrency` requests are on their way at once. What may pass
    (no connection, no answer in `timeout_seconds`, HTTP 408, 429, 5xx) is tried again for
    `retry_seconds`; answered requests are never asked again.

    Source: vLLM 0.32, `vllm/entrypoints/pooling/classify`.

    Raises:
        ModelError: the model in `path` has several labels.
        WorkerFailed: the server does not come up within `retry_seconds`.
    """

    def __init__(
        self,
        path: str,
        url: str,
        max_tokens: int = 4096,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        concurrency: int = 8,
        timeout_seconds: float = 120,
        retry_seconds: float = 600,
        special_tokens: SpecialTokens = SpecialTokens.text,
    ) -> None:
        config = judge_config(path, trust_remote_code)
        require_one_logit(path, config)
        self.context = judge_context(path, config, max_tokens)
        self._tokenizer = load_tokenizer(path, trust_remote_code, special_tokens=special_tokens)
        self._url = url.rstrip("/")
        self._max_tokens = max_tokens
        # Whatever this machine is: the server is taken to have a GPU.
        self._batch_tokens = forward_tokens(batch_tokens, on_gpu=True)
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._given_up = Event()
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._key = key_in()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(timeout=timeout_seconds, limits=limits, headers=headers)
        weakref.finalize(self, self._client.close)
        # Whether anything answers is known before the first shard is rendered. 404 is fine: not
        # every server has it.
        self._insist("GET", "/health")

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Raw logits (see `rlhf.scoring.judge.Judge`).

        Raises:
            ModelError: the server refuses a request, or answers something else than one number per
                conversation.
            WorkerFailed: a request has failed for `retry_seconds`.
        """
        return score_distinct(self._tokenizer, items, self._max_tokens, self._score_rows, self.context)

    def _score_rows(self, rows: list[TokenIds]) -> list[float]:
        bins = bins_by_tokens([len(row) for row in rows], self._batch_tokens)
        self._given_up.clear()
        with ThreadPoolExecutor(self._concurrency) as pool:
            requests = []
            for members in bins:
                batch = [rows[index] for index in members]
                requests.append(pool.submit(self._ask, batch))
            done, _ = wait(requests, return_when=FIRST_EXCEPTION)
            # One request that fails for good ends the others' attempts.
            self._given_up.set()
            pool.shutdown(cancel_futures=True)
        # First those that ended before the attempts were given up: among them is the error that is the cause.
        for request in done:
            request.result()
        return unbinned(bins, [request.result() for request in requests])

    def _ask(self, rows: Sequence[TokenIds]) -> list[float]:
        body = {"input": [list(row) for row in rows], "use_activation": False}
        answer = self._insist("POST", "/classify", body)
        if answer.status_code != 200:
            raise ModelError(
                f"{self._url}/classify: HTTP {answer.status_code}: {self._quoted(answer)}\n"
                "reward_model.url must be the base URL (no /v1) of a server started with `vllm "
                f"serve MODEL --runner pooling` (a key that it wants stands in {API_KEY}); if it "
                f"is about length, lower score.max_tokens={self._max_tokens} or raise the "
                "server's --max-model-len."
            )
        try:
            # By index: nothing promises that results come in the order in which they were asked for.
            results = sorted(answer.json()["data"], key=lambda result: result["index"])
            probs = [result["probs"] for result in results]
        except (ValueError, LookupError, TypeError) as error:
            raise self._garbage(answer, f"no list of scores ({type(error).__name__}: {error})") from error
        if len(probs) != len(rows):
            raise self._garbage(answer, f"{len(probs)} scores for {len(rows)} conversations")
        if not all(_is_one_number(values) for values in probs):
            raise self._garbage(answer, "something else than one number for each conversation")
        return [float(values[0]) for values in probs]

    def _insist(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The first answer that is not a passing trouble."""
        started = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = self._request(method, path, body)
                if not may_pass(answer.status_code):
                    return answer
                trouble = f"HTTP {answer.status_code}: {self._quoted(answer)}"
            except httpx.RequestError as error:
                # A refused certificate is a connection error like others, but waiting mends none.
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise ModelError(
                        f"{self._url}: the server's certificate is not to be trusted ({one_line(error)}). "
                        "Name the authority that signed it in SSL_CERT_FILE (environment), or "
                        "give the server another certificate."
                    ) from error
                trouble = f"{type(error).__name__}: {one_line(error)}"
            if pause == _FIRST_PAUSE_SECONDS:
                show(f"{self._url}{path}: {trouble}; tried again for {self._retry_seconds:g} s")
            waited = time.monotonic() - started
            # The event wakes a waiting request at once when another one has failed for good.
            if waited + pause > self._retry_seconds or self._given_up.wait(pause):
                raise WorkerFailed(
                    f"{self._url}{path}: still no answer after {time.monotonic() - started:.0f} s "
                    f"of attempts; the last one: {trouble}. Finished shards are kept: start the "
                    "server (or name another one in reward_model.url) and give the same command "
                    "again. If it is only slow, raise "
                    f"score.timeout_seconds={self._timeout_seconds:g}, or lower "
                    "score.batch_tokens or score.concurrency; "
                    f"score.retry_seconds={self._retry_seconds:g} says how long is tried."
                )
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """One answer, of limited size; redirects are not followed."""
        # As a stream: a small compressed answer can unpack to more than memory holds.
        with self._client.stream(method, self._url + path, json=body) as answer:
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > _LARGEST_ANSWER:
                    raise ModelError(
                        f"{self._url}{path} answered more than {_LARGEST_ANSWER >> 20} MiB, more "
                        "than scores need. Look at what runs there, or name another server in "
                        "reward_model.url."
                    )
            return httpx.Response(answer.status_code, content=bytes(content))

    def _quoted(self, answer: httpx.Response) -> str:
        """The beginning of an answer in one line, as a log may have it."""
        return quoted(answer.text, self._key)

    def _garbage(self, answer: httpx.Response, what: str) -> ModelError:
        return ModelError(
            f"{self._url}/classify answered {what}: {self._quoted(answer)}\n"
            "Serve a reward model with one label by `vllm serve MODEL --runner pooling`, and give "
            "its base URL as reward_model.url."
        )


def _is_one_number(values: object) -> bool:
    """Whether this part of an answer is a list of one number."""
    if not isinstance(values, list) or len(values) != 1:
        return False
    # To Python, true and false are whole numbers.
    return isinstance(values[0], int | float) and not isinstance(values[0], bool)
