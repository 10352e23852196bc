"""A language model as judge: it is asked in words, and a number is read out of what it answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.config.stage_configs import GenerativeStage
from rlhf.data.judge_files import Unread, judge_file
from rlhf.data.records import Message, prompt_id
from rlhf.scoring.asking import Answer, Asker, answer_told
from rlhf.scoring.judge import Scored
from rlhf.scoring.kept import KeptAnswers, key_of
from rlhf.scoring.tournament import Compared, Matchup


@dataclass(frozen=True)
class _Question:
    """One request: a conversation, and one response or two in the order shown."""

    conversation: list[Message]
    responses: tuple[str, ...]
    is_swapped: bool = False


class GenerativeJudge:
    """Scores responses one by one, or compares two of them in both orders, as its judge file says.

    Equal questions are asked once. What is kept is not asked at all. An answer that gives no number leaves
    the response (or the comparison) without one, and is counted by its reason.
    """

    def __init__(self, config: GenerativeStage, asker: Asker) -> None:
        self._config = config
        self.file = judge_file(config.judge_file)
        self._asker = asker
        self.begin(KeptAnswers())

    def begin(self, kept: KeptAnswers, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Start a shard: its answers are kept in `kept`, its rows and counts begin anew."""
        self._kept = kept
        self._progress = progress
        self.rows: list[dict[str, Any]] = []
        self.counts = Counter[str]()

    def score(self, items: list[tuple[list[Message], str]]) -> Scored:
        """The number that the judge gives each response; NaN where its answer cannot be read."""
        questions = [_Question(messages, (response,)) for messages, response in items]
        values = self._values(questions)
        return Scored([math.nan if value is None else value for value in values])

    def compare(self, comparisons: Sequence[Matchup]) -> Compared:
        """P(first is better) over both orders; NaN where either answer cannot be read."""
        questions = []
        for messages, first, second in comparisons:
            questions.append(_Question(messages, (first, second)))
            questions.append(_Question(messages, (second, first), is_swapped=True))
        values = self._values(questions)
        probabilities = []
        for shown_first, shown_second in zip(values[::2], values[1::2], strict=True):
            if shown_first is None or shown_second is None:
                # One order alone would have the judge's leaning to a place in it.
                self.counts["comparisons_left_out"] += 1
                probabilities.append(math.nan)
                continue
            probabilities.append((shown_first + 1 - shown_second) / 2)
            self._count_leaning(shown_first, shown_second)
        return Compared(probabilities, len(questions), leaves_out=True)

    def _count_leaning(self, in_order: float, swapped: float) -> None:
        """Count whether the verdicts in both orders are for the same place, which says nothing of a response.

        Both are the probability that the response shown first is better.
        """
        self.counts["comparisons"] += 1
        if in_order > 0.5 and swapped > 0.5:
            self.counts["leaning/first"] += 1
        elif in_order < 0.5 and swapped < 0.5:
            self.counts["leaning/second"] += 1

    def _values(self, questions: list[_Question]) -> list[float | None]:
        """What each question comes to; None where the answer gives no number."""
        keys = []
        asked: dict[str, list[Message]] = {}
        of_key: dict[str, _Question] = {}
        for question in questions:
            messages = self.file.messages(question.conversation, *question.responses)
            key = self._key(messages)
            keys.append(key)
            asked.setdefault(key, messages)
            of_key.setdefault(key, question)
        answers = self._answers(asked)
        value_of = {}
        for key, answer in answers.items():
            value_of[key] = self._read(key, of_key[key], answer)
        return [value_of[key] for key in keys]

    def _key(self, messages: list[Message]) -> str:
        config = self._config
        how = [config.served_model, config.api.value, config.temperature, config.max_new_tokens, config.body]
        return key_of(messages, *how)

    def _answers(self, asked: dict[str, list[Message]]) -> dict[str, Answer]:
        """An answer for each key, in the keys' order."""
        answers: dict[str, Answer] = {}
        for key in asked:
            kept = self._kept.get(key)
            # Of an earlier attempt at this shard.
            if kept is not None:
                answers[key] = answer_told(**kept)
        missing = [key for key in asked if key not in answers]
        total = len(asked)

        def answered(number: int, answer: Answer) -> None:
            key = missing[number]
            # What was not asked has cost nothing, and may have room in another attempt.
            if answer.problem is None:
                record = asdict(answer)
                del record["problem"]
                self._kept.add(key, record)
            answers[key] = answer
            self._progress(len(answers), total)

        if missing:
            self._asker.ask([asked[key] for key in missing], answered)
        return {key: answers[key] for key in asked}

    def _read(self, key: str, question: _Question, answer: Answer) -> float | None:
        """The number of an answer; its row and counts are added."""
        value: float | Unread
        value = answer.problem or self.file.read(answer.text, was_cut=answer.finish_reason == "length")
        unread = value.value if isinstance(value, Unread) else None
        number = None if isinstance(value, Unread) else float(value)
        self.rows.append(
            {
                "key": key,
                "id": prompt_id(question.conversation),
                "responses": list(question.responses),
                "is_swapped": question.is_swapped,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "value": number,
                "unread": unread,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            }
        )
        # Of what was answered, whenever: a resumed stage has the counts of one that was never killed.
        self.counts["answers"] += 1
        if unread is not None:
            self.counts[f"unread/{unread}"] += 1
        for name in ("prompt_tokens", "completion_tokens"):
            self.counts[f"judge_{name}"] += getattr(answer, name) or 0
        if answer.problem is None and answer.completion_tokens is None:
            self.counts["without_usage"] += 1
        return number


def cost(config: GenerativeStage, counts: dict[str, int]) -> float | None:
    """What the answers of a stage have cost; None without prices."""
    if config.prompt_price is None or config.answer_price is None:
        return None
    of_prompts = counts.get("judge_prompt_tokens", 0) * config.prompt_price
    of_answers = counts.get("judge_completion_tokens", 0) * config.answer_price
    return round((of_prompts + of_answers) / 1e6, 6)
