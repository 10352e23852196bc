"""Chat templates and special tokens: the one place where a conversation becomes token ids.

A prompt is rendered once; sampler, reference model and DPO all use those ids (RECIPE: one BOS everywhere).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.config.choices import SpecialTokens
from rlhf.errors import ModelError, SpellsSpecialToken, TemplateRefuses
from rlhf.models.context import loaded_context
from rlhf.models.folder import load_config, saved_stop_ids, text_config
from rlhf.models.kinds import check_tokenizer_files
from rlhf.models.special_tokens import READS, broken_up, ids_as_text, reads_tokens, special_ids, spelled
from rlhf.models.template import Messages, apply, probe
from rlhf.models.written import require_written


def load_tokenizer(
    path: str | Path,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    special_tokens: SpecialTokens = SpecialTokens.text,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with its own chat template or the one given.

    With a template given, the token that ends a turn becomes the eos, so that every server stops there.
    `special_tokens` says how everything below reads contents that spell a special token.

    Raises:
        ModelError: there is no tokenizer, it has no chat template, or the model no embeddings for it.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            trust_remote_code=trust_remote_code,
        )
    # The tokenizers library raises nothing more special.
    except Exception as error:
        check_tokenizer_files(Path(path))
        details = " ".join(str(error).split())
        raise ModelError(
            f"{path}: no usable tokenizer ({details}). Save one beside the weights with "
            "tokenizer.save_pretrained; one with Python code of its own needs "
            "trust_remote_code=true."
        ) from error
    setattr(tokenizer, READS, special_tokens)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    if not tokenizer.chat_template:
        raise ModelError(
            f"{path}: the tokenizer has no chat template. Set tokenizer.chat_template and save it "
            "into the folder, give sft.chat_template where the run fine-tunes it, or use the chat "
            "or instruct version of the model."
        )
    _require_embeddings(path, tokenizer)
    return tokenizer


def _require_embeddings(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the chat template writes tokens that the model does not have."""
    # A tokenizer may also stand in a folder of its own, without any model.
    if not (Path(path) / "config.json").is_file():
        return
    size = text_config(path).get("vocab_size")
    largest = -1
    # Ids above all others belong to tokens that were added, and those stand in the template: one
    # turn shows them.
    with suppress(TemplateRefuses):
        largest = max(render_prompt(tokenizer, probe(tokenizer)))
    if isinstance(size, int) and largest >= size:
        raise ModelError(
            f"{path}: the chat template writes token {largest}, and the model has {size} "
            "embeddings (vocab_size). Take the model's own tokenizer, or enlarge them: "
            "model.resize_token_embeddings(len(tokenizer)), then train."
        )


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of the chat template; templates change between revisions of a model."""
    # As text: a tokenizer may have several templates, as a mapping.
    template = str(tokenizer.chat_template)
    digest = hashlib.sha256(template.encode())
    return digest.hexdigest()[:16]


def spells_special_token(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """The first special token that contents spell and that is read as text; None where there is none."""
    if reads_tokens(tokenizer):
        return None
    return spelled(tokenizer, messages)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool,
    break_up: bool = False,
) -> list[int]:
    """Token ids of a conversation: the one place where text becomes tokens.

    What contents spell of special tokens is text here; where a tokenizer has no way to read it so, it is
    broken up, or refused.
    """
    ids: list[int]
    if spells_special_token(tokenizer, messages) is None:
        ids = apply(tokenizer, messages, add_generation_prompt, tokenize=True)
        return _with_one_bos(tokenizer, list(ids))
    try:
        ids = ids_as_text(tokenizer, messages, add_generation_prompt)
    except SpellsSpecialToken:
        if not break_up:
            raise
        messages = broken_up(tokenizer, messages)
        ids = apply(tokenizer, messages, add_generation_prompt, tokenize=True)
    return _with_one_bos(tokenizer, list(ids))


def _with_one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids with exactly one BOS, where the model is used to one."""
    bos = tokenizer.bos_token_id
    # Where it opens every turn it is the template's, like any other token of a header.
    if bos is None or bos_per_exchange(tokenizer) > 1:
        return ids
    # A template may write one, and tokenizing its text may add another.
    num_bos = 0
    while num_bos < len(ids) and ids[num_bos] == bos:
        num_bos += 1
    if num_bos > 0:
        return [bos, *ids[num_bos:]]
    # Some models have a BOS token and never use it: then plain text gets none either.
    ids_of_text = tokenizer("a")["input_ids"]
    if ids_of_text[:1] == [bos]:
        return [bos, *ids]
    return ids


