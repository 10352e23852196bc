"""Whether a generative judge answers in a form that can be read: its template, and one request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf.config.choices import JudgeKind
from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerativeStage
from rlhf.data.judge_files import Unread, judge_file
from rlhf.data.records import Message
from rlhf.errors import WorkerFailed
from rlhf.loop.judges import training_judge_config
from rlhf.preflight.findings import Finding, Level, finding

_ANSWERS = ("It is 4.", "I do not know.")
_SECONDS = 5.0
"""For which a look tries a server again."""
_SHOWN_CHARS = 120


def generative_judge(cfg: Config, prompts: list[list[Message]], asks: bool) -> Iterator[Finding]:
    """The judge's template, and with `asks` one answer of its server, on a prompt of the run.

    Raises:
        ConfigError: the template, or the variable with the key, is wrong.
        ModelError: the server refuses the request.
    """
    if cfg.reward_model.kind is not JudgeKind.generative:
        return
    config = training_judge_config(cfg)
    assert isinstance(config, GenerativeStage), "that is its kind"
    file = judge_file(config.judge_file)
    what = "two responses are compared, in both orders" if file.compares else "one response is scored"
    template = cfg.reward_model.generative.template
    yield finding(True, f"reward_model.generative.template={template}: {what}")
    if config.url is None or not asks:
        return
    from rlhf.scoring.asking import Answer
    from rlhf.scoring.chat_server import ChatServer

    prompt = prompts[0] if prompts else [{"role": "user", "content": "How much is 2 + 2?"}]
    responses = _ANSWERS if file.compares else _ANSWERS[:1]
    answers: list[Answer] = []
    try:
        server = ChatServer(replace(config, retry_seconds=_SECONDS))
        server.ask([file.messages(prompt, *responses)], lambda number, answer: answers.append(answer))
    except WorkerFailed as error:
        # Never more than a warning: it may be started while the run samples.
        yield Finding(Level.warning, f"reward_model.url={config.url}: does not answer", str(error))
        return
    text = answers[0].text
    value = file.read(text, was_cut=answers[0].finish_reason == "length")
    shown = repr(text[-_SHOWN_CHARS:])
    if isinstance(value, Unread):
        text = f"{config.served_model} answers {shown}, which gives no number ({value.value})"
        yield finding(False, text, "Such answers are left out and counted. Look at the template's pattern.")
        return
    yield finding(True, f"{config.served_model} answers {shown}: {value:g}")
