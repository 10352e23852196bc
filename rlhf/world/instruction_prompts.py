"""Real prompts with instructions to follow: drawn by a seed, so that one file gives many sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from rlhf.errors import DataError
from rlhf.world.instructions import KINDS, Kind

MAX_CHARACTERS = 160
"""A longer question wants a longer answer than a small model gives on a laptop."""
NUM_INSTRUCTIONS = (1, 1, 1, 2, 2, 3)
"""How many instructions a prompt gets; one of these is drawn."""


@dataclass(frozen=True)
class PromptSets:
    """Prompts of three sets that share no question."""

    train: list[str]
    """Kinds that are seen."""
    held_out: list[str]
    """For the evaluation: first those with the seen kinds, then those with the held-out ones."""
    num_fit: int
    """Distinct questions that fit."""


def is_fit(question: str) -> bool:
    """Whether a question is short, of one paragraph, and says nothing of the form of its answer."""
    text = question.strip()
    return bool(text) and len(text) <= MAX_CHARACTERS and "\n" not in text


def draw_sets(
    questions: Iterable[str], num_train: int | None, num_seen: int, num_held_out_kinds: int, seed: int
) -> PromptSets:
    """Add instructions to distinct questions.

    Args:
        questions: real prompts; those that are not `is_fit` are passed over.
        num_train: prompts to train on; None takes all that are left.
        num_seen: held-out prompts with the kinds that are trained on.
        num_held_out_kinds: held-out prompts with the kinds that are not.
        seed: of the order, and of the instructions.

    Raises:
        DataError: there are too few questions.
    """
    fit = sorted({question.strip() for question in questions if is_fit(question)})
    num_wanted = num_seen + num_held_out_kinds + (num_train or 1)
    if len(fit) < num_wanted:
        raise DataError(
            f"{len(fit)} questions of one paragraph and at most {MAX_CHARACTERS} characters, {num_wanted} "
            "wanted. Give a larger file, or ask for fewer prompts."
        )
    random = Random(seed)
    random.shuffle(fit)
    seen = [kind for kind in KINDS if not kind.is_held_out]
    held_out = [kind for kind in KINDS if kind.is_held_out]
    end = len(fit) if num_train is None else num_seen + num_held_out_kinds + num_train
    evaluated = [with_instructions(question, seen, random) for question in fit[:num_seen]]
    for question in fit[num_seen : num_seen + num_held_out_kinds]:
        evaluated.append(with_instructions(question, held_out, random))
    train = [
        with_instructions(question, seen, random) for question in fit[num_seen + num_held_out_kinds : end]
    ]
    return PromptSets(train, evaluated, len(fit))


def with_instructions(question: str, kinds: Sequence[Kind], random: Random) -> str:
    """A question with one to three instructions of different groups, as its last paragraph."""
    wanted = random.choice(NUM_INSTRUCTIONS)
    lines: list[str] = []
    groups: set[str] = set()
    for kind in random.sample(kinds, len(kinds)):
        if kind.group in groups or len(lines) == wanted:
            continue
        groups.add(kind.group)
        lines.append(kind.says(random.choice(kind.values)))
    return question.strip() + "\n\n" + "\n".join(lines)
