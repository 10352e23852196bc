"""Templates that change answers, refuse some turns, demand a system turn, hang, or whose BOS opens every
turn."""

from __future__ import annotations

import json
import math
import shutil
import time
from itertools import chain

import pytest

from rlhf.config.choices import SpecialTokens
from rlhf.config.fields import compared
from rlhf.config.schema import Config, GenerateConfig, ScoreConfig
from rlhf.config.stage_configs import GenerateStage, GivenPairsStage, RewardModelStage, SftStage
from rlhf.data.records import prompt_id
from rlhf.data.schemas import CANDIDATES_SCHEMA, PROMPT_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, sum_counts, write_shard
from rlhf.errors import DataError, TemplateChanges, TemplateHangs, TemplateRefuses
from rlhf.loop.judges import Judge, reading, trusted
from rlhf.loop.step import stage_config
from rlhf.models import template
from rlhf.models.chat_template import (
    bos_per_exchange,
    end_of_turn_id,
    load_tokenizer,
    render_conversation,
    render_prompt,
)
from rlhf.models.comparison import render_comparison
from rlhf.models.written import require_written
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from rlhf.training import preference_model, reward_model, sft
from rlhf.training.tokens import IGNORED
from tests.commands import called
from tests.families import FAMILIES, build_tokenizer, tiny_judge
from tests.stage_runner import config_of, make_job, run_here, run_ranks
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

_LOOP = "{% for a in range(99999) %}"
HANGS = 3 * _LOOP + 3 * "{% endfor %}"
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn must come first') }}{% endif %}"
)
STRIPS = (
    "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{% set ns.all = ns.all + [{'role': m.role, 'content': c}] %}{% endfor %}{% set messages = ns.all %}"
)
THOUGHT = "<think>\n2 and 2 make 4.\n</think>\n\nIt is 4."


def user(text, system=None):
    turn = {"role": "user", "content": text}
    return [turn] if system is None else [{"role": "system", "content": system}, turn]


def with_template(folder, change):
    """The folder of a model with another template."""
    path = folder / "chat_template.jinja"
    path.write_text(change(path.read_text()))
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny_llama(folder / "policy")
    tiny_reward_model(folder / "judge")
    tiny_judge(folder / "gemma", "gemma2")
    return folder


@pytest.fixture
def models(made, tmp_path):
    """Copies that a test may change."""
    return shutil.copytree(made, tmp_path / "models")


