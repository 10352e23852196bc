"""Whether what a chat template writes of an answer is the answer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.errors import TemplateChanges, TemplateRefuses
from rlhf.models.special_tokens import text_of
from rlhf.models.template import Messages


def require_written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    turns: Sequence[int],
) -> None:
    """Make sure that the template writes turns of a conversation as they stand, but for outer white space.

    What is trained on would else be another text than the data's: some templates take the reasoning out of
    answers, some trim or lower-case within them.

    Raises:
        TemplateChanges: (a TemplateRefuses) it does not.
        TemplateRefuses: the chat template takes no such conversation.
    """
    whole = text_of(tokenizer, messages, add_generation_prompt=False)
    starts = [_start_of(tokenizer, messages, turn, whole) for turn in turns]
    ends = [*starts[1:], len(whole)]
    for turn, start, end in zip(turns, starts, ends, strict=True):
        content = messages[turn]["content"]
        if isinstance(content, str) and content.strip() not in whole[start:end]:
            raise TemplateChanges(
                f"{tokenizer.name_or_path}: the chat template changes the text of turn {turn + 1}: "
                f"{content.strip()[:200]!r} is not in what it writes there. Take such rows out of the "
                "data, or change the template in a copy of the model's folder so that it writes contents as "
                "they are (some take <think>…</think> out of answers)."
            )


def _start_of(tokenizer: PreTrainedTokenizerBase, messages: Messages, turn: int, whole: str) -> int:
    """Where a turn can begin in the rendered text: behind the turns before it, if these are written alike."""
    if turn == 0:
        return 0
    try:
        before = text_of(tokenizer, messages[:turn], add_generation_prompt=True)
    except TemplateRefuses:
        return 0
    # Some write a system turn into the last user turn: then no place is known.
    return len(before) if whole.startswith(before) else 0
