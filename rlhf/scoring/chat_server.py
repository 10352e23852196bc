"""A language model behind an OpenAI-compatible server, asked for answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf.config.choices import ChatApi
from rlhf.config.stage_configs import GenerativeStage
from rlhf.data.json_text import json_text
from rlhf.data.records import Message
from rlhf.errors import ConfigError, ModelError, WorkerFailed, one_line
from rlhf.run.output import show
from rlhf.scoring.asking import Answer, Answered, answer_told
from rlhf.scoring.at_once import AtOnce, Clock
from rlhf.scoring.servers import API_KEY, key_in, may_pass, quoted

# The pause doubles from the first to the longest, unless the server asks for a longer one.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_LARGEST_ANSWER = 16 * 2**20
"""Bytes, after decompression."""
_MOST_DIGITS = 1000
"""Of a whole number in an answer."""
PATHS = {ChatApi.chat: "/chat/completions", ChatApi.completions: "/completions"}


def endpoint(url: str, api: ChatApi) -> str:
    """Where requests go: a base URL without a path is that of a server whose API lies under /v1."""
    base = url.rstrip("/")
    if not re.search(r"://[^/]+/", base):
        base += "/v1"
    return base + PATHS[api]


class ChatServer:
    """Sends every question as a request of its own, `score.concurrency` at once.

    What may pass (no connection, silence for `score.timeout_seconds`, HTTP 408, 429, 5xx) is tried again,
    for as long as the server has answered anything within `score.retry_seconds`. `Retry-After` holds for all
    requests: who is told to wait lets nobody else try meanwhile.

    Raises:
        ConfigError: the variable that is to hold the key does not.
    """

    def __init__(self, config: GenerativeStage, clock: Clock | None = None) -> None:
        assert config.url is not None, "checked with the config"
        self._config = config
        self._url = endpoint(config.url, config.api)
        variable = config.api_key_variable or API_KEY
        self._key = key_in(variable)
        if config.api_key_variable and not self._key:
            raise ConfigError(
                f"reward_model.generative.api_key_variable={variable}: the environment has "
                "no such variable, or "
                f"it is empty. Set it: export {variable}=…, or take the setting out for a "
                "server without keys."
            )
        self._clock = clock or Clock()
        self._calls = AtOnce(config.concurrency)
        self._not_before = 0.0
        self._answered_at = 0.0
        self._has_told = False

    def ask(self, questions: Sequence[list[Message]], answered: Answered) -> None:
        """Each question once, those that fail again (see `rlhf.scoring.asking.Asker`).

        Raises:
            ModelError: the server refuses a request, or answers something else than a completion.
            WorkerFailed: it has answered nothing for `score.retry_seconds`.
        """
        # Between two shards nobody was asked, so that silence begins now.
        self._answered_at = self._clock.now()
        concurrency = self._config.concurrency
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client: list[httpx.AsyncClient] = []

        async def call(number: int) -> Answer:
            # Made where the event loop runs, which its connections belong to.
            if not client:
                client.append(
                    httpx.AsyncClient(timeout=self._config.timeout_seconds, limits=limits, headers=headers)
                )
            return await self._insist(client[0], self._body(questions[number]))

        async def close(_: int) -> None:
            for each in client:
                await each.aclose()

        try:
            self._calls.run(call, range(len(questions)), answered)
        finally:
            self._calls.run(close, [0], lambda number, result: None)

    def _body(self, messages: list[Message]) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {"model": config.served_model}
        if config.api is ChatApi.chat:
            body["messages"] = messages
        else:
            body["prompt"] = "\n\n".join(message["content"] for message in messages)
        body |= {"temperature": config.temperature, "max_tokens": config.max_new_tokens}
        body |= config.body or {}
        # null takes a key away: some servers refuse temperature, or call max_tokens otherwise.
        return {key: value for key, value in body.items() if value is not None}

    async def _insist(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
        """The first answer that is not a passing trouble."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            # Again after each pause: meanwhile another request may have been told to wait longer.
            wait = self._not_before - self._clock.now()
            while wait > 0 and not self._calls.given_up.is_set():
                await self._clock.sleep(wait, self._calls.given_up)
                wait = self._not_before - self._clock.now()
            told = 0.0
            try:
                response = await self._request(client, body)
                if not may_pass(response.status_code):
                    self._answered_at = self._clock.now()
                    return self._answer(response)
                trouble = f"HTTP {response.status_code}: {quoted(response.text, self._key)}"
                told = retry_after(response.headers.get("retry-after")) or 0.0
            except httpx.RequestError as error:
                # A refused certificate is a connection error like others, but waiting mends none.
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise ModelError(
                        f"{self._url}: the server's certificate is not to be trusted "
                        f"({one_line(error)}). Name "
                        "the authority that signed it in SSL_CERT_FILE (environment), or give the server "
                        "another certificate."
                    ) from error
                trouble = f"{type(error).__name__}: {one_line(error)}"
            if not self._has_told:
                self._has_told = True
                show(f"{self._url}: {trouble}; such requests are tried again")
            self._require_patience(trouble, max(told, pause))
            self._not_before = max(self._not_before, self._clock.now() + told)
            # A server that says "at once" again and again is still left alone for longer and longer.
            if told < pause:
                await self._clock.sleep(pause, self._calls.given_up)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _require_patience(self, trouble: str, pause: float) -> None:
        """Raise WorkerFailed where a pause would end after `score.retry_seconds` without any answer."""
        patience = self._config.retry_seconds
        silent = self._clock.now() - self._answered_at
        if silent + pause <= patience and not self._calls.given_up.is_set():
            return
        raise WorkerFailed(
            f"{self._url}: no answer for {silent:.0f} s, and the next attempt would be in "
            f"{pause:.0f} s; the last "
            f"one: {trouble}. All answers that came are kept: the same command goes on with "
            "the rest. Start the "
            "server (or name it in reward_model.url), raise "
            f"score.retry_seconds={patience:g}, or ask less at "
            f"once (score.concurrency={self._config.concurrency}); if it is only slow, raise "
            f"score.timeout_seconds={self._config.timeout_seconds:g}."
        )

    async def _request(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """One answer, of limited size; redirects are not followed."""
        # As a stream: a small compressed answer can unpack to more than memory holds.
        async with client.stream("POST", self._url, json=body) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _LARGEST_ANSWER:
                    raise ModelError(
                        f"{self._url} answered more than {_LARGEST_ANSWER >> 20} MiB. Look "
                        "at what runs there, "
                        "or name another server in reward_model.url."
                    )
            # Without what says how it was packed, for it is unpacked.
            headers = {}
            for name in ("retry-after", "location"):
                if name in response.headers:
                    headers[name] = response.headers[name]
            return httpx.Response(response.status_code, content=bytes(content), headers=headers)

    def _answer(self, response: httpx.Response) -> Answer:
        if response.status_code != 200:
            raise ModelError(self._refusal(response))
        try:
            document = json.loads(response.content, parse_int=_whole_number)
            told = _error_in(document)
            if told is None:
                return _completion(document)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{self._url} answered no completion ({type(error).__name__}: {one_line(error)}): "
                f"{quoted(response.text, self._key)}\nreward_model.url must be the base URL of an "
                "OpenAI-compatible server, and reward_model.generative.api what it offers there."
            ) from error
        raise ModelError(
            f"{self._url}: HTTP 200, and an error in place of an answer: {quoted(told, self._key)}\n"
            f"{self._way_out_of_error()} If it may pass, the same command goes on with the rest. "
            "All answers that came are kept."
        )

    def _refusal(self, response: httpx.Response) -> str:
        return (
            f"{self._url}: HTTP {response.status_code}: {quoted(response.text, self._key)}\n"
            f"{self._way_out(response)} All answers that came are kept."
        )

    def _way_out(self, response: httpx.Response) -> str:
        status = response.status_code
        config = self._config
        if status in (401, 403):
            return f"The key stands in the environment variable {config.api_key_variable or API_KEY}; set it."
        if status in (404, 405):
            return (
                "Is reward_model.url its base URL (such as http://127.0.0.1:8000 or https://HOST/v1), and "
                f"reward_model.generative.model={config.served_model} a model that it has?"
            )
        if status < 300:
            return (
                "A completion comes with HTTP 200. Look at what runs there, or name the base URL of an "
                "OpenAI-compatible server in reward_model.url."
            )
        if status < 400:
            place = quoted(response.headers.get("location", "a place that it does not name"), self._key)
            return (
                f"It sends its callers on, to {place}, and no redirect is followed, since a key would go "
                "along. Name the base URL of the server that answers itself in reward_model.url."
            )
        return self._way_out_of_error()

    def _way_out_of_error(self) -> str:
        return (
            "If it is about length, lower generate.max_new_tokens or reward_model.generative.max_new_tokens="
            f"{self._config.max_new_tokens}, or raise the server's limit; if about a parameter, "
            "change or remove it with reward_model.generative.body={name: null}."
        )