# ------------------------------------------------------------------------------------------------ changed
# answers


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda t: STRIPS + t, THOUGHT),
        (lambda t: t.replace("['content']", "['content'] | lower"), "Paris"),
        (lambda t: t.replace("['content']", "['content'].split() | join(' ')"), "a  b\n\nc"),
        (lambda t: t.replace("['content']", "['content'] | replace('*', '')"), "so **bold**"),
        (lambda t: t.replace("['content']", "['content'][:20]"), "a" * 30),
    ],
)
def test_an_answer_that_the_template_changes_is_refused(models, change, answer):
    tokenizer = load_tokenizer(with_template(models / "policy", change))
    chat = [*user("q"), {"role": "assistant", "content": answer}]
    for turns in (chat, [*chat, *user("r"), {"role": "assistant", "content": "fine"}]):
        with pytest.raises(TemplateChanges, match=r"policy: the chat template changes the text of turn 2"):
            sft.tokenize(tokenizer, turns, end_of_turn_id(tokenizer))
    assert sft.tokenize(tokenizer, [*user("Q"), {"role": "assistant", "content": " fine\n"}], 0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_family_changes_an_answer_but_for_outer_space(family):
    tokenizer = build_tokenizer(FAMILIES[family])
    for answer in ("a  b\n\n\n c", THOUGHT, " x\n", "", "Å — é"):
        require_written(tokenizer, [*user("q"), {"role": "assistant", "content": answer}], [1])


def pairs_of(models, rows, **config):
    data = lines(models / "pairs.jsonl", rows)
    inputs = {"policy": models / "policy", "data": data}
    return make_job("preferences", None, inputs, models / "pairs", cls=GivenPairsStage, **config)


def test_given_pairs_that_the_template_changes_are_dropped_and_counted(models):
    with_template(models / "policy", lambda t: STRIPS + t)
    changed = {
        "prompt": "What is 2+2?",
        "chosen": THOUGHT,
        "rejected": "<think>\nI guess.\n</think>\n\nIt is 4.",
    }
    quoted = {"prompt": "How does it end?", "chosen": "With <|eot_id|>, always.", "rejected": "No."}
    plain = {"prompt": "What is 3+3?", "chosen": "6", "rejected": "7"}
    job = pairs_of(models, [changed, quoted, plain])
    outcome = run_here(job)
    assert outcome.counts["dropped/changed_by_template"] == 1
    assert (outcome.counts["rows"], outcome.counts["pairs"], outcome.counts["spelled_special_tokens"]) == (
        3,
        2,
        1,
    )
    rows = list(read_all_rows(job.out_path))
    assert [row["chosen"] for row in rows] == ["With <|eot_id|>, always.", "6"]
    assert tiny_tokenizer().decode(rows[0]["chosen_token_ids"][:-1]) == "With <|eot_id|>, always."
    with pytest.raises(
        TemplateRefuses, match=r"no pair to train on .*1 changed_by_template.*policy: the chat"
    ):
        run_here(pairs_of(models, [changed]))


def test_sft_drops_counts_and_says_why_none_is_left(models):
    with_template(models / "policy", lambda t: STRIPS + t)
    changed = {"prompt": "What is 2+2?", "response": THOUGHT}
    quoted = {
        "prompt": "How does a turn end?",
        "response": "With <|eot_id|>, and then the next turn follows.",
    }
    section = {"packing": False, "max_length": 128, "held_out_share": 0.0, "batch_size": 2}
    inputs = {"model": models / "policy", "data": lines(models / "sft.jsonl", [changed, quoted, quoted])}
    outcome = run_ranks(make_job("sft", None, inputs, models / "out", **section))
    assert outcome.counts["dropped/changed_by_template"] == 1 and outcome.counts["conversations"] == 2
    assert outcome.counts["spelled_special_tokens"] == 2
    lines(models / "sft.jsonl", [changed])
    with pytest.raises(
        AssertionError, match=r"dropped: 1 changed_by_template.*template of .*policy does not write"
    ):
        run_ranks(make_job("sft", None, inputs, models / "again", **section))


@pytest.mark.parametrize("kind", ["scalar", "pairwise"])
def test_judge_training_drops_and_counts_them(models, kind):
    change = STRIPS if kind == "scalar" else STRIPS.replace("m.role == 'assistant' and ", "")
    with_template(models / "policy", lambda t: change + t)
    rows = [
        {"prompt": "2+2?", "chosen": THOUGHT, "rejected": "5"},
        {"prompt": "3+3?", "chosen": "6 <|eot_id|>", "rejected": "7"},
    ]
    inputs = {"model": models / "policy", "data": lines(models / "pairs.jsonl", rows)}
    job = make_job("reward_model", None, inputs, models / "out", cls=RewardModelStage, max_length=999)
    counts = reward_model.Counter()
    tokenizer = load_tokenizer(models / "policy")
    if kind == "scalar":
        made = list(reward_model._rows(job, tokenizer, counts, {}))
        assert len(made) == 1 and made[0]["chosen_ids"].count(end_of_turn_id(tokenizer)) == 2
    else:
        made = list(preference_model._rows(job, tokenizer, counts))
        assert len(made) == 2 and made[0]["input_ids"].count(end_of_turn_id(tokenizer)) == 1
    assert counts["dropped/changed_by_template"] == 1 and counts["spelled_special_tokens"] == 1


# ------------------------------------------------------------------------------------------------ judges that
# refuse


PROMPTS = [user("Name a colour"), user("Name a fruit", system="Be brief."), user("Name a <|eot_id|>")]


def sampled(models, chats, judges, name="out", **config):
    prompts = models / f"{name}.parquet"
    write_shard(prompts, PROMPT_SCHEMA, [{"id": prompt_id(chat), "messages": chat} for chat in chats])
    inputs = {"policy": models / "policy", "prompts": prompts} | judges
    small = {"engine": "transformers", "n": 2, "max_new_tokens": 4, "shard_size": 2, "iteration": 1}
    job = make_job("generate", GenerateConfig(), inputs, models / name, **small | config)
    return job, run_here(job)


def test_prompts_that_a_judge_refuses_are_not_sampled_and_those_that_spell_tokens_are_said(models):
    judges = {"judge.main": models / "judge", "judge.other": models / "gemma"}
    job, outcome = sampled(models, PROMPTS, judges)
    counts = sum_counts(job.out_path)
    assert counts["dropped/refused_by_judge"] == 1 and counts["spelled_special_tokens"] == 1
    assert (counts["prompts"], counts["prompts_sampled"], counts["responses"]) == (3, 2, 4)
    said = outcome.metrics["warning"]
    assert said.startswith("1 of 3 prompts hold <|eot_id|>: a chat template was applied to them already")
    foreign = [user("<|im_start|>user\nq<|im_end|>"), user(" [INST] q"), user("[INST] r"), user("q [INST]")]
    _, outcome = sampled(models, [*PROMPTS, *foreign], {}, "foreign")
    said = outcome.metrics["warning"]
    # Another family's tokens are plain text to this tokenizer, and no less a sign.
    assert said.startswith("4 of 7 prompts hold [INST]: a chat template was applied to them already")
    with pytest.raises(TemplateRefuses, match=r"1 refused_by_judge.*gemma: the chat template refuses"):
        sampled(models, PROMPTS[1:2], judges, "none")
    _, outcome = sampled(models, PROMPTS, {}, "tokens", special_tokens=SpecialTokens.tokens)
    assert "spelled_special_tokens" not in sum_counts(models / "tokens") and "warning" not in outcome.metrics


def test_templates_of_judges_are_no_part_of_what_was_sampled(tmp_path):
    cfg = Config()
    assert compared(GenerateStage(trusted_judges=["main"])) == compared(GenerateStage())
    for stage in (GenerateStage, SftStage, GivenPairsStage, RewardModelStage):
        assert "special_tokens" not in compared(stage())
        assert compared(stage(special_tokens=SpecialTokens.tokens))["special_tokens"] == "tokens"
    cfg.special_tokens = SpecialTokens.tokens
    for stage in ("generate", "sft", "preferences", "score", "reward_model"):
        assert stage_config(cfg, stage).special_tokens is SpecialTokens.tokens
    told = []

    class Launching:
        def launch(self, job, kind, shards):
            told.append(job.inputs)
            raise KeyboardInterrupt

    scalar = stage_config(cfg, "score", trust_remote_code=True)
    judges = {"main": Judge(scalar, Artifact(tmp_path / "judge", "j")), "rule": Judge(scalar, None)}
    assert trusted(judges) == ["main"]
    run = Run(tmp_path / "run", cfg, Launching())
    write_shard(tmp_path / "p.parquet", PROMPT_SCHEMA, [])
    inputs = {"policy": Artifact(tmp_path / "p", "p"), "prompts": Artifact(tmp_path / "p.parquet", "q")}
    config = stage_config(cfg, "generate")
    with pytest.raises(KeyboardInterrupt):
        run.stage("generate", "generate", config, inputs, reading(judges))
    assert told[0]["judge.main"] == str(tmp_path / "judge")
    recorded = json.loads((tmp_path / "run" / ".generate.partial" / ".identity.json").read_text())
    assert "judge.main" not in json.dumps(recorded)


def scored(models, chats, judge="gemma"):
    folder = models / f"candidates{len(chats)}{judge}"
    folder.mkdir()
    candidate = {"token_ids": [], "finish_reason": "stop", "logprob": 0.0, "seed": 0, "temperature": 1.0}
    for index, chat in enumerate(chats):
        row = {"id": prompt_id(chat), "messages": chat, "prompt_token_ids": []}
        row["candidates"] = [candidate | {"text": text} for text in ("Red.", "Cat.")]
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, [row])
    job = make_job("score", ScoreConfig(), {"judge": models / judge, "candidates": folder}, folder / "out")
    run_here(job)
    return [row["scores"] for row in read_all_rows(job.out_path)], sum_counts(job.out_path)


