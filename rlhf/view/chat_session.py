"""A conversation with several policies at once, without the models: histories, commands, what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.data.records import Message
from rlhf.errors import ConfigError, UserError

HELP = """\
/new               forget the conversation
/undo              take the last question and its answers back
/again             answer the last question once more, with another seed
/temperature 0.7   of sampling; 0 is greedy
/max 200           tokens of an answer before it is cut
/seed 7            source of the next answers' draws
/save FILE         write the conversations to FILE, a JSON object a line (FILE must not exist)
/exit              leave (so does Ctrl-D)
//…                a message that begins with a slash
Ctrl-C ends an answer; what has come is kept. A pasted text of several lines is one message."""


@dataclass(frozen=True)
class Answer:
    """What a policy said; `scores` by judge, None where a judge had none to give.

    `finish_reason` is `stop`, `length` (cut at the limit) or `interrupted`.
    """

    text: str
    num_tokens: int
    finish_reason: str
    scores: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Session:
    """What is set and what was said; each policy sees the questions and its own answers.

    Attributes:
        names: of the policies, such as "π0" and "π3".
        temperature: of sampling, 0 or more.
        max_new_tokens: of an answer.
        seed: of the next answers.
        questions: of the person, in order.
        answers: of each policy to each of them.
    """

    names: Sequence[str]
    temperature: float
    max_new_tokens: int
    seed: int
    questions: list[str] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            self.answers[name] = []

    def messages_of(self, name: str, question: str) -> list[Message]:
        """The conversation that a policy is to answer, which ends with a question."""
        messages: list[Message] = []
        for asked, answer in zip(self.questions, self.answers[name], strict=True):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answer.text})
        messages.append({"role": "user", "content": question})
        return messages

    def add(self, question: str, answers: dict[str, Answer]) -> None:
        """Keep a question with everybody's answer."""
        self.questions.append(question)
        for name in self.names:
            self.answers[name].append(answers[name])

    def undo(self) -> tuple[str, dict[str, Answer]] | None:
        """Take back the last question and everybody's answers, which are given; None where there are none."""
        if not self.questions:
            return None
        answers = {name: self.answers[name].pop() for name in self.names}
        return self.questions.pop(), answers

    def forget(self) -> None:
        """Begin anew."""
        while self.undo() is not None:
            pass

    def records(self) -> list[dict[str, Any]]:
        """A row for each policy.

        Example:
            {"policy": "π3", "messages": [{…}, {…}], "answers": [{"text": "4.", "num_tokens": 3,
             "finish_reason": "stop", "scores": {"judge": 1.2}}]}
        """
        rows = []
        for name in self.names:
            messages: list[Message] = []
            for asked, answer in zip(self.questions, self.answers[name], strict=True):
                messages.append({"role": "user", "content": asked})
                messages.append({"role": "assistant", "content": answer.text})
            rows.append(
                {
                    "policy": name,
                    "messages": messages,
                    "answers": [vars(answer) for answer in self.answers[name]],
                }
            )
        return rows

    def save(self, path: Path) -> None:
        """Write `records`, one a line.

        Raises:
            UserError: there is a file of that name already.
        """
        lines = [json_text(row, ascii_only=False) for row in self.records()]
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except FileExistsError:
            raise UserError(f"/save {path}: it exists, and nothing is written over it.") from None
        except OSError as error:
            raise UserError(f"/save {path}: {error.strerror}.") from None


@dataclass(frozen=True)
class Command:
    """What a line asks for: `say` a text to the policies, `exit`, or nothing but to `read` a text.

    `before` are the answers that new ones are to replace.
    """

    kind: str
    text: str = ""
    before: dict[str, Answer] | None = None


def obeyed(session: Session, line: str) -> Command:
    """Do what a line says, as far as no model is needed for it.

    Raises:
        UserError: it begins with a slash and is no command, or its value is impossible.
    """
    if not line.startswith("/") or line.startswith("//"):
        return Command("say", line[1:] if line.startswith("//") else line)
    word, _, value = line.strip().partition(" ")
    value = value.strip()
    if word in ("/exit", "/quit", "/bye"):
        return Command("exit")
    if word in ("/help", "/?"):
        return Command("read", HELP)
    if word in ("/new", "/clear"):
        session.forget()
        return Command("read", "(a new conversation)")
    if word == "/undo":
        undone = session.undo()
        return Command("read", "(nothing to take back)" if undone is None else f"(taken back: {undone[0]})")
    if word == "/again":
        undone = session.undo()
        if undone is None:
            return Command("read", "(nothing was asked yet)")
        session.seed += 1
        return Command("say", *undone)
    if word == "/save":
        if not value:
            raise UserError("/save: name a file, as in /save talk.jsonl.")
        session.save(Path(value).expanduser())
        return Command("read", f"(written to {value})")
    return Command("read", _set(session, word, value))


def _set(session: Session, word: str, value: str) -> str:
    """Change a setting; the line that says so."""
    if word == "/temperature":
        session.temperature = _number(word, value, float, least=0.0)
        return f"(temperature {session.temperature:g})"
    if word == "/max":
        session.max_new_tokens = _number(word, value, int, least=1)
        return f"(answers of at most {session.max_new_tokens} tokens)"
    if word == "/seed":
        session.seed = _number(word, value, int, least=0)
        return f"(seed {session.seed})"
    raise UserError(f"{word}: no such command. /help lists them; a message may begin with //.")


def _number(word: str, value: str, kind: Any, least: float) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = None
    # NaN is neither above nor below; infinity is no temperature.
    if number is None or not least <= number < 2**31:
        raise UserError(f"{word} {value}: a number of at least {least:g} is wanted.")
    return number


def chosen_iterations(
    iterations: Any, there: Sequence[int], best: int | None, not_there: Mapping[int, str]
) -> list[int]:
    """Whom to talk to.

    Args:
        iterations: what a person typed: a number, a list of them, or None for the best one.
        there: the iterates that are finished, in order.
        best: the best one; None where the run has not come so far, and the last one stands in.
        not_there: of iterates that are not, why.

    Raises:
        ConfigError: there is none, or not that one.
    """
    shown = ", ".join(map(str, there)) or "none"
    if iterations is None:
        if best is None and there:
            return [there[-1]]
        if best is not None and best in there:
            return [best]
        reason = not_there.get(best, "its folder is gone") if best is not None else "it is not known"
        raise ConfigError(
            f"The best iterate of this run, {best}, is not there: {reason}. It has {shown}; name one, as in "
            "iterations=[0]."
        )
    wanted = iterations if isinstance(iterations, list) else [iterations]
    if not wanted or any(isinstance(number, bool) or not isinstance(number, int) for number in wanted):
        raise ConfigError(
            f"iterations={iterations}: numbers are wanted, as in iterations=[0,{there[-1]}]; it has {shown}."
        )
    for number in wanted:
        if number not in there:
            why = f" ({not_there[number]})" if number in not_there else ""
            raise ConfigError(
                f"iterations={iterations}: this run has no iterate {number} that can be loaded{why}; it "
                f"has {shown}."
            )
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"iterations={iterations}: each one once, please; this run has {shown}.")
    return list(wanted)
