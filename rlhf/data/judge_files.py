"""What a generative judge is asked, and how its answer is read: a YAML file (docs/judges.md has its keys)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf.data.files import resolved
from rlhf.data.records import Message
from rlhf.errors import ConfigError

KEY = "reward_model.generative.template"
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = _PACKAGE.parent / "configs" / "judge"
"""Beside the package in a checkout."""
if not SHIPPED.is_dir():
    SHIPPED = _PACKAGE / "configs" / "judge"

_PLACES = ("conversation", "question", "response", "response_a", "response_b")
_PLACE = re.compile(r"\{\{([a-z_]+)\}\}|\{([a-z_]+)\}")
"""`{name}` is a place; `{{name}}` is the text `{name}`. Other braces stand as they are."""
_BEGUN_BEFORE = re.compile(r"(\d[.,]?|(?<!\w)[-‐-―−﹣－.,])\Z")
"""In front of digits: more of the same number, such as a sign. A hyphen behind a letter is none."""
_GOES_ON = re.compile(
    r"""
      [.,'’٫٬，．]?\d                                 # 7,5 and 1,000
    | [^\S\n]+\d                                    # 1 000 and 7 1/2
    | [¼-¾⅐-⅞]
    | e[-+]?\d
    | [^\S\n]*([-‐-―−﹣－+~～〜]|to|or|and)[^\S\n]*\d  # 1-10, 3+1=4 and 7 or 8
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Behind digits: more of the same number, or another one that it is held against."""
_OUT_OF = re.compile(
    r"[*_\])]*[^\S\n]*(?:/|(?:out[^\S\n]+)?of)[^\S\n]*[*_\[(]*(\d+(?:\.\d+)?)", re.IGNORECASE
)
"""Behind digits: of how many points they are."""
_MAY_GO_ON = re.compile(r"[\d \t.,/+-]*")
"""All that follows the match of a cut answer whose number or choice may not be whole."""
_KEYS = ("system", "prompt", "pattern", "take", "lowest", "highest", "choices")


class Unread(Enum):
    """Why an answer of a judge gives no number."""

    empty = "empty"
    cut = "cut"
    no_match = "no_match"
    out_of_range = "out_of_range"
    too_long = "too_long"
    refused_by_template = "refused_by_template"


@dataclass(frozen=True)
class JudgeFile:
    """A prompt, and how a number is read out of the answer.

    `pattern` has a group `score` (a number) or `choice` (a key of `choices`); of several matches the `take`
    (`last` or `first`) counts. Of two responses the number is the probability that the first one shown is
    better.
    """

    prompt: str
    pattern: str
    system: str = ""
    take: str = "last"
    lowest: float | None = None
    highest: float | None = None
    choices: Mapping[str, float] | None = None

    @property
    def compares(self) -> bool:
        """Whether it shows two responses, for which is better."""
        return "response_a" in _places(self.prompt)

    def messages(self, conversation: Sequence[Message], *responses: str) -> list[Message]:
        """What the judge is sent about one response, or about two in the order shown."""
        names = ("response_a", "response_b") if self.compares else ("response",)
        values = dict(zip(names, responses, strict=True))
        values["question"] = conversation[-1]["content"]
        values["conversation"] = conversation_text(conversation)

        # In one pass: what a response spells of places stays text.
        def filled(match: re.Match[str]) -> str:
            literal, name = match.groups()
            return values[name] if name else f"{{{literal}}}"

        asked = [{"role": "user", "content": _PLACE.sub(filled, self.prompt)}]
        if self.system:
            asked.insert(0, {"role": "system", "content": self.system})
        return asked

    def read(self, answer: str, was_cut: bool = False) -> float | Unread:
        """The number that an answer gives, or why it gives none.

        Digits out of a longer number (-7, 7,5, 1-10) or of other points than `highest` (4/5 where that is 10)
        are none, nor is the last word of an answer that was cut: more may have followed.
        """
        if not answer.strip():
            return Unread.empty
        matches = list(re.finditer(self.pattern, answer))
        # Of a cut answer the verdict may be there all the same.
        if not matches:
            return Unread.cut if was_cut else Unread.no_match
        match = matches[-1 if self.take == "last" else 0]
        if was_cut and _MAY_GO_ON.fullmatch(answer, match.end()):
            return Unread.cut
        # A group that is not part of the match is None.
        if self.choices is not None:
            return self._value_of(match["choice"] or "")
        if match["score"] is None or not self._is_whole(match):
            return Unread.no_match
        try:
            value = float(match["score"])
        except ValueError:
            return Unread.no_match
        lowest = -math.inf if self.lowest is None else self.lowest
        highest = math.inf if self.highest is None else self.highest
        return value if math.isfinite(value) and lowest <= value <= highest else Unread.out_of_range

    def _value_of(self, choice: str) -> float | Unread:
        """The number of a choice, also of one that is spelt with other capitals."""
        assert self.choices is not None, "a file has choices or scores"
        spelt = choice.strip()
        if spelt in self.choices:
            return self.choices[spelt]
        alike = [value for name, value in self.choices.items() if name.casefold() == spelt.casefold()]
        return alike[0] if len(alike) == 1 else Unread.no_match

    def _is_whole(self, match: re.Match[str]) -> bool:
        """Whether the score is all of the number that stands there."""
        answer, start, end = match.string, match.start("score"), match.end("score")
        # A pattern may begin with the sign, or take in itself what follows.
        begins_with_digit = answer[start:end][:1].isdecimal()
        if begins_with_digit and _BEGUN_BEFORE.search(answer[max(start - 3, 0) : start]):
            return False
        if end < match.end():
            return True
        if _GOES_ON.match(answer, end):
            return False
        points = _OUT_OF.match(answer, end)
        return points is None or self.highest is None or float(points[1]) == self.highest


def conversation_text(conversation: Sequence[Message]) -> str:
    r"""Turns as text: a lone user turn as it stands, several under the names of their roles.

    Example:
        "User:\nHi\n\nAssistant:\nHello!\n\nUser:\nWho are you?"
    """
    if len(conversation) == 1:
        return conversation[0]["content"]
    turns = [f"{turn['role'].capitalize()}:\n{turn['content']}" for turn in conversation]
    return "\n\n".join(turns)


def _places(prompt: str) -> set[str]:
    return {match[2] for match in _PLACE.finditer(prompt) if match[2]}


def load_judge_file(name: str) -> dict[str, Any]:
    """The content of a shipped file by its name, or of the file at a path, checked.

    Raises:
        ConfigError: there is no such file, or what is wrong in it.
    """
    import yaml  # type: ignore[import-untyped]

    # A name without a slash may be a file of this folder too; what is shipped comes first.
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if "/" not in name and shipped.is_file() else resolved(name, KEY)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise ConfigError(
            f"{KEY}={name}: no such file (looked for {path}). Name one that comes with the "
            f"package ({names}), "
            "or give the path of a YAML file; docs/judges.md has its keys."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{KEY}={name}: cannot be read as YAML: {error}. Mend it.") from error
    judge_file(content, f"{KEY}={name}")
    return dict(content)


def judge_file(content: Any, where: str = KEY) -> JudgeFile:
    """A judge file of its content.

    Raises:
        ConfigError: what is wrong in it, all at once.
    """
    wrong = _problems(content)
    if wrong:
        raise ConfigError("\n".join(f"{where}: {line}" for line in wrong))
    return JudgeFile(**content)


def _problems(content: Any) -> list[str]:
    if not isinstance(content, Mapping):
        return [
            f"holds {type(content).__name__}, and no keys. It has {', '.join(_KEYS)}; see docs/judges.md."
        ]
    wrong = []
    for key in content:
        if key not in _KEYS:
            wrong.append(f"{key}: no such key. There are {', '.join(_KEYS)}.")
    for key in ("prompt", "pattern"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            wrong.append(f"{key}={content.get(key)!r}: must be a text.")
    if not isinstance(content.get("system", ""), str):
        wrong.append(f"system={content['system']!r}: must be a text; leave it out for none.")
    if content.get("take", "last") not in ("last", "first"):
        wrong.append(f"take={content['take']!r}: must be last or first.")
    # What follows reads these texts.
    if wrong:
        return wrong
    wrong += _problems_of_prompt(content["prompt"])
    return wrong + _problems_of_reading(content, "response_a" in _places(content["prompt"]))


def _problems_of_prompt(prompt: str) -> list[str]:
    places = _places(prompt)
    wrong = []
    for name in sorted(places - set(_PLACES)):
        wrong.append(
            f"prompt: {{{name}}} is no place; there are {', '.join(f'{{{place}}}' for place in _PLACES)}. "
            f"Where the text {{{name}}} itself is meant, write {{{{{name}}}}}."
        )
    shown = places & {"response", "response_a", "response_b"}
    if shown not in ({"response"}, {"response_a", "response_b"}):
        wrong.append(
            f"prompt: shows {', '.join(sorted(shown)) or 'no response'}. Show {{response}} "
            "to have it scored, "
            "or both {response_a} and {response_b} to have them compared."
        )
    if not places & {"conversation", "question"}:
        wrong.append("prompt: shows no question. Put {conversation} (all turns) or {question} (the last) in.")
    return wrong


def _problems_of_reading(content: Mapping[str, Any], compares: bool) -> list[str]:
    try:
        groups = re.compile(content["pattern"]).groupindex
    except re.error as error:
        return [f"pattern={content['pattern']!r}: is no regular expression ({error}). Mend it."]
    choices = content.get("choices")
    # One of the two, so that nobody wonders which of them counts.
    wanted = "score" if choices is None else "choice"
    wrong = []
    if wanted not in groups:
        wrong.append(
            f"pattern={content['pattern']!r}: needs a group (?P<{wanted}>…), the {wanted} of the answer; "
            "a choice goes with choices, a score without."
        )
    for key in ("lowest", "highest"):
        if content.get(key) is not None and not _is_number(content[key]):
            wrong.append(f"{key}={content[key]!r}: must be a number; leave it out for none.")
    if choices is not None:
        wrong += _problems_of_choices(choices, compares)
    elif compares and (content.get("lowest") != 0 or content.get("highest") != 1):
        wrong.append(
            "lowest and highest: of two responses the score is the probability that A is "
            "better. Set 0 and 1, "
            "or give choices such as {A: 1, B: 0, tie: 0.5}."
        )
    return wrong


def _problems_of_choices(choices: Any, compares: bool) -> list[str]:
    if not isinstance(choices, Mapping) or not choices:
        return [f"choices={choices!r}: must be a mapping such as {{A: 1, B: 0, tie: 0.5}}."]
    wrong = []
    for choice, value in choices.items():
        # YAML reads Yes and No as true and false.
        if not isinstance(choice, str):
            wrong.append(f"choices: {choice!r} is no text to YAML. Put it in quotes.")
        elif not _is_number(value) or (compares and not 0 <= value <= 1):
            limits = " from 0 (B is better) to 1 (A is better)" if compares else ""
            wrong.append(f"choices: {choice}: {value!r} must be a number{limits}.")
    return wrong


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