def test_a_row_that_the_judge_refuses_has_no_score_and_ends_nothing(models):
    scores, counts = scored(models, PROMPTS)
    assert [math.isnan(score) for score in chain(*scores)] == [False, False, True, True, False, False]
    assert counts["refused_by_template"] == 1 and counts["non_finite"] == 2
    with pytest.raises(TemplateRefuses, match=r"judge cannot read.*gemma.*no system role here"):
        scored(models, PROMPTS[1:2])


def tool(folder, module, *arguments):
    return called(folder, f"rlhf.{module}", "compute.device=cpu", *arguments)


def test_a_file_with_a_refused_row_is_scored_with_null_and_said(models):
    rows = [{"prompt": chat, "responses": ["Red.", "Cat."]} for chat in PROMPTS[:2]]
    lines(models / "in.jsonl", rows)
    code, said = tool(models, "score", "reward_model.path=gemma", "input=in.jsonl", "output=out.jsonl")
    assert code == 0, said
    assert "1 refused by template" in said
    rewards = [json.loads(line)["rewards"] for line in (models / "out.jsonl").read_text().splitlines()]
    assert None not in rewards[0] and rewards[1] == [None, None]


# ------------------------------------------------------------------------------------------------ a system
# turn first


def test_a_template_that_demands_a_system_turn_works_where_every_prompt_has_one(models):
    with_template(models / "policy", lambda t: NEEDS_SYSTEM + t)
    with_template(models / "judge", lambda t: NEEDS_SYSTEM + t)
    tokenizer = load_tokenizer(
        models / "policy", chat_template=(models / "policy/chat_template.jinja").read_text()
    )
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == "<|eot_id|>"
    chats = [user(f"Name a fruit {i}", system="Be brief.") for i in range(3)]
    sampled(models, chats, {"judge.main": models / "judge"})
    assert sum_counts(models / "out")["prompts_sampled"] == 3
    scores, _ = scored(models, chats, "judge")
    assert all(map(math.isfinite, chain(*scores)))


