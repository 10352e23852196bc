"""Chat templates: one BOS, end of turn, terminators, prefixes."""

import json

import pytest

from rlhf.config.choices import SpecialTokens
from rlhf.errors import ModelError
from rlhf.models.chat_template import (
    end_of_turn_id,
    load_tokenizer,
    render_conversation,
    render_prompt,
    render_response,
    stop_token_ids,
)
from rlhf.world.tokenizer import build_tokenizer
from tests.tiny import tiny_llama

QUESTION = [{"role": "user", "content": "Reverse: a b c"}]
CHATML = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' + m['content'] + "
    "'<|end_header_id|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    return build_tokenizer()


def test_a_prompt_has_one_bos_and_ends_with_the_generation_header(tokenizer):
    ids = render_prompt(tokenizer, QUESTION)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_a_template_that_writes_two_bos_or_none_still_gives_one(tokenizer):
    expected = render_prompt(tokenizer, QUESTION)
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ bos_token }}" + template
    assert render_prompt(tokenizer, QUESTION) == expected
    tokenizer.chat_template = template.replace("{{ bos_token }}", "")
    assert render_prompt(tokenizer, QUESTION) == expected


def test_a_bos_inside_the_text_is_text_and_with_the_switch_a_token(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "say <|begin_of_text|> please"}]
    assert render_prompt(tokenizer, messages).count(tokenizer.bos_token_id) == 1
    tokenizer.save_pretrained(tmp_path)
    as_tokens = load_tokenizer(tmp_path, special_tokens=SpecialTokens.tokens)
    assert render_prompt(as_tokens, messages).count(tokenizer.bos_token_id) == 2


def test_a_tokenizer_without_bos_gets_none(tokenizer):
    tokenizer.chat_template = CHATML
    tokenizer.bos_token = None
    ids = render_prompt(tokenizer, QUESTION)
    assert tokenizer.decode(ids).startswith("<|start_header_id|>user")


def test_the_end_of_turn_is_the_templates_not_the_tokenizers(tokenizer):
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    other = build_tokenizer()
    other.chat_template = CHATML
    assert end_of_turn_id(other) == other.convert_tokens_to_ids("<|end_header_id|>") != other.eos_token_id


def test_a_turn_without_an_end_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end of an assistant's turn"):
        end_of_turn_id(tokenizer)


def test_terminators_are_all_of_them(tmp_path, tokenizer):
    model = tiny_llama(tmp_path / "model")
    end_of_text = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    (model / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [end_of_text, tokenizer.eos_token_id]})
    )
    assert stop_token_ids(tokenizer, model, [9]) == sorted({9, end_of_text, tokenizer.eos_token_id})
    with pytest.raises(ModelError, match="stop_token_ids"):
        stop_token_ids(tokenizer, model, [100000])


def test_a_written_response_ends_with_the_end_of_turn(tokenizer):
    prompt, response = render_response(tokenizer, QUESTION, "c b a")
    assert prompt == render_prompt(tokenizer, QUESTION)
    assert response[-1] == end_of_turn_id(tokenizer)
    assert tokenizer.decode(response[:-1]) == "c b a"
    whole = render_conversation(tokenizer, [*QUESTION, {"role": "assistant", "content": "c b a"}])
    assert prompt + response == whole


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer):
    tokenizer.chat_template += (
        "{% if not add_generation_prompt %}{{ bos_token }}{% endif %}{{ messages | length }}"
    )
    with pytest.raises(ModelError, match="no prefix"):
        render_response(tokenizer, QUESTION, "c b a")


def test_a_template_that_refuses_a_role_says_which(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ModelError, match=r"system.*System role not supported"):
        render_prompt(tokenizer, [{"role": "system", "content": "x"}, *QUESTION])


def test_a_tokenizer_without_template_is_refused(tmp_path, tokenizer):
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path)
