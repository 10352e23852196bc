"""A tiny tokenizer of Llama 3's make: byte-level BPE, its split pattern, special tokens and chat format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import TYPE_CHECKING

from rlhf.world.tasks import FILLERS, REFUSALS, TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 448
"""Tokens, specials included."""
BOS = "<|begin_of_text|>"
EOS = "<|eot_id|>"
PAD = "<|finetune_right_pad_id|>"
END_OF_TEXT = "<|end_of_text|>"
# Their ids follow this order, so that another order is another tokenizer.
SPECIAL_TOKENS = (BOS, END_OF_TEXT, PAD, "<|start_header_id|>", "<|end_header_id|>", EOS)
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's, with digits one by one: with it the text after `\\n\\n` never changes how `\\n\\n` is cut."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    """What the merges are learnt from, the same for every seed: all phrases of the tasks, enough symbols."""
    rng = Random("tokenizer")
    # Often enough that the random operands hold every symbol, at every place, of every task.
    for _ in range(200):
        yield "system\n\nuser\n\nassistant\n\n"
        yield from REFUSALS
        for filler in FILLERS:
            yield f". {filler}"
        for task in TASKS:
            for phrasing in task.phrasings:
                symbols = rng.choices(task.symbols, k=max(task.lengths))
                operand = "".join(symbols)
                yield f"{phrasing}{task.render(operand)}\n\n"
                # As an answer: capitals stand only there, and each must become one token with its space.
                yield f"{task.render(operand.upper())}. "


def build_tokenizer(
    texts: Iterable[str] | None = None,
    vocab_size: int = VOCAB_SIZE,
) -> PreTrainedTokenizerFast:
    """The world's tokenizer, the same for every seed; with `texts`, one whose merges are learnt from them.

    Encoding a text adds a leading BOS, as Llama 3's does; eos is `<|eot_id|>` as in its Instruct models, and
    pad is a token of its own.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            # The split is done; the class's own pattern, GPT-2's, would cut a second time.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # The special tokens come on top, behind the merges as in Llama 3.
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        # Sorted, for the alphabet comes as a set: its order, and with it every id, would change by process.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus() if texts is None else texts, trainer)
    special_tokens = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    core.add_special_tokens(special_tokens)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, core.token_to_id(BOS))],
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
