"""The quickstart's tasks: short string puzzles with one right answer, and the data made of them.

A prompt is a phrasing and an operand, as in `Reverse: a d c`; the answer is what stands before the first full stop of
a response. Everything is drawn from `random.Random`, so that a seed fixes every text. Operands are dealt to the
splits by a hash, so that no operand, in whatever phrasing, is seen in two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rlhf.data.records import Message
from rlhf.errors import ConfigError, DataError

LETTERS = "abcdefghij"
DIGITS = "0123456789"
BAD_ANSWER_SHARE = 0.45
"""Share of the SFT answers that are wrong."""
FLIPPED_SHARE = 0.05
"""Share of the synthetic preferences whose sides are exchanged."""
FILLER_SHARE = 0.2
"""Share of the answers that are followed by a sentence without content."""
FILLERS = ("I hope this helps.", "Let me know.", "Happy to help.")
REFUSALS = ("I cannot help.", "Sorry, I do not know.", "I am not sure.")
SPLITS = {"base": 0.4, "sft": 0.16, "preferences": 0.18, "judge_prompts": 0.1, "prompts": 0.1, "held_out": 0.06}
"""Share of the operands that each set may draw on; no operand is in two sets."""


@dataclass(frozen=True)
class Task:
    """One kind of puzzle: operands of `lengths` symbols out of `symbols`, joined by `separator` in the prompt.

    `base_share` is how often it comes in one round of the pre-training's data: the harder, the more often.
    """

    name: str
    phrasings: tuple[str, ...]
    lengths: tuple[int, ...]
    symbols: str
    separator: str
    base_share: int
    solve: Callable[[str], str]

    def render(self, symbols: str) -> str:
        """Symbols as they stand in prompts and answers."""
        return self.separator.join(symbols)

    def parse(self, text: str) -> str | None:
        """The inverse of `render`; None for a text that is no operand of this task."""
        symbols = "".join(text.split(self.separator)) if self.separator else text
        good = self.render(symbols) == text and len(symbols) in self.lengths and set(symbols) <= set(self.symbols)
        return symbols if good else None


TASKS = (
    Task("upper", ("Upper case: ", "Make capital: "), (3, 4, 5), LETTERS, " ", 2, str.upper),
    Task(
        "ends", ("Last and first: ", "Give last, then first: "), (4, 5, 6, 7), LETTERS, " ", 1, lambda s: s[-1] + s[0]
    ),
    Task("second", ("Every second: ", "Skip each other letter: "), (4, 5, 6, 7), LETTERS, " ", 3, lambda s: s[1::2]),
    Task("reverse", ("Reverse: ", "Write backwards: "), (3, 4), LETTERS, " ", 2, lambda s: s[::-1]),
    Task("sort", ("Sort: ", "From low to high: "), (3, 4), DIGITS, "", 3, lambda s: "".join(sorted(s))),
)


@dataclass(frozen=True)
class Puzzle:
    """One prompt of the world."""

    task: Task
    phrasing: int
    operand: str

    @property
    def prompt(self) -> str:
        """What the user says."""
        return self.task.phrasings[self.phrasing] + self.task.render(self.operand)

    @property
    def answer(self) -> str:
        """The right answer, without its full stop."""
        return self.task.render(self.task.solve(self.operand))

    @property
    def messages(self) -> list[Message]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]


def parse_prompt(text: str) -> Puzzle:
    """The puzzle a prompt states.

    Raises:
        DataError: if the text is none of this world's prompts.
    """
    for task in TASKS:
        for number, phrasing in enumerate(task.phrasings):
            operand = task.parse(text.removeprefix(phrasing)) if text.startswith(phrasing) else None
            if operand is not None:
                return Puzzle(task, number, operand)
    raise DataError(
        f"rlhf.world.tasks: not a prompt of the synthetic world: {text[:200]!r}. "
        "Use this rule only with prompts that the `world` stage wrote, or name another rule or null."
    )


def gold(messages: Sequence[Mapping[str, str]], response: str) -> float:
    """1.0 if the text before the response's first full stop is the right answer to the last user message, else 0.0.

    Raises:
        DataError: if that message is none of this world's prompts.
    """
    question = [message["content"] for message in messages if message["role"] == "user"][-1]
    return float(response.partition(".")[0].strip() == parse_prompt(question.strip()).answer)


def split_of(seed: int, task: str, operand: str) -> str:
    """The one split that may use this operand of this task."""
    digest = hashlib.sha256(f"{seed}/{task}/{operand}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in SPLITS.items():
        point -= share
        if point < 0:
            return name
    return next(reversed(SPLITS))


def draw_puzzles(
    seed: int, split: str, number: int, unique: bool = True, turns: Sequence[Task] | None = None
) -> Iterator[Puzzle]:
    """`number` puzzles of one split, each depending on the seed, the split and its place alone.

    Args:
        seed: of every choice.
        split: one of `SPLITS`.
        number: how many.
        unique: never the same prompt twice.
        turns: the tasks in the order in which they take turns; None is `TASKS`.

    Raises:
        ConfigError: if a split is asked for more different puzzles than its operands give.
    """
    rng = Random(f"{seed}/{split}/puzzles")
    turns = turns or TASKS
    seen: set[str] = set()
    for index in range(number):
        for _ in range(2000):
            puzzle = _draw(rng, turns[index % len(turns)])
            if split_of(seed, puzzle.task.name, puzzle.operand) == split and puzzle.prompt not in seen:
                break
        else:
            raise ConfigError(
                f"world: {number} different puzzles asked for `{split}`, but after {index} no new one was found. "
                f"Ask for fewer (world.num_{split}), or widen the tasks in rlhf/world/tasks.py."
            )
        if unique:
            seen.add(puzzle.prompt)
        yield puzzle


def _draw(rng: Random, task: Task) -> Puzzle:
    length = rng.choice(task.lengths)
    return Puzzle(task, rng.randrange(len(task.phrasings)), "".join(rng.choices(task.symbols, k=length)))


def with_filler(rng: Random, answer: str) -> str:
    """An answer, its full stop, and now and then a sentence without content."""
    return f"{answer}. {rng.choice(FILLERS)}" if rng.random() < FILLER_SHARE else f"{answer}."


def bad_answer(rng: Random, puzzle: Puzzle) -> str:
    """A wrong response: a refusal, the operand itself, shuffled, or cut, or random symbols of the answer's kind."""
    render, operand = puzzle.task.render, puzzle.operand
    while True:
        kind = rng.choice(("refusal", "echo", "shuffled", "cut", "random"))
        if kind == "refusal":
            return rng.choice(REFUSALS)
        if kind == "echo":
            text = render(operand)
        elif kind == "shuffled":
            text = render("".join(rng.sample(operand, len(operand))))
        elif kind == "cut":
            text = render(operand[: rng.randint(1, len(operand) - 1)])
        else:
            text = render("".join(rng.choices(puzzle.task.symbols, k=rng.choice(puzzle.task.lengths))))
        if text != puzzle.answer:
            return with_filler(rng, text)


