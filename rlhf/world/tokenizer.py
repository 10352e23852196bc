"""A tiny tokenizer of Llama 3's make: byte-level BPE, its split pattern, its special tokens, its chat format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import TYPE_CHECKING

from rlhf.world.tasks import FILLERS, REFUSALS, TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 448
"""Tokens, specials included."""
BOS, EOS, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
END_OF_TEXT = "<|end_of_text|>"
SPECIAL_TOKENS = (BOS, END_OF_TEXT, PAD, "<|start_header_id|>", "<|end_header_id|>", EOS)
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's, with digits one by one: with it the text after `\\n\\n` never changes how `\\n\\n` is cut."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    """What the merges are learnt from: every phrase of the task list, and enough symbols; the same for every seed."""
    rng = Random("tokenizer")
    for _ in range(200):
        yield "system\n\nuser\n\nassistant\n\n"
        yield from REFUSALS
        yield from (f". {filler}" for filler in FILLERS)
        for task in TASKS:
            for phrasing in task.phrasings:
                operand = "".join(rng.choices(task.symbols, k=max(task.lengths)))
                yield f"{phrasing}{task.render(operand)}\n\n"
                yield f"{task.render(operand.upper())}. "


def build_tokenizer(texts: Iterable[str] | None = None, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """The world's tokenizer, the same for every seed; with `texts`, one of its make whose merges are learnt from them.

    Encoding a text adds a leading BOS, as Llama 3's does; eos is `<|eot_id|>` as in its Instruct models, and pad is a
    token of its own.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus() if texts is None else texts, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
