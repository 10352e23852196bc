"""The quickstart's tasks: short string puzzles with one right answer, and the data made of them.

A prompt is a phrasing and an operand, as in `Reverse: a d c`; the answer is what stands before the first full
stop of a response. Everything is drawn from `random.Random`, so that a seed fixes every text. Operands are
dealt to the splits by a hash, so that no operand, in whatever phrasing, is seen in two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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
SPLITS = {
    "base": 0.4,
    "sft": 0.16,
    "preferences": 0.18,
    "judge_prompts": 0.1,
    "prompts": 0.1,
    "held_out": 0.06,
}
"""Share of the operands that each set may draw on; no operand is in two sets."""
MAX_DRAWS = 2000
"""After so many in a row without a new puzzle for the set, it counts as used up."""


@dataclass(frozen=True)
class Task:
    """One kind of puzzle: operands of `lengths` symbols out of `symbols`."""

    name: str
    phrasings: tuple[str, ...]
    lengths: tuple[int, ...]
    symbols: str
    separator: str
    """Stands between the symbols in prompts and answers."""
    base_share: int
    """How often it comes in one round of the pre-training's data: the harder, the more often."""
    solve: Callable[[str], str]
    """From an operand's symbols to the answer's, both without separators."""

    def render(self, symbols: str) -> str:
        """Symbols as they stand in prompts and answers."""
        return self.separator.join(symbols)

    def parse(self, text: str) -> str | None:
        """The inverse of `render`; None for a text that is no operand of this task."""
        symbols = text.replace(self.separator, "")
        # Rendered again, it shows whether every separator stood where it should.
        if self.render(symbols) != text:
            return None
        if len(symbols) not in self.lengths:
            return None
        if not set(symbols) <= set(self.symbols):
            return None
        return symbols


def _last_and_first(operand: str) -> str:
    last = operand[-1]
    first = operand[0]
    return last + first


def _every_second(operand: str) -> str:
    return operand[1::2]


def _backwards(operand: str) -> str:
    return operand[::-1]


def _sorted(operand: str) -> str:
    return "".join(sorted(operand))