def good_answer(rng: Random, puzzle: Puzzle) -> str:
    """A right response."""
    return with_filler(rng, puzzle.answer)


def conversation(puzzle: Puzzle, response: str) -> list[Message]:
    """The prompt and its response."""
    return [*puzzle.messages, {"role": "assistant", "content": response}]


def base_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Right answers and nothing else, for the pre-training."""
    turns = [task for task in TASKS for _ in range(task.base_share)]
    for puzzle in draw_puzzles(seed, "base", number, unique=False, turns=turns):
        yield {"messages": conversation(puzzle, f"{puzzle.answer}.")}


def sft_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Conversations of which `BAD_ANSWER_SHARE` end in a wrong answer."""
    rng = Random(f"{seed}/sft/answers")
    for puzzle in draw_puzzles(seed, "sft", number, unique=False):
        answer = bad_answer if rng.random() < BAD_ANSWER_SHARE else good_answer
        yield {"messages": conversation(puzzle, answer(rng, puzzle))}


def preference_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Right against wrong responses, `FLIPPED_SHARE` of them the wrong way round."""
    rng = Random(f"{seed}/preferences/answers")
    for puzzle in draw_puzzles(seed, "preferences", number, unique=False):
        sides = [conversation(puzzle, good_answer(rng, puzzle)), conversation(puzzle, near_miss(rng, puzzle))]
        if rng.random() < FLIPPED_SHARE:
            sides.reverse()
        yield {"chosen": sides[0], "rejected": sides[1]}


def near_miss(rng: Random, puzzle: Puzzle) -> str:
    """A wrong response; every second one is the right answer with one symbol exchanged, dropped or doubled."""
    if rng.random() < 0.5:
        return bad_answer(rng, puzzle)
    right = puzzle.task.solve(puzzle.operand)
    symbols = puzzle.task.symbols.upper() if right.isupper() else puzzle.task.symbols
    while True:
        place = rng.randrange(len(right))
        middle = rng.choice((rng.choice(symbols), "", right[place] * 2))
        text = right[:place] + middle + right[place + 1 :]
        if text and text != right:
            return with_filler(rng, puzzle.task.render(text))


def prompt_rows(seed: int, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Prompts without answers, each once."""
    for puzzle in draw_puzzles(seed, split, number):
        yield {"messages": puzzle.messages}