def _error_in(document: Any) -> str | None:
    """The message of an error that came in place of choices; None where there is no such error."""
    if not isinstance(document, dict) or not document.get("error") or document.get("choices"):
        return None
    error = document["error"]
    if isinstance(error, dict) and error.get("message"):
        error = error["message"]
    return error if isinstance(error, str) else json_text(error)


def _completion(document: Any) -> Answer:
    """The answer in a completion; an empty one where the model has said nothing, or called a tool.

    Raises:
        LookupError, TypeError, AttributeError: it is none.
    """
    # Null, or none of them, where a filter or a limit took the answer away.
    choices = document["choices"] or []
    if not isinstance(choices, list):
        raise TypeError("choices is no list")
    choice = (choices[0] if choices else None) or {}
    message = choice.get("message")
    content = choice.get("text") if message is None else message.get("content")
    usage = document.get("usage")
    # An answer is no less good for figures that nobody can read.
    if not isinstance(usage, dict):
        usage = {}
    return answer_told(
        _text_of(content),
        str(choice.get("finish_reason") or ""),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
    )


def _text_of(content: Any) -> str:
    """The text of a content, of which some servers make a list of parts; "" for null.

    Example:
        [{"type": "text", "text": "Rating: 5"}] gives "Rating: 5"
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError("the content is no text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        # Other parts are pictures, sound, or a refusal.
        if isinstance(text, str):
            texts.append(text)
    return "".join(texts)


def _whole_number(digits: str) -> int | None:
    """A whole number of JSON; None for one so long that Python refuses to read it."""
    return int(digits) if len(digits) < _MOST_DIGITS else None


def retry_after(header: str | None) -> float | None:
    """Seconds that a server asks for, by a number of them or a date; None where it says nothing readable."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    # A year of twenty digits is more than a date holds.
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
