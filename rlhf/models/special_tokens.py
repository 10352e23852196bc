"""Contents of conversations are text, also where they spell out a special token of the tokenizer.

A chat template joins its own special tokens and the contents to one text, and tokenizing that takes the one
for the other: a response that spells an end of turn would forge the turn behind it. Only conversations that
spell such a token come here; all others are tokenized as ever.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from rlhf.config.choices import SpecialTokens
from rlhf.errors import SpellsSpecialToken
from rlhf.models.template import Messages, apply

# Private characters of the last plane, which no text has a use for.
_NAME_BEGINS = "\U0010fff0"
_NAME_ENDS = "\U0010fff1"
_MARKS = range(0x100000, 0x10FFF0)
_MAX_ROUNDS = 8
READS = "rlhf_reads_special_tokens_as"
"""What a tokenizer that was loaded here says of it, a `SpecialTokens`."""
# What other families' templates begin a turn with. To a tokenizer it may be plain text.
_OPENERS = (
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<|user|>",
    "<|start_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<｜User｜>",
    "<|start|>",
)


@dataclass(frozen=True)
class Vocabulary:
    """The special tokens of a tokenizer, and how to find them."""

    tokens: dict[str, AddedToken]
    exact: re.Pattern[str]
    any_case: re.Pattern[str]
    beginnings: frozenset[str]
    """The first two characters of each token, in lower case: most contents hold none of them."""

    def find(self, text: str) -> str | None:
        """The first special token that a text spells, in whatever case: templates may change that."""
        in_lower_case = text.lower()
        # A search for a few short texts takes microseconds, that for hundreds of tokens milliseconds.
        if not any(beginning in in_lower_case for beginning in self.beginnings):
            return None
        match = self.any_case.search(text)
        return match[0] if match else None


def reads_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what contents spell of special tokens is meant as those tokens, and not as text."""
    # Those of tests and scripts may come from elsewhere than `load_tokenizer`.
    return getattr(tokenizer, READS, SpecialTokens.text) is SpecialTokens.tokens


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens, those with a role and those that were only added as special."""
    ids = set()
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            ids.add(index)
    for index in tokenizer.all_special_ids:
        # A role whose token is not in the vocabulary has no id.
        if index is not None:
            ids.add(index)
    return ids


def spelled(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """The first special token that the contents of a conversation spell, None where they spell none.

    Example:
        [{"role": "user", "content": "What is <|eot_id|>?"}] gives "<|eot_id|>"
    """
    vocabulary = vocabulary_of(tokenizer)
    for content in _texts(messages):
        token = vocabulary.find(content)
        if token is not None:
            return token
    return None


def template_token(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """What contents hold that only a chat template writes, this model's or another's; None where nothing.

    Example:
        [{"role": "user", "content": "<|im_start|>user"}] gives "<|im_start|>", whatever the tokenizer
    """
    # Who asks for tokens means them.
    if reads_tokens(tokenizer):
        return None
    return spelled(tokenizer, messages) or _opener(messages)


def _opener(messages: Messages) -> str | None:
    """What a template of any family begins a turn with, where a content begins so; None where none does.

    Example:
        [{"role": "user", "content": "[INST] Hi [/INST]"}] gives "[INST]"
    """
    for content in _texts(messages):
        for beginning in _OPENERS:
            if content.lstrip().startswith(beginning):
                return beginning
    return None


def templated_already(tokens: Counter[str], total: int) -> str:
    """What to say of prompts that hold a template's tokens: how many hold which, of `total` prompts.

    Example:
        "24 of 24 prompts hold <|im_start|>: a chat template was applied to them already, …"
    """
    most_often, _ = tokens.most_common(1)[0]
    return (
        f"{tokens.total()} of {total} prompts hold {most_often}: a chat template was applied to them "
        "already, or they quote one. Give the messages, or the text alone, without a template's tokens; what "
        "they spell is read as text (special_tokens=tokens reads it as those tokens)."
    )


def _texts(messages: Messages) -> Iterator[str]:
    """The contents that are text; what else a template takes is left to it."""
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The special tokens of a tokenizer as it is now: training a judge may give it one more."""
    return _vocabulary(tokenizer, _state(tokenizer))


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[int, tuple[str, ...]]:
    """What changes with the special tokens, and costs little to ask."""
    tokens_with_a_role = tuple(map(str, tokenizer.all_special_tokens))
    return len(tokenizer), tokens_with_a_role


