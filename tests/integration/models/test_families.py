"""Every model family end to end on tiny random models: chat format, sampling, judging, training."""

import gc
import math
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.config.choices import Engine
from rlhf.config.schema import GenerateConfig
from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import prompt_id
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import read_all_rows, sum_counts, write_shard
from rlhf.errors import TemplateRefuses
from rlhf.generation.choose_engine import load_sampler
from rlhf.generation.request import Request, Sampling, seed_of
from rlhf.models.chat_template import (
    end_of_turn_id,
    load_tokenizer,
    render_conversation,
    render_prompt,
    render_response,
    stop_token_ids,
)
from rlhf.models.folder import attention
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.training.logprobs import collate, response_logprobs
from rlhf.training.reward_model import ensure_pad
from rlhf.training.sft import IGNORED, tokenize
from rlhf.training.weights import export_model, load_model
from tests.families import FAMILIES, build_tokenizer, tiny_judge, tiny_policy
from tests.stage_runner import make_job, run_here

TRL_TEMPLATES = {
    "llama3": "llama3",
    "qwen2": "qwen2_5",
    "qwen3": "qwen3",
    "gemma2": "gemma",
    "gemma3": "gemma3",
    "phi3": "phi3",
}


def talk(*contents, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


QUESTION = talk("Reverse: a b c")
PROMPTS = [
    QUESTION,
    talk("Tell me about the sea in one short paragraph, then name three things that live in it, please."),
    talk(
        "why?", "because", "And what follows from that, step by step, for someone who has never heard of it?"
    ),
    talk("Sort the letters of this word and give them back in upper case: families"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@cache
def made(folder, kind, name):
    return {"policy": tiny_policy, "judge": tiny_judge}[kind](folder / kind / name, name)


@pytest.fixture(scope="module")
def policy(family, folder):
    return made(folder, "policy", family.name)


@pytest.fixture(scope="module")
def judge(family, folder):
    return made(folder, "judge", family.name)


@pytest.fixture(scope="module")
def tokenizer(policy):
    return load_tokenizer(policy)


# ------------------------------------------------------------------------------------------------ chat


def test_the_text_is_that_of_the_real_template(family):
    import trl

    if family.name not in TRL_TEMPLATES:
        pytest.skip("TRL ships no template of this family")
    real = (Path(trl.__file__).parent / "chat_templates" / f"{TRL_TEMPLATES[family.name]}.jinja").read_text()
    tokenizer = build_tokenizer(family)
    thought = "<think>\nhm\n</think>\n\nno"
    chats = [*PROMPTS, talk("a", "b"), talk("a", "b", "c", "d"), talk("a", thought, "c"), talk("a", thought)]
    if family.system:
        chats += [
            talk("a", system="be brief"),
            talk("a", "b", "c", system="be brief"),
            talk("a", "b", system="x"),
        ]
    for chat in chats:
        for prompt in (True, False):
            given = {"tokenize": False, "add_generation_prompt": prompt}
            expected = tokenizer.apply_chat_template(chat, chat_template=real, **given)
            assert tokenizer.apply_chat_template(chat, **given) == expected


def test_a_saved_tokenizer_reads_as_the_one_that_was_made(family, tokenizer):
    text = "Hello,  world!\n\n1234 it's — ünïcode <|im_end|></s>\n"
    assert tokenizer(text)["input_ids"] == build_tokenizer(family)(text)["input_ids"]


def test_a_prompt_ends_with_the_generation_header(family, tokenizer):
    for chat in PROMPTS:
        assert tokenizer.decode(render_prompt(tokenizer, chat)).endswith(family.header)


@pytest.mark.parametrize("in_template", [0, 1, 2])
@pytest.mark.parametrize("tokenizer_adds", [False, True])
def test_one_bos_where_the_model_has_one(family, in_template, tokenizer_adds):
    if family.bos is None:
        assert "bos_token" not in family.template
        return
    tokenizer = build_tokenizer(family)
    writes = "bos_token" in family.template
    bare = family.template.replace("{% if loop.first %}{{ bos_token }}{% endif %}", "").replace(
        "{{ bos_token }}", ""
    )
    assert ("bos_token" in bare) is False
    tokenizer.chat_template = "{{ bos_token }}" * in_template + bare
    if not tokenizer_adds:
        tokenizer.backend_tokenizer.post_processor = None
    elif not family.adds_bos:
        return
    for ids in (
        render_prompt(tokenizer, QUESTION),
        render_conversation(tokenizer, [*QUESTION, *talk("x", "b")[1:]]),
    ):
        expected = 1 if in_template or tokenizer_adds else 0
        assert [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id] == list(range(expected))
    if writes == bool(in_template) and tokenizer_adds == family.adds_bos:
        assert ids == render_conversation(build_tokenizer(family), [*QUESTION, *talk("x", "b")[1:]])


def test_end_of_turn_and_terminators(family, policy, tokenizer):
    end = tokenizer.convert_tokens_to_ids(family.end_of_turn)
    assert end_of_turn_id(tokenizer) == end
    wanted = {family.eos, family.end_of_turn, *family.ends}
    assert set(tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, policy))) == wanted


def test_a_special_token_inside_the_answer_is_not_its_end():
    qwen = build_tokenizer(FAMILIES["qwen3"])
    qwen.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert qwen.convert_ids_to_tokens(end_of_turn_id(qwen)) == "<|im_end|>"


def test_a_training_target_begins_after_the_prompt_and_ends_with_the_end_of_turn(family, tokenizer):
    for chat in PROMPTS:
        prompt, response = render_response(tokenizer, chat, "c b a")
        assert prompt == render_prompt(tokenizer, chat)
        assert response.count(end_of_turn_id(tokenizer)) == 1 and response[-1] == end_of_turn_id(tokenizer)
        said = tokenizer.decode(response[:-1]).strip()
        assert said == ("<think>\n\n</think>\n\nc b a" if family.name == "qwen3" else "c b a")


def test_sft_trains_on_every_answer(family, tokenizer):
    end = end_of_turn_id(tokenizer)
    row = tokenize(tokenizer, talk("a b", "A B", "c d", "C D", "trailing"), end)
    trained = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    last = "<think>\n\n</think>\n\nC D" if family.name == "qwen3" else "C D"
    assert trained.replace(" ", "") == f"A B{family.end_of_turn}{last}{family.end_of_turn}".replace(" ", "")
    assert row["input_ids"][-1] == end
    assert tokenize(tokenizer, talk("a b\n", "\n\n A B ", " c d ", "\nC D\n"), end) == row


def test_system_turns_are_read_or_refused(family, tokenizer):
    chat = talk("Reverse: a b c", system="Be brief today")
    if family.system:
        assert tokenizer.decode(render_prompt(tokenizer, chat)).count("Be brief today") == 1
    else:
        with pytest.raises(
            TemplateRefuses, match=r"'system', 'user'.*no system role here.*copy of the model"
        ):
            render_prompt(tokenizer, chat)


def test_a_system_turn_that_vanishes_once_an_answer_follows_is_no_training_data():
    mistral = build_tokenizer(FAMILIES["mistral"])
    assert tokenize(mistral, talk("a", "b"), end_of_turn_id(mistral))
    with pytest.raises(TemplateRefuses, match="before answer"):
        tokenize(mistral, talk("a", "b", system="be brief"), end_of_turn_id(mistral))


def test_thoughts_of_earlier_turns_are_gone():
    qwen = build_tokenizer(FAMILIES["qwen3"])
    chat = talk("a", "<think>\nsecret\n</think>\n\nb", "c")
    assert "secret" not in qwen.decode(render_prompt(qwen, chat))
    assert "secret" in qwen.decode(render_conversation(qwen, chat[:2]))


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    llama = build_tokenizer(FAMILIES["llama3"])
    llama.chat_template = "{{ strftime_now('%d %b %Y') }}" + llama.chat_template
    assert "26 Jul 2024" in llama.decode(render_prompt(llama, QUESTION))


# ------------------------------------------------------------------------------------------------ judge


def judged(num=20):
    return [(PROMPTS[i % len(PROMPTS)], "word and other words " * (1 + 3 * i)) for i in range(num)]


def test_a_score_does_not_depend_on_its_batch_and_is_the_models(judge):
    together = ClassifierJudge(str(judge), batch_tokens=10**6).score(judged()).scores
    alone = ClassifierJudge(str(judge), batch_tokens=1).score(judged()).scores
    assert together == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 1e-2
    model = AutoModelForSequenceClassification.from_pretrained(
        judge, dtype=torch.float32, attn_implementation=attention(judge)
    )
    model.config.get_text_config().pad_token_id = (
        None  # transformers then reads the last token of a single row
    )
    tokenizer = load_tokenizer(judge)
    for (chat, answer), score in zip(judged(4), alone, strict=False):
        ids = render_conversation(tokenizer, [*chat, {"role": "assistant", "content": answer}])
        with torch.no_grad():
            assert float(model(torch.tensor([ids])).logits) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("pad", ["eos", "end_of_turn"])
def test_a_judges_pad_token_does_not_matter(family, judge, tmp_path, pad):
    path = shutil.copytree(judge, tmp_path / "judge")
    expected = ClassifierJudge(str(path)).score(judged(6)).scores
    tokenizer = load_tokenizer(path)
    tokenizer.pad_token = getattr(family, pad)
    tokenizer.save_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.save_pretrained(path)
    assert ClassifierJudge(str(path)).score(judged(6)).scores == pytest.approx(expected, abs=1e-6)
    ensure_pad(tokenizer, model)  # what training a judge from this model begins with
    for chat, answer in judged(6):
        ids = render_conversation(tokenizer, [*chat, {"role": "assistant", "content": answer}])
        assert model.config.pad_token_id not in ids


def test_a_judge_that_refuses_a_conversation_says_so(folder):
    judge = ClassifierJudge(str(made(folder, "judge", "gemma2")))
    with pytest.raises(TemplateRefuses, match=r"judge cannot read.*gemma2.*system"):
        judge.score([(talk("a", system="be brief"), "b")])


# ------------------------------------------------------------------------------------------------ sampling


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def sampler(request, policy):
    config = GenerateStage(engine=Engine(request.param), max_new_tokens=24)
    yield load_sampler(config, str(policy), 0, 256)
    gc.collect()


def reference_logprobs(model, prompts, candidates):
    with torch.no_grad():
        values = response_logprobs(model, collate(prompts, [candidate.token_ids for candidate in candidates]))
    return values.tolist()


def test_samples_stop_and_have_the_logprobs_that_training_sees(policy, tokenizer, sampler):
    prompts = [render_prompt(tokenizer, chat) for chat in PROMPTS for _ in range(8)]
    assert max(len(prompt) for prompt in prompts) > 40  # beyond the sliding windows
    stops = [*stop_token_ids(tokenizer, policy), *range(0, 256, 9)]  # random models seldom end a turn
    requests = [Request(ids, 1.0, seed_of(1, 0, "p", i)) for i, ids in enumerate(prompts)]
    candidates = sampler.sample(requests, Sampling(24, 1.0, 0, stops))
    assert candidates == sampler.sample(requests, Sampling(24, 1.0, 0, stops))
    assert {candidate.finish_reason for candidate in candidates} == {"stop", "length"}
    for candidate in candidates:
        assert (candidate.token_ids[-1] in stops) is not candidate.truncated
        tokenizer.decode(candidate.token_ids)
    model = load_model(policy, torch.float32)
    expected = reference_logprobs(model, prompts, candidates)
    assert [candidate.logprob for candidate in candidates] == pytest.approx(expected, abs=2e-3)


# ------------------------------------------------------------------------------------------------ training


def test_dpo_steps_and_export(policy, tokenizer, tmp_path):
    model = load_model(policy, torch.float32)
    sequences = [
        render_response(tokenizer, chat, answer) for chat in PROMPTS for answer in ("yes", "no, never")
    ]
    batch = collate([prompt for prompt, _ in sequences], [response for _, response in sequences])
    with torch.no_grad():
        reference = response_logprobs(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        ratio = (response_logprobs(model, batch) - reference).view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[0] > losses[1] > losses[2]
    assert all(parameter.grad is not None for parameter in model.parameters())
    export_model(model, policy, tmp_path / "model")
    again = load_model(tmp_path / "model", torch.float32)
    with torch.no_grad():
        assert response_logprobs(again, batch).tolist() == response_logprobs(model, batch).tolist()
    assert stop_token_ids(load_tokenizer(tmp_path / "model"), tmp_path / "model") == stop_token_ids(
        tokenizer, policy
    )
    assert render_prompt(load_tokenizer(tmp_path / "model"), QUESTION) == render_prompt(tokenizer, QUESTION)


def test_capped_attention_scores_are_capped_everywhere(folder):
    path = made(folder, "policy", "gemma2")
    ids = torch.arange(60)[None]
    with torch.no_grad():
        ours = load_model(path, torch.float32)(ids).logits
        eager = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")(
            ids
        ).logits
    assert torch.equal(ours, eager)


# ------------------------------------------------------------------------------------------------ refused
# rows


def generate_job(folder, out, chats):
    prompts = folder / f"{out.name}.parquet"
    write_shard(prompts, PROMPT_SCHEMA, [{"id": prompt_id(chat), "messages": chat} for chat in chats])
    inputs = {"policy": made(folder, "policy", "gemma2"), "prompts": prompts}
    small = {"engine": "transformers", "n": 2, "max_new_tokens": 4, "shard_size": 3}
    return make_job("generate", GenerateConfig(), inputs, out, iteration=1, slice=None, **small)


def test_rows_that_the_template_refuses_are_dropped_and_counted(folder, tmp_path):
    system = [talk(f"say {i}", system="be brief") for i in range(4)]
    twice = [[*talk("a"), *talk("b")]]
    kept = [talk(f"say {i}") for i in range(5)]
    out = tmp_path / "some"
    run_here(generate_job(folder, out, [*system, *twice, *kept]))
    counts = sum_counts(out)
    assert (counts["prompts"], counts["prompts_sampled"], counts["responses"]) == (10, 5, 10)
    assert (counts["dropped/refused_by_template"], counts["dropped/prompt_too_long"]) == (5, 0)
    assert [row["messages"] for row in read_all_rows(out)] == kept


def test_prompts_that_are_all_refused_end_the_run(folder, tmp_path):
    job = generate_job(folder, tmp_path / "none", [talk(f"say {i}", system="be brief") for i in range(4)])
    for _ in range(2):  # and again when the shards are there
        with pytest.raises(
            TemplateRefuses, match=r"No prompt .*dropped: 4 refused_by_template.*copy of the model"
        ):
            run_here(job)
