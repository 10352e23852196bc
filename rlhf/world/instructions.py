"""Verifiable instructions in the manner of IFEval (arXiv 2311.07911), read out of a prompt and checked.

A prompt's last paragraph is nothing but instructions, one a line, each in the words of one of `KINDS`:

    What are some ideas for a rainy day?

    Use at most 30 words.
    Do not use the word "and".

So a rule needs no column beside the text, and a person can write such prompts by hand. `graded` is what a
policy is trained on; `passed`, `passed_seen` and `passed_held_out` are strict yardsticks.
`rlhf.world.instruction_prompts` draws such prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlhf.data.records import Message
from rlhf.errors import DataError, one_line

MIN_WORDS = 3
"""A response of fewer words follows no instruction: nothing is cheaper than to say nothing."""
_ALMOST = 0.9
"""The most that an instruction gives which is nearly followed; one that is followed gives 1."""
_PASSED_BONUS = 1.0
"""Added where all instructions are followed, so that no number of near misses is worth as much."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Looked for where the signs begin, and never given back: else thousands of full stops would take minutes.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)*]*+(?=\s|$)")
_BULLET = re.compile(r"(?m)^[ \t]*[*•-][ \t]+\S")
_NUMBERED = re.compile(r"(?m)^[ \t]*(\d+)[.)][ \t]+\S")
_TITLE = re.compile(r"<<([^<>\n]*+)>>")
_WORD_BEGINS = r"(?:(?=\W)|(?<!\w))"
_WORD_ENDS = r"(?:(?<=\W)|(?!\w))"
"""Where words are looked for: not in the middle of one; signs may touch the next word."""
_MOST_DIGITS = 9
"""Of a number that may be meant; Python refuses to read thousands of them."""


@dataclass(frozen=True)
class Kind:
    """One kind of instruction."""

    name: str
    text: str
    """What the prompt says; `{value}` stands where the value does."""
    grade: Callable[[str, str], float]
    """How far a response (first) goes with a value (second): 1 is followed, from 0 to below 1 is not."""
    group: str
    """What the instruction is about; no prompt has two of one group, which could contradict each other."""
    values: tuple[str, ...] = ("",)
    """The values that are drawn; others are checked as well."""
    is_held_out: bool = False
    """Whether no training prompt has it."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches a whole line of a prompt that says this; its group is the value."""
        before, found, after = self.text.partition("{value}")
        form = rf"(?P<value>{self._value_form()})" if found else "(?P<value>)"
        return re.compile(re.escape(before) + form + re.escape(after))

    def _value_form(self) -> str:
        is_number = all(value.isdecimal() for value in self.values)
        return rf"[0-9]{{1,{_MOST_DIGITS}}}" if is_number else r'[^"\n]+'

    def says(self, value: str) -> str:
        """The line of a prompt."""
        return self.text.replace("{value}", value)


@dataclass(frozen=True)
class Instruction:
    """A kind with its value."""

    kind: Kind
    value: str

    def grade(self, response: str) -> float:
        """From 0 to 1; 1 only where it is followed."""
        if len(words(response)) < MIN_WORDS:
            return 0.0
        return self.kind.grade(response, self.value)


def words(text: str) -> list[str]:
    """The words of a text; an apostrophe or a hyphen inside one does not divide it."""
    return _WORD.findall(text)