# Asked for every conversation; what it gives for a template does not change.
@lru_cache(maxsize=8)
def _bos_per_exchange(tokenizer: PreTrainedTokenizerBase, bos: int, template: str) -> int:
    prompt = probe(tokenizer)
    exchange = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]
    try:
        ids = apply(tokenizer, prompt, add_generation_prompt=True, tokenize=True)
        longer = apply(tokenizer, [*prompt, *exchange], add_generation_prompt=True, tokenize=True)
    except TemplateRefuses:
        # Conversations of one turn alone, or none at all: who renders one is told.
        return 0
    return int(list(longer).count(bos) - list(ids).count(bos))


def bos_per_exchange(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many BOS an answer and the next question add to a conversation.

    0 for most models; 1 where each question is begun with one (Llama 2); 2 where it opens every turn,
    as in SmolLM2, whose BOS is ChatML's `<|im_start|>`.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return 0
    return _bos_per_exchange(tokenizer, bos, str(tokenizer.chat_template))


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    break_up: bool = False,
) -> list[int]:
    """Token ids of a prompt up to where the assistant's answer begins, with one BOS where the model has one.

    `break_up` puts a space into special tokens that contents spell where this tokenizer cannot read
    them as text: a judge must read what was sampled, whatever it holds.

    Raises:
        TemplateRefuses: the chat template takes no such conversation.
        SpellsSpecialToken: (a TemplateRefuses) the tokenizer cannot read a content as text.
    """
    return _render(tokenizer, messages, add_generation_prompt=True, break_up=break_up)


def render_prompts(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    judges: Sequence[PreTrainedTokenizerBase] = (),
) -> tuple[list[tuple[dict[str, Any], list[int]]], dict[str, int]]:
    """The prompts that can be sampled with their token ids, and what became of all of them.

    Prompts that one of the `judges` (their tokenizers) refuses are dropped too: nobody could score
    the answers.

    Example:
        rows: [{"id": "5f0c…", "messages": [{"role": "user", "content": "Hi"}]}]
        counts: {"prompts": 1, "prompts_sampled": 1, "dropped/prompt_too_long": 0,
            "dropped/refused_by_template": 0}
    """
    rendered = []
    counts = {
        "prompts": len(rows),
        "prompts_sampled": 0,
        "dropped/prompt_too_long": 0,
        "dropped/refused_by_template": 0,
    }
    for row in rows:
        messages = row["messages"]
        if spells_special_token(tokenizer, messages) is not None:
            _add(counts, "spelled_special_tokens")
        try:
            ids = render_prompt(tokenizer, messages)
        except TemplateRefuses as error:
            _add(counts, f"dropped/{error.reason}")
            continue
        # Dropped and not cut: a prompt without its beginning or end asks something else.
        if len(ids) > max_prompt_tokens:
            _add(counts, "dropped/prompt_too_long")
            continue
        if any(refusal_of_judge(judge, messages) is not None for judge in judges):
            _add(counts, "dropped/refused_by_judge")
            continue
        rendered.append((row, ids))
    counts["prompts_sampled"] = len(rendered)
    return rendered, counts


def _add(counts: dict[str, int], key: str) -> None:
    """Count one more; what never happens has no entry, so that shards keep their bytes."""
    before = counts.get(key, 0)
    counts[key] = before + 1


def refusal_of_judge(judge: PreTrainedTokenizerBase, messages: Messages) -> TemplateRefuses | None:
    """Why a judge with this tokenizer cannot read answers to a prompt; None where it can."""
    answer = {"role": "assistant", "content": "a"}
    try:
        render_conversation(judge, [*messages, answer], break_up=True)
    except TemplateRefuses as error:
        return error
    return None


def render_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    break_up: bool = False,
) -> list[int]:
    """Token ids of a whole conversation, as a reward model reads it, with one BOS where the model has one.

    Raises, and `break_up`: as of `render_prompt`.
    """
    return _render(tokenizer, messages, add_generation_prompt=False, break_up=break_up)


