"""Tiny random policies and judges of each model family, with that family's special tokens and chat format.

What differs between families, and is kept here: whether there is a BOS, whether the template writes it and
the tokenizer adds it; which token ends a turn and whether eos is another; what stands after the end of a
turn; default system turns; refused roles; thinking; the pad token; embeddings larger than the vocabulary.

The chat templates are written for these tests; `test_families.py` holds their text against the ones TRL
ships.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CHATML = "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
_CHATML_HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_QWEN2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% set text = m.content %}" + _CHATML + "{% endfor %}" + _CHATML_HEADER
)
_QWEN3 = (
    "{% set seen = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set seen.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m.content %}{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > seen.user and (loop.last or thought) %}"
    "{% set text = '<think>\n' + thought + '\n</think>\n\n' + text.lstrip('\n') %}{% endif %}{% endif %}"
    + _CHATML
    + "{% endfor %}"
    + _CHATML_HEADER
)
_ALTERNATE = (
    "{% for m in turns %}{% if (m.role == 'user') == (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('the roles must be user and assistant in turn') }}{% endif %}{% endfor %}"
)
_WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set turns, system = messages[1:], messages[0].content "
    "+ '\n\n' %}"
    "{% else %}{% set turns, system = messages, '' %}{% endif %}" + _ALTERNATE
)
_MISTRAL = (
    _WITHOUT_SYSTEM + "{{ bos_token }}{% for m in turns %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
"""Of version 0.3: a system turn is written into the last user turn, and nowhere once an answer follows."""
_GEMMA_TURNS = (
    "{{ bos_token }}{% for m in turns %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' "
    "else m.role) + '\n'"
    " + (system if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA2 = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% set turns, system = messages, '' %}" + _ALTERNATE + _GEMMA_TURNS
)
_GEMMA3 = _WITHOUT_SYSTEM + _GEMMA_TURNS
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What sets one family's tokenizer and config apart; `tokens` are the special ones besides those
    named."""

    name: str
    model_type: str
    template: str
    header: str
    """What a rendered prompt ends with."""
    bos: str | None
    eos: str
    end_of_turn: str
    pad: str | None
    tokens: tuple[str, ...]
    adds_bos: bool = False
    system: bool = True
    """Whether the template takes a system turn."""
    spare: int = 0
    """Rows of the embedding that no token has."""
    rstrip: tuple[str, ...] = ()
    """Special tokens that swallow the white space after them."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not special: they stay in decoded text."""
    ends: tuple[str, ...] = ()
    """Terminators that generation_config.json names besides eos and the end of a turn."""
    shape: dict[str, Any] = field(default_factory=dict)


_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_PHI3_TURNS = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
_WINDOW = {"sliding_window": 32, "head_dim": 32, "query_pre_attn_scalar": 32}

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "llama3", "llama", _LLAMA3, "<|start_header_id|>assistant<|end_header_id|>\n\n", bos="<|begin_of_text|>",
            eos="<|end_of_text|>", end_of_turn="<|eot_id|>", pad=None, adds_bos=True,
            tokens=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        Family(
            "qwen2", "qwen2", _QWEN2, "<|im_start|>assistant\n", bos=None, eos="<|im_end|>", end_of_turn="<|im_end|>",
            pad="<|endoftext|>", ends=("<|endoftext|>",), tokens=_CHATML_TOKENS, spare=13,
            shape={"tie_word_embeddings": True},
        ),
        Family(
            "qwen3", "qwen3", _QWEN3, "<|im_start|>assistant\n", bos=None, eos="<|im_end|>", end_of_turn="<|im_end|>",
            pad="<|endoftext|>", ends=("<|endoftext|>",), tokens=_CHATML_TOKENS, spare=13,
            plain=("<think>", "</think>"), shape={"head_dim": 32, "tie_word_embeddings": True},
        ),
        Family(
            "mistral", "mistral", _MISTRAL, "[/INST]", bos="<s>", eos="</s>", end_of_turn="</s>", pad=None,
            tokens=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), adds_bos=True, shape={"sliding_window": None},
        ),
        Family(
            "gemma2", "gemma2", _GEMMA2, "<start_of_turn>model\n", bos="<bos>", eos="<eos>",
            end_of_turn="<end_of_turn>", pad="<pad>", tokens=_GEMMA_TOKENS, adds_bos=True, system=False,
            shape=_WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0},
        ),
        Family(
            "gemma3", "gemma3_text", _GEMMA3, "<start_of_turn>model\n", bos="<bos>", eos="<eos>",
            end_of_turn="<end_of_turn>", pad="<pad>", tokens=_GEMMA_TOKENS, adds_bos=True, shape=_WINDOW,
        ),
        Family(
            "phi3", "phi3", _PHI3, "<|assistant|>", bos="<s>", eos="<|endoftext|>", end_of_turn="<|end|>",
            pad="<|endoftext|>", tokens=("<unk>", "<s>", "</s>", "<|endoftext|>", *_PHI3_TURNS), spare=24,
            rstrip=_PHI3_TURNS, ends=("<|assistant|>",),
        ),
        Family(
            "phi4", "phi3", _PHI4, "<|im_start|>assistant<|im_sep|>", bos="<|endoftext|>", eos="<|im_end|>",
            end_of_turn="<|im_end|>", pad="<|dummy_85|>", tokens=(*_CHATML_TOKENS, "<|im_sep|>", "<|dummy_85|>"),
        ),
    )
}  # fmt: skip


def build_tokenizer(family: Family) -> Any:
    """Byte-level BPE as in `rlhf.world.tokenizer`, with the family's special tokens and template."""
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

    from rlhf.world.tokenizer import SPLIT_PATTERN, VOCAB_SIZE, corpus

    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in family.rstrip) for t in family.tokens]
    )
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.plain])
    if family.adds_bos and family.bos is not None:
        bos = (family.bos, core.token_to_id(family.bos))
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A {family.bos} $B", special_tokens=[bos]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _config(family: Family, tokenizer: Any, **extra: Any) -> Any:
    from transformers import AutoConfig

    def id_of(token: str | None) -> int | None:
        return None if token is None else int(tokenizer.convert_tokens_to_ids(token))

    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,  # heads of 32, as vLLM wants on a CPU
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
    }
    ids = {
        "bos_token_id": id_of(family.bos),
        "eos_token_id": id_of(family.eos),
        "pad_token_id": id_of(family.pad),
    }
    vocab = {"vocab_size": len(tokenizer) + family.spare}
    return AutoConfig.for_model(family.model_type, **shape | ids | vocab | family.shape | extra)


def tiny_policy(path: Path, name: str, seed: int = 0) -> Path:
    """A random causal LM of a family with its tokenizer and generation config, saved in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    family = FAMILIES[name]
    tokenizer = build_tokenizer(family)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(family, tokenizer))
    ends = tokenizer.convert_tokens_to_ids([family.eos, family.end_of_turn, *family.ends])
    model.generation_config = GenerationConfig(eos_token_id=sorted(set(ends)))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_judge(path: Path, name: str, seed: int = 1) -> Path:
    """A random sequence classifier of a family with one logit and its tokenizer, saved in fp32."""
    import torch
    from transformers import AutoModelForSequenceClassification

    family = FAMILIES[name]
    tokenizer = build_tokenizer(family)
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(_config(family, tokenizer, num_labels=1)).save_pretrained(
        path
    )
    tokenizer.save_pretrained(path)
    return path