# Asked for every conversation, and a vocabulary may have hundreds of special tokens.
@lru_cache(maxsize=8)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, state: object) -> Vocabulary:
    tokens: dict[str, AddedToken] = {}
    for token in tokenizer.all_special_tokens:
        tokens[str(token)] = AddedToken(str(token), special=True, normalized=False)
    # After those with a role: an entry of the vocabulary knows how white space around it is read.
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            tokens[token.content] = token
    # Templates look at white space and trim it, so a token of nothing else cannot be told from it.
    tokens = {name: token for name, token in tokens.items() if name.strip()}
    # The longest first, as tokenizers match them. Without any token a pattern that never matches.
    names = sorted(tokens, key=len, reverse=True)
    pattern = "|".join(map(re.escape, names)) or r"(?!)"
    beginnings = frozenset(name[:2].lower() for name in names)
    return Vocabulary(tokens, re.compile(pattern), re.compile(pattern, re.IGNORECASE), beginnings)


@dataclass(frozen=True)
class _Renamed:
    """A copy of a tokenizer in which every special token has a second name that no text spells.

    The names are added tokens that are no special ones, so they are found where special tokens are told to be
    read as text, and cut the text around them as the tokens themselves do.
    """

    tokenizer: Any
    name_of: dict[str, str]
    id_of: dict[int, int]
    """Of each name's id the id of the token it stands for."""


@lru_cache(maxsize=8)
def _renamed(tokenizer: PreTrainedTokenizerBase, state: object) -> _Renamed:
    # Added to a copy: the tokenizer itself is saved with trained models.
    renamed = copy.deepcopy(tokenizer)
    name_of = {}
    names = []
    for number, (content, token) in enumerate(vocabulary_of(tokenizer).tokens.items()):
        name = f"{_NAME_BEGINS}{number}{_NAME_ENDS}"
        name_of[content] = name
        names.append(
            AddedToken(
                name,
                special=False,
                # With these the white space around a name is read as that around the token.
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=token.normalized,
            )
        )
    renamed.add_tokens(names)
    if hasattr(renamed, "tokens_trie"):
        _forget_in_python(renamed, set(name_of))
    id_of = {}
    for content, name in name_of.items():
        id_of[renamed.convert_tokens_to_ids(name)] = tokenizer.convert_tokens_to_ids(content)
    return _Renamed(renamed, name_of, id_of)


def _forget_in_python(renamed: Any, special: set[str]) -> None:
    """Let a tokenizer written in Python find the names and no longer the special tokens."""
    # Told to read special tokens as text it would find no added token at all, also no name.
    trie = type(renamed.tokens_trie)()
    for token in renamed.get_added_vocab():
        if token not in special:
            trie.add(token)
    renamed.tokens_trie = trie