def sentences(text: str) -> int:
    """How many sentences a text has; what comes after the last full stop counts as one."""
    ends = list(_SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(words(rest))


def _near(found: int, wanted: int) -> float:
    """1 for the wanted number, else less the further away."""
    if found == wanted:
        return 1.0
    return _ALMOST * max(0.0, 1 - abs(found - wanted) / max(found, wanted))


def _either(is_followed: bool) -> float:
    return 1.0 if is_followed else 0.0


def _at_most_words(response: str, value: str) -> float:
    found = len(words(response))
    return 1.0 if found <= int(value) else _near(found, int(value))


def _at_least_words(response: str, value: str) -> float:
    found = len(words(response))
    return 1.0 if found >= int(value) else _near(found, int(value))


def _sentences(response: str, value: str) -> float:
    return _near(sentences(response), int(value))


def _occurrences(response: str, phrase: str) -> int:
    """How often a word or phrase stands in a response, whatever its case; as a part of a word it does not."""
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", response, re.IGNORECASE))


def _includes(response: str, value: str) -> float:
    return _either(_occurrences(response, value) > 0)


def _avoids(response: str, value: str) -> float:
    found = _occurrences(response, value)
    return 1.0 if found == 0 else _ALMOST / (1 + found)


def _twice(response: str, value: str) -> float:
    return _near(min(2, _occurrences(response, value)), 2)


def _bare(text: str) -> str:
    """A text without what may stand around it: spaces, quotation marks, full stops; in lower case."""
    return text.strip().strip("\"'“”‘’*.!").strip().casefold()


def _stands(response: str, value: str, pattern: str) -> bool:
    """Whether the bare value stands where a pattern looks for it in the bare response."""
    # Of signs alone nothing would be left to look for, and everything would do.
    return bool(_bare(value)) and re.search(pattern, _bare(response)) is not None


def _ends_with(response: str, value: str) -> float:
    if _stands(response, value, rf"{_WORD_BEGINS}{re.escape(_bare(value))}\Z"):
        return 1.0
    return 0.4 * _includes(response, value)


def _begins_with(response: str, value: str) -> float:
    if _stands(response, value, rf"\A{re.escape(_bare(value))}{_WORD_ENDS}"):
        return 1.0
    return 0.4 * _includes(response, value)


def _capital_word(response: str, value: str) -> float:
    # A single letter, as "I" and "A" are, says nothing.
    return _either(any(len(word) > 1 and word.isupper() for word in words(response)))


def _upper(response: str, value: str) -> float:
    cased = [letter for letter in response if letter.lower() != letter.upper()]
    if not cased:
        return 0.0
    share = fmean(letter.isupper() for letter in cased)
    return 1.0 if share == 1 else _ALMOST * share


def _bullets(response: str, value: str) -> float:
    return _near(len(_BULLET.findall(response)), int(value))


def _numbered(response: str, value: str) -> float:
    found = []
    for number in _NUMBERED.findall(response):
        found.append(int(number) if len(number) <= _MOST_DIGITS else -1)
    wanted = int(value)
    if found == list(range(1, wanted + 1)):
        return 1.0
    return min(_ALMOST, _near(len(found), wanted))


def _no_commas(response: str, value: str) -> float:
    found = response.count(",")
    return 1.0 if found == 0 else _ALMOST / (1 + found)


def _question(response: str, value: str) -> float:
    if response.strip().endswith("?"):
        return 1.0
    return 0.4 * ("?" in response)


def _one_line(response: str, value: str) -> float:
    breaks = response.strip().count("\n")
    return 1.0 if breaks == 0 else _ALMOST / (1 + breaks)


def _no_digits(response: str, value: str) -> float:
    found = sum(letter.isdigit() for letter in response)
    return 1.0 if found == 0 else _ALMOST / (1 + found)


def _titled(response: str, value: str) -> float:
    return _either(any(re.search(r"\w", title) for title in _TITLE.findall(response)))


_KEYWORDS = ("time", "water", "people", "money", "music", "family", "world", "home", "nature", "history")
_COMMON_WORDS = ("and", "is", "to", "of", "that", "it", "can", "you", "are", "with")
_ENDINGS = ("That is all.", "I hope this helps.", "Thank you for reading.", "The end.", "Any questions?")
_BEGINNINGS = ("Good question.", "Let me think.", "In short,", "My answer:", "Here is what I know:")

KINDS = (
    Kind(
        "at_most_words", "Use at most {value} words.", _at_most_words, "words", ("15", "20", "25", "30", "40")
    ),
    Kind("at_least_words", "Use at least {value} words.", _at_least_words, "words", ("20", "25", "30", "35")),
    Kind("sentences", "The number of sentences must be {value}.", _sentences, "form", ("1", "2", "3")),
    Kind("bullets", "Write {value} bullet points. Each begins with *.", _bullets, "form", ("2", "3", "4")),
    Kind("includes", 'Use the word "{value}".', _includes, "keyword", _KEYWORDS),
    Kind("avoids", 'Do not use the word "{value}".', _avoids, "forbidden", _COMMON_WORDS),
    Kind("ends_with", 'End with the words "{value}"', _ends_with, "end", _ENDINGS),
    Kind("capital_word", "Write at least one word in capital letters.", _capital_word, "case"),
    Kind("no_commas", "Use no commas.", _no_commas, "sign"),
    Kind("numbered", "Write a numbered list of {value} items.", _numbered, "form", ("2", "3", "4"), True),
    Kind("one_paragraph", "Write one paragraph, without a line break.", _one_line, "form", is_held_out=True),
    Kind("twice", 'Use the word "{value}" at least twice.', _twice, "keyword", _KEYWORDS, True),
    Kind("begins_with", 'Begin with the words "{value}"', _begins_with, "end", _BEGINNINGS, True),
    Kind("question", "End with a question.", _question, "end", is_held_out=True),
    Kind("uppercase", "Use capital letters only.", _upper, "case", is_held_out=True),
    Kind("no_digits", "Use no digits.", _no_digits, "sign", is_held_out=True),
    Kind(
        "titled",
        "Give it a title in double angle brackets, such as <<my title>>.",
        _titled,
        "title",
        is_held_out=True,
    ),
)
"""Every kind. Those that are held out are of other checks and other words than the seen ones."""


def instructions_of(messages: Sequence[Message]) -> list[Instruction]:
    """The instructions of a prompt, in its order.

    Raises:
        DataError: its last paragraph is not made of instructions; names the first line that is none.
    """
    text = messages[-1]["content"].strip().replace("\r\n", "\n")
    paragraph = text.rpartition("\n\n")[2]
    instructions = []
    for line in paragraph.split("\n"):
        instruction = _instruction(line.strip())
        if instruction is None:
            raise DataError(
                f"prompt {one_line(messages[-1]['content'][:200])!r}: its last paragraph must be "
                f"instructions that rlhf.world.instructions knows, one a line; {one_line(line)!r} is none. "
                "scripts/smollm2_data.py adds some to the prompts of a file."
            )
        instructions.append(instruction)
    return instructions


def _instruction(line: str) -> Instruction | None:
    for kind in KINDS:
        found = kind.pattern.fullmatch(line)
        if found:
            return Instruction(kind, found["value"])
    return None


def graded(messages: list[Message], response: str) -> float:
    """The mean over the prompt's instructions of how far each is followed, plus 1 if all are: from 0 to 2."""
    grades = [instruction.grade(response) for instruction in instructions_of(messages)]
    return fmean(grades) + _PASSED_BONUS * (min(grades) == 1)


def passed(messages: list[Message], response: str) -> float:
    """1 where a response follows every instruction of the prompt, else 0."""
    return _passed(instructions_of(messages), response)


def passed_seen(messages: list[Message], response: str) -> float:
    """As `passed`, of prompts whose kinds are all trained on; NaN of others."""
    instructions = instructions_of(messages)
    if any(instruction.kind.is_held_out for instruction in instructions):
        return math.nan
    return _passed(instructions, response)


def passed_held_out(messages: list[Message], response: str) -> float:
    """As `passed`, of prompts whose kinds are all held out; NaN of others."""
    instructions = instructions_of(messages)
    if not all(instruction.kind.is_held_out for instruction in instructions):
        return math.nan
    return _passed(instructions, response)


def _passed(instructions: list[Instruction], response: str) -> float:
    return float(all(instruction.grade(response) == 1 for instruction in instructions))
