"""A Bradley-Terry reward model behind vLLM's HTTP server (`vllm serve MODEL --runner pooling`)."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import httpx

from rlhf.data.records import Message
from rlhf.errors import ConfigError, ModelError, WorkerFailed, printable
from rlhf.models.chat import load_tokenizer
from rlhf.models.folder import load_config
from rlhf.scoring.classifier_judge import read_items, require_one_logit, token_batches
from rlhf.scoring.judge import Scored

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 2.0
_SHOWN_CHARS = 400
"""How much of a server's answer an error quotes."""
_LARGEST_ANSWER = 64 * 2**20
"""Bytes, after decompression; 16384 scores take 2 MB."""
API_KEY = "RLHF_JUDGE_API_KEY"
"""The environment variable with the server's key, sent as a bearer token and written nowhere."""


class RemoteJudge:
    """Sends the token ids that `ClassifierJudge` reads to `/classify`, asks for raw logits.

    The tokenizer and chat template are those of the local folder `path`. A request holds at most `batch_tokens`
    padded tokens, and `concurrency` requests are on their way at once. What may pass (no connection, no answer in
    `timeout_seconds`, HTTP 408, 429, 5xx) is tried again for `retry_seconds`; answered requests are never asked again.

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
        batch_tokens: int = 16384,
        trust_remote_code: bool = False,
        concurrency: int = 8,
        timeout_seconds: float = 120,
        retry_seconds: float = 600,
    ) -> None:
        require_one_logit(path, load_config(path, trust_remote_code))
        self._tokenizer = load_tokenizer(path, trust_remote_code)
        self._url, self._max_tokens, self._batch_tokens = url.rstrip("/"), max_tokens, batch_tokens
        self._concurrency, self._timeout_seconds, self._retry_seconds = concurrency, timeout_seconds, retry_seconds
        self._given_up = Event()
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._key = os.environ.get(API_KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigError(f"{API_KEY}: holds characters that no HTTP header takes. Set the variable anew.")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(timeout=timeout_seconds, limits=limits, headers=headers)
        weakref.finalize(self, self._client.close)
        self._insist("GET", "/health")  # 404 is fine: not every server has it

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """Raw logits (see `rlhf.scoring.judge.Judge`).

        Raises:
            ModelError: the server refuses a request, or answers something else than one number per conversation.
            WorkerFailed: a request has failed for `retry_seconds`.
        """
        kept, num_truncated = read_items(self._tokenizer, items, self._max_tokens)
        distinct = list(dict.fromkeys(kept))
        batches = [
            [distinct[i] for i in batch] for batch in token_batches([len(ids) for ids in distinct], self._batch_tokens)
        ]
        self._given_up.clear()
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked: list[Future[list[float]]] = [pool.submit(self._ask, rows) for rows in batches]
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            self._given_up.set()  # one request that fails for good ends the others' attempts
            pool.shutdown(cancel_futures=True)
        for future in done:
            future.result()
        scores: dict[tuple[int, ...], float] = {}
        for rows, future in zip(batches, asked, strict=True):
            scores.update(zip(rows, future.result(), strict=True))
        return Scored([scores[ids] for ids in kept], num_truncated)

    def _ask(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        body = {"input": [list(ids) for ids in rows], "use_activation": False}
        answer = self._insist("POST", "/classify", body)
        if answer.status_code != 200:
            raise ModelError(
                f"{self._url}/classify: HTTP {answer.status_code}: {self._quoted(answer)}\n"
                "reward_model.url must be the base URL (no /v1) of a server started with `vllm serve MODEL --runner "
                f"pooling` (a key that it wants stands in {API_KEY}); if it is about length, lower score.max_tokens="
                f"{self._max_tokens} or raise the server's --max-model-len."
            )
        try:
            found = [each["probs"] for each in sorted(answer.json()["data"], key=lambda each: each["index"])]
        except (ValueError, LookupError, TypeError) as error:
            raise self._garbage(answer, f"no list of scores ({type(error).__name__}: {error})") from error
        if len(found) != len(rows):
            raise self._garbage(answer, f"{len(found)} scores for {len(rows)} conversations")
        if not all(isinstance(each, list) and len(each) == 1 and _is_number(each[0]) for each in found):
            raise self._garbage(answer, "something else than one number for each conversation")
        return [float(each[0]) for each in found]

    def _insist(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The first answer that is not a passing trouble."""
        begun, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = self._request(method, path, body)
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    return answer
                trouble = f"HTTP {answer.status_code}: {self._quoted(answer)}"
            except httpx.RequestError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise ModelError(
                        f"{self._url}: the server's certificate is not to be trusted ({error}). Name the authority "
                        "that signed it in SSL_CERT_FILE (environment), or give the server another certificate."
                    ) from error
                trouble = f"{type(error).__name__}: {error}"
            if pause == _FIRST_PAUSE_SECONDS:
                print(f"{self._url}{path}: {trouble}; tried again for {self._retry_seconds:g} s", flush=True)
            if time.monotonic() - begun + pause > self._retry_seconds or self._given_up.wait(pause):
                raise WorkerFailed(
                    f"{self._url}{path}: still no answer after {time.monotonic() - begun:.0f} s of attempts; the last "
                    f"one: {trouble}. Finished shards are kept: start the server (or name another one in "
                    "reward_model.url) and give the same command again. If it is only slow, raise "
                    f"score.timeout_seconds={self._timeout_seconds:g}, or lower score.batch_tokens or "
                    f"score.concurrency; score.retry_seconds={self._retry_seconds:g} says how long is tried."
                )
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """One answer, of limited size; redirects are not followed."""
        with self._client.stream(method, self._url + path, json=body) as answer:
            found = bytearray()
            for part in answer.iter_bytes():
                found += part
                if len(found) > _LARGEST_ANSWER:
                    raise ModelError(
                        f"{self._url}{path} answered more than {_LARGEST_ANSWER >> 20} MiB, more than scores need. "
                        "Look at what runs there, or name another server in reward_model.url."
                    )
            return httpx.Response(answer.status_code, content=bytes(found))

    def _quoted(self, answer: httpx.Response) -> str:
        """The beginning of an answer in one line, as a log may have it."""
        text = answer.text.replace(self._key or "\0", "***")
        return printable(" ".join(text.split())[:_SHOWN_CHARS])

    def _garbage(self, answer: httpx.Response, what: str) -> ModelError:
        return ModelError(
            f"{self._url}/classify answered {what}: {self._quoted(answer)}\nServe a reward model with one label "
            "by `vllm serve MODEL --runner pooling`, and give its base URL as reward_model.url."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