def ids_as_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool,
) -> list[int]:
    """Token ids of a conversation in which only the template's own special tokens are special.

    Raises:
        TemplateRefuses: the chat template takes no such conversation.
        SpellsSpecialToken: (a TemplateRefuses) this tokenizer cannot read such a text as text.
    """
    state = _state(tokenizer)
    try:
        renamed = _renamed(tokenizer, state)
    # A tokenizer with code of its own may not be one that can be copied or takes more tokens.
    except Exception as error:
        raise _refusal(tokenizer, messages) from error
    if any(_NAME_BEGINS in content for content in _texts(messages)):
        raise _refusal(tokenizer, messages)
    text, originals = _rendered(tokenizer, messages, add_generation_prompt)
    # While the contents are marked, what is found are the template's own.
    text, num_names = vocabulary_of(tokenizer).exact.subn(lambda match: renamed.name_of[match[0]], text)
    text = text.translate(originals)
    in_python = hasattr(renamed.tokenizer, "tokens_trie")
    ids = renamed.tokenizer(text, add_special_tokens=False, split_special_tokens=not in_python)["input_ids"]
    # A normalizer that rewrites the text may leave names that are not found, and become pieces of text.
    num_found = sum(1 for index in ids if index in renamed.id_of)
    # Some vocabularies hold special tokens among their ordinary pieces, and find them there again.
    if num_found != num_names or _forged(tokenizer, messages, ids):
        raise _refusal(tokenizer, messages)
    return [renamed.id_of.get(index, index) for index in ids]


def _forged(tokenizer: PreTrainedTokenizerBase, messages: Messages, ids: Iterable[int]) -> bool:
    """Whether special tokens were read out of the contents; the template's own have other ids here."""
    forbidden = special_ids(tokenizer)
    unknown = tokenizer.unk_token
    # Characters that a vocabulary lacks are read as unknown everywhere, unless the contents spell just that.
    if unknown is not None and not any(unknown in content for content in _texts(messages)):
        forbidden.discard(tokenizer.unk_token_id)
    return not forbidden.isdisjoint(ids)


def text_of(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool,
) -> str:
    """What the chat template writes of a conversation whose contents are text.

    Raises:
        TemplateRefuses: it takes no such conversation.
    """
    text, originals = _rendered(tokenizer, messages, add_generation_prompt)
    return text.translate(originals)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool,
) -> tuple[str, dict[int, str]]:
    """The rendered text with marks in the contents, and which characters these stand for."""
    marked, originals = _marked(tokenizer, messages)
    text: str = apply(tokenizer, marked, add_generation_prompt, tokenize=False)
    return text, originals


def _marked(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
) -> tuple[list[dict[str, str]], dict[int, str]]:
    """The messages with a private character in place of the first one of each special token they spell.

    In its place and not before it: a token may be a single character, and templates may count them.
    """
    used = set("".join(_texts(messages)))
    free = (chr(code) for code in _MARKS if chr(code) not in used)
    mark_of: dict[str, str] = {}

    def mark(match: re.Match[str]) -> str:
        first = match[0][0]
        if first not in mark_of:
            mark_of[first] = next(free)
        return mark_of[first] + match[0][1:]

    marked = _replaced(tokenizer, messages, mark)
    originals = {ord(private): first for first, private in mark_of.items()}
    return marked, originals


def broken_up(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[dict[str, str]]:
    """The messages with a space inside of every special token they spell, so that it is none any more.

    Example:
        [{"role": "user", "content": "<|eot_id|>"}] gives [{"role": "user", "content": "< |eot_id|>"}]
    """

    def break_up(match: re.Match[str]) -> str:
        # There is no inside of a single character.
        if len(match[0]) == 1:
            return ""
        return f"{match[0][0]} {match[0][1:]}"

    return _replaced(tokenizer, messages, break_up)


def _replaced(tokenizer: PreTrainedTokenizerBase, messages: Messages, replace: Any) -> list[dict[str, str]]:
    vocabulary = vocabulary_of(tokenizer)
    replaced = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            # Several times: where two tokens overlap, the second is found when the first is none any more.
            for _ in range(_MAX_ROUNDS):
                if vocabulary.find(content) is None:
                    break
                content = vocabulary.any_case.sub(replace, content)
        replaced.append({**message, "content": content})
    return replaced


def _refusal(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> SpellsSpecialToken:
    token = spelled(tokenizer, messages)
    return SpellsSpecialToken(
        f"{tokenizer.name_or_path}: a content spells the special token {token!r}, and this tokenizer cannot "
        "read it as text. Take it out of the data, or set special_tokens=tokens if the token is meant."
    )
