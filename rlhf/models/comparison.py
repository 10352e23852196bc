"""How a pairwise preference model reads a comparison: as the published one was trained (RLHFlow, `pair-pm`).

The judge gets one user turn, `[CONTEXT] {x} [RESPONSE A] {a1} [RESPONSE B] {a2}`, in its own chat
template with the generation prompt and without BOS, and answers with the single token A or B.
Judging and training both read it here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.errors import ModelError
from rlhf.models.chat_template import bos_per_exchange, render_prompt
from rlhf.models.template import Messages


def comparison_text(messages: Messages, response_a: str, response_b: str) -> str:
    r"""The user turn that the judge gets. The context is the conversation in the published model's
    plain turns.

    Example:
        "[CONTEXT] \n\n<turn> user\n Hi\n [RESPONSE A] Hello! [RESPONSE B] Yo. \n"
    """
    # The published model was trained on exactly these spaces and line ends.
    turns = []
    for message in messages:
        turns.append(f"\n<turn> {message['role']}\n {message['content']}")
    context = "".join(turns)
    return f"[CONTEXT] \n{context}\n [RESPONSE A] {response_a} [RESPONSE B] {response_b} \n"


def comparison_turn(messages: Messages, response_a: str, response_b: str) -> dict[str, str]:
    """The one message of the judge's conversation."""
    return {"role": "user", "content": comparison_text(messages, response_a, response_b)}


def render_comparison(
    tokenizer: Any,
    messages: Messages,
    response_a: str,
    response_b: str,
    break_up: bool = False,
) -> list[int]:
    """Token ids up to where the judge's answer begins, without BOS.

    `break_up` is for texts that were sampled, as of `rlhf.models.chat_template.render_prompt`.

    Raises:
        TemplateRefuses: the judge's chat template takes no user turn.
    """
    turn = comparison_turn(messages, response_a, response_b)
    ids = render_prompt(tokenizer, [turn], break_up)
    # Where it opens every turn it stays: without it the user's turn would have no beginning.
    if bos_per_exchange(tokenizer) > 1:
        return ids
    # `render_prompt` gives one BOS where the model has one; this judge was trained without.
    if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
        return ids[1:]
    return ids


def answer_ids(tokenizer: Any) -> tuple[int, int]:
    """The tokens of the answers A and B.

    Raises:
        ModelError: one of them is not a single token.
    """
    ids_by_answer = {}
    for letter in ("A", "B"):
        ids_by_answer[letter] = tokenizer.encode(letter, add_special_tokens=False)
    # Of longer answers, one position's logits would not tell the probability.
    if any(len(ids) != 1 for ids in ids_by_answer.values()):
        raise ModelError(
            f"{tokenizer.name_or_path}: the answers A and B must be one token each, and are "
            f"{ids_by_answer}. Use a model with another tokenizer as pairwise judge, or "
            "reward_model.kind=scalar."
        )
    return ids_by_answer["A"][0], ids_by_answer["B"][0]


def require_causal_lm(path: str | Path, config: Any) -> None:
    """Refuse a classifier: loaded as a causal LM, its answers would come from random weights.

    Raises:
        ModelError: what the folder holds, and what to use.
    """
    names = config.architectures or []
    if any("SequenceClassification" in name for name in names):
        raise ModelError(
            f"{path}: holds a {', '.join(names)}, and a pairwise judge is a causal LM that "
            "answers A or B. Use reward_model.kind=scalar for it, or another model."
        )
