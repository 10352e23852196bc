"""Chat templates as programs of others: applied under a time limit, and their errors as ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.errors import TemplateHangs, TemplateRefuses, one_line

Messages = Sequence[Mapping[str, str]]
TODAY = date(2024, 7, 26)
"""What a template that writes the date is told: equal work must give equal bytes on another day too
(the fixed date of Llama 3.1's template)."""
TIME_LIMIT_SECONDS = 10.0
"""A conversation is rendered in milliseconds: a template that runs for so long has a loop without an end."""
# Jinja's name of the file that a template from a string was compiled of.
_TEMPLATE_FILE = "<template>"


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool,
    tokenize: bool,
) -> Any:
    """What the chat template makes of a conversation: token ids, or with `tokenize` false the text.

    Raises:
        TemplateRefuses: it takes no such conversation.
        TemplateHangs: it does not come to an end.
    """
    try:
        with _time_limit(tokenizer.name_or_path):
            return tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=tokenize,
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                strftime_now=TODAY.strftime,
            )
    except TemplateHangs:
        raise
    # Jinja templates raise whatever their author chose.
    except Exception as error:
        roles = [message["role"] for message in messages]
        raise TemplateRefuses(
            f"{tokenizer.name_or_path}: the chat template refuses a conversation with roles "
            f"{roles}: {one_line(error)}. Take such turns out of the data, use a model whose template takes "
            "them, or change the template in a copy of the model's folder (for instance so that "
            "it writes the system turn into the first user turn)."
        ) from error


@contextmanager
def _time_limit(name: str) -> Iterator[None]:
    """Raise TemplateHangs out of a template that runs for longer than `TIME_LIMIT_SECONDS`."""
    # Python hands signals to the main thread alone; stages and the preflight render there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: Any) -> None:
        # Tokenizing a very long text may take its time too, and comes to an end.
        if not _is_in_template(frame):
            return
        raise TemplateHangs(
            f"{name}: the chat template is still at work on one conversation after "
            f"{TIME_LIMIT_SECONDS:g} s, so it has a loop that does not end. Mend it in a copy of the "
            "model's folder (chat_template.jinja, or chat_template in tokenizer_config.json), or use "
            "another model."
        )

    previous = signal.signal(signal.SIGALRM, stop)
    # Again every second: what is raised within a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _is_in_template(frame: Any) -> bool:
    """Whether the code of a template is being run: in this frame, or in one that waits for it."""
    while frame is not None:
        if frame.f_code.co_filename == _TEMPLATE_FILE:
            return True
        frame = frame.f_back
    return False


def probe(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """The shortest prompt for a look at a template: a user turn, behind a system turn where it demands one.

    Example:
        [{"role": "user", "content": "a"}]
    """
    question = {"role": "user", "content": "a"}
    try:
        apply(tokenizer, [question], add_generation_prompt=True, tokenize=False)
    except TemplateRefuses:
        with_system = [{"role": "system", "content": "s"}, question]
        try:
            apply(tokenizer, with_system, add_generation_prompt=True, tokenize=False)
        except TemplateRefuses:
            # It takes neither; the refusal of the plain one says more.
            return [question]
        return with_system
    return [question]
