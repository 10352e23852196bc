"""How a pairwise preference model reads a comparison: as the published one was trained (RLHFlow, `pair-pm`).

The judge gets one user turn, `[CONTEXT] {x} [RESPONSE A] {a1} [RESPONSE B] {a2}`, in its own chat template with the
generation prompt and without BOS, and answers with the single token A or B. Judging and training both read it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.errors import ModelError
from rlhf.models.chat import Messages, render_prompt

_TURN = "\n<turn> {role}\n {content}"


def comparison_text(messages: Messages, response_a: str, response_b: str) -> str:
    """The user turn that the judge gets. The context is the conversation in the published model's plain turns."""
    context = "".join(_TURN.format(role=m["role"], content=m["content"]) for m in messages)
    return f"[CONTEXT] \n{context}\n [RESPONSE A] {response_a} [RESPONSE B] {response_b} \n"


def render_comparison(tokenizer: Any, messages: Messages, response_a: str, response_b: str) -> list[int]:
    """Token ids up to where the judge's answer begins, without BOS.

    Raises:
        TemplateRefuses: the judge's chat template takes no user turn.
    """
    turn = {"role": "user", "content": comparison_text(messages, response_a, response_b)}
    ids = render_prompt(tokenizer, [turn])
    return ids[1:] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else ids


def answer_ids(tokenizer: Any) -> tuple[int, int]:
    """The tokens of the answers A and B.

    Raises:
        ModelError: one of them is not a single token.
    """
    found = {letter: tokenizer.encode(letter, add_special_tokens=False) for letter in ("A", "B")}
    if any(len(ids) != 1 for ids in found.values()):
        raise ModelError(
            f"{tokenizer.name_or_path}: the answers A and B must be one token each, and are {found}. Use a model with "
            "another tokenizer as pairwise judge, or reward_model.kind=scalar."
        )
    return found["A"][0], found["B"][0]


def require_causal_lm(path: str | Path, config: Any) -> None:
    """Refuse a classifier: loaded as a causal LM, its answers would come from random weights.

    Raises:
        ModelError: what the folder holds, and what to use.
    """
    names = config.architectures or []
    if any("SequenceClassification" in name for name in names):
        raise ModelError(
            f"{path}: holds a {', '.join(names)}, and a pairwise judge is a causal LM that answers A or B. Use "
            "reward_model.kind=scalar for it, or another model."
        )