TASKS = (
    Task(
        name="upper",
        phrasings=("Upper case: ", "Make capital: "),
        lengths=(3, 4, 5),
        symbols=LETTERS,
        separator=" ",
        base_share=2,
        solve=str.upper,
    ),
    Task(
        name="ends",
        phrasings=("Last and first: ", "Give last, then first: "),
        lengths=(4, 5, 6, 7),
        symbols=LETTERS,
        separator=" ",
        base_share=1,
        solve=_last_and_first,
    ),
    Task(
        name="second",
        phrasings=("Every second: ", "Skip each other letter: "),
        lengths=(4, 5, 6, 7),
        symbols=LETTERS,
        separator=" ",
        base_share=3,
        solve=_every_second,
    ),
    Task(
        name="reverse",
        phrasings=("Reverse: ", "Write backwards: "),
        lengths=(3, 4),
        symbols=LETTERS,
        separator=" ",
        base_share=2,
        solve=_backwards,
    ),
    Task(
        name="sort",
        phrasings=("Sort: ", "From low to high: "),
        lengths=(3, 4),
        symbols=DIGITS,
        separator="",
        base_share=3,
        solve=_sorted,
    ),
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
        phrasing = self.task.phrasings[self.phrasing]
        operand = self.task.render(self.operand)
        return phrasing + operand

    @property
    def answer(self) -> str:
        """The right answer, without its full stop."""
        symbols = self.task.solve(self.operand)
        return self.task.render(symbols)

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
        for index, phrasing in enumerate(task.phrasings):
            if not text.startswith(phrasing):
                continue
            operand = task.parse(text.removeprefix(phrasing))
            if operand is not None:
                return Puzzle(task, index, operand)
    raise DataError(
        f"rlhf.world.tasks: not a prompt of the synthetic world: {text[:200]!r}. "
        "Use this rule only with prompts that the `world` stage wrote, or name another rule or null."
    )


def gold(messages: Sequence[Mapping[str, str]], response: str) -> float:
    """1.0 for the right answer to the last user message, else 0.0: a rule for `reward_model.rule`.

    The answer is the text before the response's first full stop.

    Example:
        gold([{"role": "user", "content": "Reverse: a d c"}], "c d a. Let me know.") is 1.0.

    Raises:
        DataError: if that message is none of this world's prompts.
    """
    # Of a longer conversation only the last question counts.
    user_texts = [message["content"] for message in messages if message["role"] == "user"]
    puzzle = parse_prompt(user_texts[-1].strip())
    # Behind the full stop may stand a filler, which is neither right nor wrong.
    answer, _, _ = response.partition(".")
    return float(answer.strip() == puzzle.answer)


def split_of(seed: int, task: str, operand: str) -> str:
    """The one split that may use this operand of this task."""
    # Not `hash`, which differs from process to process. The phrasing is left out, so that no split sees an
    # operand of another in other words.
    digest = hashlib.sha256(f"{seed}/{task}/{operand}".encode()).digest()
    # A point in [0, 1); each split owns a stretch of that line, as long as its share.
    point = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLITS.items():
        point -= share
        if point < 0:
            return split
    # The shares add up to 1 but for rounding, which may leave a point at the very end.
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
    seen_prompts: set[str] = set()
    # The tasks take turns, not by chance: however few puzzles are asked for, all tasks are among them.
    for index in range(number):
        task = turns[index % len(turns)]
        puzzle = _draw_for(rng, task, seed, split, seen_prompts)
        if puzzle is None:
            raise ConfigError(
                f"world: {number} different puzzles asked for `{split}`, "
                f"but after {index} no new one was found. "
                f"Ask for fewer (world.num_{split}), or widen the tasks in rlhf/world/tasks.py."
            )
        if unique:
            seen_prompts.add(puzzle.prompt)
        yield puzzle


def _draw_for(rng: Random, task: Task, seed: int, split: str, seen_prompts: Container[str]) -> Puzzle | None:
    """A puzzle that the split may use and whose prompt is new; None if a long search finds none."""
    for _ in range(MAX_DRAWS):
        puzzle = _draw(rng, task)
        owner = split_of(seed, task.name, puzzle.operand)
        if owner == split and puzzle.prompt not in seen_prompts:
            return puzzle
    return None


def _draw(rng: Random, task: Task) -> Puzzle:
    # The order of these three draws is part of every world's text; so it is in the functions below.
    length = rng.choice(task.lengths)
    phrasing = rng.randrange(len(task.phrasings))
    symbols = rng.choices(task.symbols, k=length)
    return Puzzle(task, phrasing, "".join(symbols))


def with_filler(rng: Random, answer: str) -> str:
    """An answer, its full stop, and now and then a sentence without content."""
    if rng.random() < FILLER_SHARE:
        filler = rng.choice(FILLERS)
        return f"{answer}. {filler}"
    return f"{answer}."


def bad_answer(rng: Random, puzzle: Puzzle) -> str:
    """A wrong response: a refusal, the operand itself, shuffled, or cut, or random symbols of its kind."""
    while True:
        kind = rng.choice(("refusal", "echo", "shuffled", "cut", "random"))
        if kind == "refusal":
            return rng.choice(REFUSALS)
        symbols = _wrong_symbols(rng, kind, puzzle)
        text = puzzle.task.render(symbols)
        # By chance it may be right: a sorted operand, say, is its own answer.
        if text != puzzle.answer:
            return with_filler(rng, text)


def _wrong_symbols(rng: Random, kind: str, puzzle: Puzzle) -> str:
    operand = puzzle.operand
    if kind == "echo":
        return operand
    if kind == "shuffled":
        shuffled = rng.sample(operand, len(operand))
        return "".join(shuffled)
    if kind == "cut":
        num_left = rng.randint(1, len(operand) - 1)
        return operand[:num_left]
    length = rng.choice(puzzle.task.lengths)
    symbols = rng.choices(puzzle.task.symbols, k=length)
    return "".join(symbols)


def good_answer(rng: Random, puzzle: Puzzle) -> str:
    """A right response."""
    return with_filler(rng, puzzle.answer)


def conversation(puzzle: Puzzle, response: str) -> list[Message]:
    """The prompt and its response."""
    answer: Message = {"role": "assistant", "content": response}
    return [*puzzle.messages, answer]


def base_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Right answers and nothing else, for the pre-training.

    Example:
        {"messages": [{"role": "user", "content": "Sort: 3101"}, {"role": "assistant", "content": "0113."}]}
    """
    turns: list[Task] = []
    for task in TASKS:
        # The model meets the harder tasks more often, but the other sets take all tasks alike.
        turns += [task] * task.base_share
    for puzzle in draw_puzzles(seed, "base", number, unique=False, turns=turns):
        response = f"{puzzle.answer}."
        yield {"messages": conversation(puzzle, response)}


def sft_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Conversations of which `BAD_ANSWER_SHARE` end in a wrong answer.

    Example:
        {"messages": [{"role": "user", "content": "Sort: 3101"}, {"role": "assistant", "content": "3101."}]}
    """
    # Not the puzzles' generator: the same operands come whatever the answers draw.
    rng = Random(f"{seed}/sft/answers")
    for puzzle in draw_puzzles(seed, "sft", number, unique=False):
        is_bad = rng.random() < BAD_ANSWER_SHARE
        response = bad_answer(rng, puzzle) if is_bad else good_answer(rng, puzzle)
        yield {"messages": conversation(puzzle, response)}


def preference_rows(seed: int, number: int) -> Iterator[dict[str, Any]]:
    """Right against wrong responses, `FLIPPED_SHARE` of them the wrong way round.

    Example:
        {"chosen": [{"role": "user", "content": "Sort: 3101"}, {"role": "assistant", "content": "0113."}],
        "rejected": [{"role": "user", "content": "Sort: 3101"}, {"role": "assistant", "content": "013."}]}
    """
    rng = Random(f"{seed}/preferences/answers")
    for puzzle in draw_puzzles(seed, "preferences", number, unique=False):
        chosen = conversation(puzzle, good_answer(rng, puzzle))
        rejected = conversation(puzzle, near_miss(rng, puzzle))
        # As labels by people have mistakes, too.
        if rng.random() < FLIPPED_SHARE:
            chosen, rejected = rejected, chosen
        yield {"chosen": chosen, "rejected": rejected}


def near_miss(rng: Random, puzzle: Puzzle) -> str:
    """A wrong response; every second one is right but for one symbol exchanged, dropped or doubled."""
    if rng.random() < 0.5:
        return bad_answer(rng, puzzle)
    right = puzzle.task.solve(puzzle.operand)
    symbols = puzzle.task.symbols
    # Among capitals a small letter would give the mistake away.
    if right.isupper():
        symbols = symbols.upper()
    while True:
        place = rng.randrange(len(right))
        exchanged = rng.choice(symbols)
        doubled = right[place] * 2
        replacement = rng.choice((exchanged, "", doubled))
        wrong = right[:place] + replacement + right[place + 1 :]
        # Exchanged for itself it is right after all.
        if wrong and wrong != right:
            return with_filler(rng, puzzle.task.render(wrong))


def prompt_rows(seed: int, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Prompts without answers, each once.

    Example:
        {"messages": [{"role": "user", "content": "Reverse: a d c"}]}
    """
    for puzzle in draw_puzzles(seed, split, number):
        yield {"messages": puzzle.messages}
