"""A Bradley-Terry reward model behind vLLM's HTTP server (`vllm serve MODEL --runner pooling`)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import httpx
from transformers import AutoConfig

from rlhf.chat import load_tokenizer
from rlhf.errors import ModelError, WorkerFailed
from rlhf.records import Message
from rlhf.scoring.classifier import read_items, require_one_logit, token_batches
from rlhf.scoring.judge import Scored

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 2.0
_SHOWN_CHARS = 400
"""How much of a server's answer an error quotes."""


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
        require_one_logit(path, AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
        self._tokenizer = load_tokenizer(path, trust_remote_code)
        self._url, self._max_tokens, self._batch_tokens = url.rstrip("/"), max_tokens, batch_tokens
        self._concurrency, self._timeout_seconds, self._retry_seconds = concurrency, timeout_seconds, retry_seconds
        self._given_up = Event()
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(timeout=timeout_seconds, limits=limits)
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
                f"{self._url}/classify: HTTP {answer.status_code}: {answer.text[:_SHOWN_CHARS]}\n"
                "reward_model.url must be the base URL (no /v1) of a server started with `vllm serve MODEL --runner "
                f"pooling`; if it is about length, lower score.max_tokens={self._max_tokens} or raise the server's "
                "--max-model-len."
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
                answer = self._client.request(method, self._url + path, json=body)
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    return answer
                trouble = f"HTTP {answer.status_code}: {answer.text[:_SHOWN_CHARS]}"
            except httpx.RequestError as error:
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

    def _garbage(self, answer: httpx.Response, what: str) -> ModelError:
        return ModelError(
            f"{self._url}/classify answered {what}: {answer.text[:_SHOWN_CHARS]}\nServe a reward model with one label "
            "by `vllm serve MODEL --runner pooling`, and give its base URL as reward_model.url."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