# Asked for every SFT row; what it gives for a tokenizer does not change.
@lru_cache(maxsize=8)
def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn: what DPO trains a response
    to end with.

    It is the first special token after the answer. What is the same after two different answers
    comes after the answer; special tokens before it (a think block) or later (a line end, an eos of
    the whole text) do not count.

    Raises:
        ModelError: the template ends the turn with no special token, and the tokenizer has no eos.
    """
    special = special_ids(tokenizer)
    question = probe(tokenizer)
    answered_b = render_conversation(tokenizer, [*question, {"role": "assistant", "content": "b"}])
    answered_c = render_conversation(tokenizer, [*question, {"role": "assistant", "content": "c"}])
    after: list[int] = []
    # From the end, until the answers themselves differ.
    for id_b, id_c in zip(reversed(answered_b), reversed(answered_c), strict=False):
        if id_b != id_c:
            break
        after.append(id_b)
    for index in reversed(after):
        if index in special:
            return index
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: nothing marks the end of an assistant's turn: the "
            "template ends it with no special token and the tokenizer has no eos. Set "
            "tokenizer.eos_token, or mend the template."
        )
    return int(tokenizer.eos_token_id)


def render_response(
    tokenizer: PreTrainedTokenizerBase, prompt_messages: Messages, response: str
) -> tuple[list[int], list[int]]:
    """Prompt ids, and the ids of a written response up to and with the end-of-turn token.

    For text that no sampler of ours produced (SFT data); sampled responses keep their own ids.

    Raises:
        ModelError: the rendered prompt is no prefix of the rendered conversation.
        TemplateRefuses: the chat template takes no such conversation, or changes the response.
    """
    prompt = render_prompt(tokenizer, prompt_messages)
    turn = {"role": "assistant", "content": response}
    whole = render_conversation(tokenizer, [*prompt_messages, turn])
    prompt_is_prefix = whole[: len(prompt)] == prompt
    if not prompt_is_prefix or len(whole) == len(prompt):
        raise ModelError(
            f"{tokenizer.name_or_path}: the rendered prompt is no prefix of the rendered "
            "conversation, so the response cannot be told from it. First prompt message: "
            f"{prompt_messages[0]['content'][:80]!r}. Mend the chat template, or its tokenizer's "
            "merges across the turn boundary."
        )
    require_written(tokenizer, [*prompt_messages, turn], [len(prompt_messages)])
    rest = whole[len(prompt) :]
    end = end_of_turn_id(tokenizer)
    if end in rest:
        # The last one, for a response's text may spell the token out. What stands behind it is no
        # part of the turn.
        num_behind = rest[::-1].index(end)
        rest = rest[: len(rest) - num_behind]
    return prompt, rest


def longest_prompt(
    path: str | Path,
    wanted: int,
    max_new_tokens: int,
    trust_remote_code: bool = False,
) -> int:
    """Tokens a prompt may have: `wanted`, or less where the model's context leaves less beside a
    whole response.

    Raises:
        ModelError: the context has no room for a response at all.
    """
    # Models without position embeddings say nothing of a limit.
    context = loaded_context(path, load_config(path, trust_remote_code))
    if context is None:
        return wanted
    if context <= max_new_tokens:
        raise ModelError(
            f"{path}: its context of {context} tokens has no room for "
            f"generate.max_new_tokens={max_new_tokens} and a prompt. Set generate.max_new_tokens "
            f"below {context}, or use a model with a longer context."
        )
    return min(wanted, context - max_new_tokens)


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    extra: Iterable[int] = (),
    trust_remote_code: bool = False,
) -> list[int]:
    """Every token at which sampling stops, sorted: tokenizer eos, end of turn, the model's own eos
    ids, `extra`.

    Raises:
        ModelError: one of `extra` is not in the model's vocabulary.
    """
    config = load_config(path, trust_remote_code)
    vocab_size = config.get_text_config().vocab_size
    extra_ids = list(extra)
    unknown = [index for index in extra_ids if not 0 <= index < vocab_size]
    if unknown:
        raise ModelError(
            f"generate.stop_token_ids: {unknown} are not in the vocabulary of {path} (0 to "
            f"{vocab_size - 1}). Remove them, or use the ids that the tokenizer of this model has."
        )
    stops = {end_of_turn_id(tokenizer), *extra_ids}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    stops.update(saved_stop_ids(path))
    # One id, several, or none.
    eos = getattr(config, "eos_token_id", None)
    if isinstance(eos, int):
        stops.add(eos)
    elif eos:
        stops.update(eos)
    # A config may name an eos that its model has no embedding for; engines refuse such an id.
    return sorted(int(index) for index in stops if 0 <= index < vocab_size)
