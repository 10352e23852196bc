"""Chat templates and special tokens: the one place where a conversation becomes token ids.

A prompt is rendered once; sampler, reference model and DPO all use those ids (RECIPE: one BOS everywhere).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlhf.errors import ModelError, TemplateRefuses
from rlhf.models.folder import load_config, text_config

Messages = Sequence[Mapping[str, str]]
TODAY = date(2024, 7, 26)
"""What a template that writes the date is told: equal work must give equal bytes on another day too (the fixed date of
Llama 3.1's template)."""


def load_tokenizer(
    path: str | Path, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with its own chat template or the one given.

    With a template given, the token that ends a turn becomes the eos, so that every server stops there.

    Raises:
        ModelError: there is no tokenizer, it has no chat template, or the model no embeddings for it.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(
            f"{path}: no usable tokenizer ({' '.join(str(error).split())}). Save one beside the weights with "
            "tokenizer.save_pretrained; one with Python code of its own needs trust_remote_code=true."
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    if not tokenizer.chat_template:
        raise ModelError(
            f"{path}: the tokenizer has no chat template. Set tokenizer.chat_template and save it into the folder, "
            "give sft.chat_template where the run fine-tunes it, or use the chat or instruct version of the model."
        )
    size = text_config(path).get("vocab_size") if (Path(path) / "config.json").is_file() else None
    last = -1
    with suppress(TemplateRefuses):
        last = max(render_prompt(tokenizer, [{"role": "user", "content": "a"}]))
    if size is not None and last >= size:
        raise ModelError(
            f"{path}: the chat template writes token {last}, and the model has {size} embeddings (vocab_size). Take "
            "the model's own tokenizer, or enlarge them: model.resize_token_embeddings(len(tokenizer)), then train."
        )
    return tokenizer


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of the chat template; templates change between revisions of a model."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool) -> list[int]:
    try:
        ids: Any = tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tokenize=True,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            strftime_now=TODAY.strftime,
        )
    except Exception as error:  # Jinja templates raise whatever their author chose
        raise TemplateRefuses(
            f"{tokenizer.name_or_path}: the chat template refuses a conversation with roles "
            f"{[m['role'] for m in messages]}: {error}. Take such turns out of the data, use a model whose template "
            "takes them, or change the template in a copy of the model's folder (for instance so that it writes the "
            "system turn into the first user turn)."
        ) from error
    return _with_one_bos(tokenizer, list(ids))


def _with_one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    tokenizer_adds_bos = tokenizer("a")["input_ids"][:1] == [bos] if start == 0 else True
    return ([bos] if tokenizer_adds_bos else []) + ids[start:]


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a prompt up to where the assistant's answer begins, with one BOS where the model has one.

    Raises:
        TemplateRefuses: the chat template takes no such conversation.
    """
    return _render(tokenizer, messages, add_generation_prompt=True)


def render_prompts(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> tuple[list[tuple[dict[str, Any], list[int]]], dict[str, int]]:
    """The prompts that can be sampled with their token ids, and what became of all of them.

    Example:
        rows: [{"id": "5f0c…", "messages": [{"role": "user", "content": "Hi"}]}]
        counts: {"prompts": 1, "prompts_sampled": 1, "dropped/prompt_too_long": 0, "dropped/refused_by_template": 0}
    """
    rendered = []
    num_refused = 0
    num_too_long = 0
    for row in rows:
        try:
            ids = render_prompt(tokenizer, row["messages"])
        except TemplateRefuses:
            num_refused += 1
            continue
        if len(ids) > max_prompt_tokens:
            num_too_long += 1
            continue
        rendered.append((row, ids))
    counts = {
        "prompts": len(rows),
        "prompts_sampled": len(rendered),
        "dropped/prompt_too_long": num_too_long,
        "dropped/refused_by_template": num_refused,
    }
    return rendered, counts


def render_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a whole conversation, as a reward model reads it, with one BOS where the model has one.

    Raises:
        TemplateRefuses: the chat template takes no such conversation.
    """
    return _render(tokenizer, messages, add_generation_prompt=False)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {index for index in tokenizer.all_special_ids if index is not None}


@lru_cache(maxsize=8)
def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn: what DPO trains a response to end with.

    It is the first special token after the answer. What is the same after two different answers comes after the
    answer; special tokens before it (a think block) or later (a line end, an eos of the whole text) do not count.

    Raises:
        ModelError: the template ends the turn with no special token, and the tokenizer has no eos.
    """
    special = _special_ids(tokenizer)
    one, other = (
        render_conversation(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}])
        for answer in ("b", "c")
    )
    after: list[int] = []
    for index, same in zip(reversed(one), reversed(other), strict=False):
        if index != same:
            break
        after.insert(0, index)
    for index in after:
        if index in special:
            return index
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: nothing marks the end of an assistant's turn: the template ends it with no "
            "special token and the tokenizer has no eos. Set tokenizer.eos_token, or mend the template."
        )
    return int(tokenizer.eos_token_id)


def render_response(
    tokenizer: PreTrainedTokenizerBase, prompt_messages: Messages, response: str
) -> tuple[list[int], list[int]]:
    """Prompt ids, and the ids of a written response up to and with the end-of-turn token.

    For text that no sampler of ours produced (SFT data); sampled responses keep their own ids.

    Raises:
        ModelError: the rendered prompt is no prefix of the rendered conversation.
    """
    prompt = render_prompt(tokenizer, prompt_messages)
    whole = render_conversation(tokenizer, [*prompt_messages, {"role": "assistant", "content": response}])
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise ModelError(
            f"{tokenizer.name_or_path}: the rendered prompt is no prefix of the rendered conversation, so the response "
            f"cannot be told from it. First prompt message: {prompt_messages[0]['content'][:80]!r}. Mend the chat "
            "template, or its tokenizer's merges across the turn boundary."
        )
    rest = whole[len(prompt) :]
    end = end_of_turn_id(tokenizer)
    if end in rest:
        rest = rest[: len(rest) - rest[::-1].index(end)]
    return prompt, rest


def longest_prompt(path: str | Path, wanted: int, max_new_tokens: int, trust_remote_code: bool = False) -> int:
    """Tokens a prompt may have: `wanted`, or less where the model's context leaves less beside a whole response.

    Raises:
        ModelError: the context has no room for a response at all.
    """
    config = load_config(path, trust_remote_code).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return wanted
    if context <= max_new_tokens:
        raise ModelError(
            f"{path}: its context of {context} tokens has no room for generate.max_new_tokens={max_new_tokens} and a "
            f"prompt. Set generate.max_new_tokens below {context}, or use a model with a longer context."
        )
    return min(wanted, int(context) - max_new_tokens)


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, extra: Iterable[int] = (), trust_remote_code: bool = False
) -> list[int]:
    """Every token at which sampling stops, sorted: tokenizer eos, end of turn, the model's own eos ids, `extra`.

    Raises:
        ModelError: one of `extra` is not in the model's vocabulary.
    """
    config = load_config(path, trust_remote_code)
    vocab_size = config.get_text_config().vocab_size
    unknown = [index for index in extra if not 0 <= index < vocab_size]
    if unknown:
        raise ModelError(
            f"generate.stop_token_ids: {unknown} are not in the vocabulary of {path} (0 to {vocab_size - 1}). Remove "
            "them, or use the ids that the tokenizer of this model has."
        )
    stops = {end_of_turn_id(tokenizer), *extra}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    sources: list[Any] = [config]
    if (Path(path) / "generation_config.json").is_file():
        sources.append(GenerationConfig.from_pretrained(path))
    for source in sources:
        eos = getattr(source, "eos_token_id", None)
        stops.update([eos] if isinstance(eos, int) else eos or [])
    return sorted(int(index) for index in stops if 0 <= index < vocab_size)