# ------------------------------------------------------------------------------------------------ no end


@pytest.mark.parametrize(
    "when",
    [
        lambda t: HANGS + t,
        lambda t: "{% if not add_generation_prompt %}" + HANGS + "{% endif %}" + t,
        lambda t: "{% macro f(n) %}" + HANGS + "{% endmacro %}{{ f(1) }}" + t,
    ],
)
def test_a_template_that_does_not_end_is_stopped(models, monkeypatch, when):
    monkeypatch.setattr(template, "TIME_LIMIT_SECONDS", 0.5)
    with_template(models / "policy", when)
    began = time.monotonic()
    with pytest.raises(TemplateHangs, match=r"policy: the chat template is still at work .* after 0.5 s"):
        end_of_turn_id(load_tokenizer(models / "policy"))
    assert time.monotonic() - began < 30


def test_it_is_stopped_where_only_some_prompts_hang_and_in_a_process_of_a_stage(models):
    with_template(models / "policy", lambda t: "{% if messages | length > 1 %}" + HANGS + "{% endif %}" + t)
    lines(models / "in.jsonl", [{"prompt": user("q", system="s")}])
    tiny = [
        "generate.engine=transformers",
        "generate.n=1",
        "generate.max_new_tokens=4",
        "generate.temperatures=[1.0]",
    ]
    code, said = tool(models, "generate", "model.path=policy", "input=in.jsonl", "output=out.jsonl", *tiny)
    assert code == 2, said
    assert "policy: the chat template is still at work" in said and "Traceback" not in said


def test_a_long_text_is_not_taken_for_a_template_that_hangs(models, monkeypatch):
    monkeypatch.setattr(template, "TIME_LIMIT_SECONDS", 0.02)
    tokenizer = load_tokenizer(models / "policy")
    assert len(render_prompt(tokenizer, user("a word " * 100_000))) > 100_000


# ------------------------------------------------------------------------------------------------ BOS opens
# turns


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("adds", [False, True])
def test_a_bos_that_opens_every_turn_is_the_templates(adds):
    from tokenizers import processors

    tokenizer = build_tokenizer(FAMILIES["qwen2"])
    tokenizer.chat_template = CHATML
    tokenizer.bos_token = "<|im_start|>"
    if adds:
        bos = ("<|im_start|>", tokenizer.bos_token_id)
        single = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[bos])
        tokenizer.backend_tokenizer.post_processor = single
    assert bos_per_exchange(tokenizer) == 2
    chats = [
        user("q"),
        user("q", system="s"),
        [*user("q"), {"role": "assistant", "content": "a"}, *user("r")],
    ]
    for chat in chats:
        for prompt, render in ((True, render_prompt), (False, render_conversation)):
            expected = tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=False)
            assert render(tokenizer, chat) == expected
    ids = render_comparison(tokenizer, user("q"), "a", "b")
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 2
    row = sft.tokenize(
        tokenizer, [*chats[2], {"role": "assistant", "content": "b"}], end_of_turn_id(tokenizer)
    )
    assert tokenizer.decode([i for i in row["labels"] if i != IGNORED]) == "a<|im_end|>b<|im_end|>"


def test_a_bos_of_a_text_is_one_and_no_comparison_has_it(made):
    tokenizer = load_tokenizer(made / "policy")
    assert bos_per_exchange(tokenizer) == 0
    assert tokenizer.bos_token_id not in render_comparison(tokenizer, user("q"), "a", "b")


def test_data_that_is_dropped_for_other_reasons_is_said_as_ever(models):
    with pytest.raises(DataError, match="more than 3 tokens"):
        sampled(models, [user("a long question")], {}, max_prompt_tokens=3)


def test_configs_know_the_switch():
    assert config_of(Config, special_tokens="tokens").special_tokens is SpecialTokens.tokens
