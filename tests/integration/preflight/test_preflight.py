"""What tokenizers and templates say before a run, and that a run is refused before any stage is begun."""

import json

import pytest

from rlhf.config.choices import SpecialTokens
from rlhf.config.schema import Config
from rlhf.config.stage_configs import PreflightStage
from rlhf.config.training import OtherJudge
from rlhf.models import template
from rlhf.preflight.findings import Level
from rlhf.run.job import Job
from tests.commands import called
from tests.families import FAMILIES, tiny_judge, tiny_policy
from tests.stage_runner import config_of, run_here
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

OK, WARNING, ERROR = Level.ok, Level.warning, Level.error
HEADER = "{% if add_generation_prompt %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A policy and a judge; tests copy what they need of them."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_llama(folder / "policy"), tiny_reward_model(folder / "judge")


def look(folder, key="model.path", prompts=(), **sections):
    """What the stage finds in one folder; `sections` are config values by section."""
    cfg = config_of(Config)
    for section, changes in sections.items():
        if isinstance(changes, dict):
            changes = config_of(type(getattr(cfg, section)), getattr(cfg, section), **changes)
        setattr(cfg, section, changes)
    config = PreflightStage(cfg, {key: str(folder)}, list(prompts))
    return run_here(Job("preflight", "preflight", config, {}, "", 1)).metrics["findings"]


def odd(found):
    """Level and text of what is not fine."""
    assert all(each.way_out for each in found if each.level is not OK)
    return [(each.level, each.text) for each in found if each.level is not OK]


def altered(tmp_path, source, template=None, **config):
    """A folder with a model's tokenizer and config, both changed; it has no weights, and none are needed."""
    known = json.loads((source / "config.json").read_text())
    tmp_path.joinpath("config.json").write_text(json.dumps(known | config))
    tokenizer = tiny_tokenizer()
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = template(before) if template else before
        tokenizer.save_pretrained(tmp_path)
    finally:
        tokenizer.chat_template = before
    return tmp_path


def user(text="hello"):
    return [{"role": "user", "content": text}]


def test_a_good_policy_and_judge_are_fine_and_show_their_templates(folders):
    policy, judge = folders
    found = look(policy, prompts=[user(), user("again")])
    assert odd(found) == [] and {each.subject for each in found} == {"policy", "training"}
    for text in (
        "chat template ",
        "2 of 2 rendered prompts end with",
        "end of turn '<|eot_id|>'",
        "rows of embedd",
    ):
        assert any(text in each.text for each in found), text
    assert odd(look(judge, "reward_model.path")) == []


@pytest.mark.parametrize(
    ("template", "text", "sft"),
    [
        (
            lambda t: t.replace(HEADER, "{% if false %}"),
            "the template writes '<|start_header_id|>assistant",
            False,
        ),
        (lambda t: "{{ bos_token }}a" + t, "1 of 1 rendered prompts have more than one BOS", False),
        (lambda t: "{{ raise_exception('no') }}" + t, "1 of 1 prompts are refused by the template", False),
        (lambda t: t.replace("<|eot_id|>", "\n"), "written responses end with the end of turn", True),
        (lambda t: "", "the tokenizer has no chat template", False),
    ],
)
def test_templates_that_cannot_work(tmp_path, folders, template, text, sft):
    folder = altered(tmp_path, folders[0], template)
    found = odd(look(folder, prompts=[user()], sft={"data": "some.jsonl" if sft else None}))
    assert [level for level, said in found if text in said] == [ERROR], found


def test_lengths_and_vocabulary(tmp_path, folders):
    prompts = [user("a " * 200), *[user(str(i)) for i in range(4)]]
    short = {"max_prompt_tokens": 100}
    assert [level for level, _ in odd(look(folders[0], prompts=prompts, generate=short))] == [WARNING]
    ((level, text),) = odd(look(folders[0], prompts=prompts[:1], generate=short))
    assert level is ERROR and text == "1 of 1 prompts exceed 100 tokens"
    ((level, text),) = odd(look(altered(tmp_path, folders[0], max_position_embeddings=2000), prompts=prompts))
    assert level is ERROR and "context of 2000 tokens has no room" in text
    found = odd(look(altered(tmp_path, folders[0], vocab_size=300), prompts=prompts))
    assert any(level is ERROR and "the chat template writes token" in text for level, text in found)
    rare = {"vocab_size": len(tiny_tokenizer()) - 1}  # the last added token is the end of a turn
    assert ERROR in {level for level, _ in odd(look(altered(tmp_path, folders[0], **rare), prompts=prompts))}


def test_judges(tmp_path, folders):
    policy, judge = folders
    ((level, text),) = odd(look(policy, "reward_model.path"))
    assert level is ERROR and "no score head (LlamaForCausalLM)" in text
    assert odd(look(policy, "reward_model.path", reward_model={"data": "some.jsonl"})) == []
    assert odd(look(policy, "reward_model.path", reward_model={"kind": "pairwise"})) == []
    ((level, text),) = odd(look(judge, "reward_model.path", reward_model={"kind": "pairwise"}))
    assert level is ERROR and "SequenceClassification" in text
    ((level, text),) = odd(look(judge, "evaluate.judges.other", score={"max_tokens": 9000}))
    assert level is WARNING and text == "evaluate.judges.other: score.max_tokens=9000 of 8192"
    eot = tiny_tokenizer().eos_token_id
    found = look(altered(tmp_path, judge, pad_token_id=eot), "reward_model.path")
    assert odd(found) == [] and any("not in a pipeline elsewhere" in each.text for each in found)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_family_is_refused(tmp_path, family):
    folder = tiny_policy(tmp_path / "policy", family)
    assert (
        odd(look(folder, prompts=[user()], sft={"data": "some.jsonl"}, generate={"max_new_tokens": 20})) == []
    )


def test_prompts_that_a_template_was_applied_to_are_named(folders):
    header = "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    for text in (f"<|begin_of_text|>{header}", header, "<|im_start|>user\nq<|im_end|>\n", "[INST] q [/INST]"):
        found = odd(look(folders[0], prompts=[user(text), user(text), user()]))
        opener = next(
            token
            for token in ("<|begin_of_text|>", "<|start_header_id|>", "<|im_start|>", "[INST]")
            if token in text
        )
        ((level, said),) = found
        assert level is WARNING
        assert said.startswith(f"2 of 3 prompts hold {opener}: a chat template was applied to them already")
    assert odd(look(folders[0], prompts=[user(header)], special_tokens=SpecialTokens.tokens)) == []


def test_a_template_that_changes_answers_is_said_where_written_ones_are_rendered(tmp_path, folders):
    changes = "['content'].split('</think>')[-1].split() | join(' ')"
    folder = altered(tmp_path, folders[0], lambda t: t.replace("['content']", changes))
    assert odd(look(folder, prompts=[user()])) == []
    text = "changes answers: <think>…</think>, inner white space"
    for section in ({"sft": {"data": "some.jsonl"}}, {"pair": {"data": "some.jsonl"}}):
        assert odd(look(folder, prompts=[user()], **section)) == [(WARNING, f"the template {text}")]
    found = odd(look(folder, "reward_model.path", reward_model={"data": "some.jsonl"}))
    assert found == [(WARNING, f"reward_model.path: the template {text}")]


def test_a_template_that_writes_no_answer_as_it_stands_is_an_error(tmp_path, folders):
    folder = altered(tmp_path, folders[0], lambda t: t.replace("['content']", "['content'] | lower"))
    ((level, said),) = odd(look(folder, prompts=[user()], sft={"data": "some.jsonl"}))
    assert level is ERROR and "the chat template changes the text of turn 2" in said
    found = odd(look(folder, "reward_model.path", reward_model={"data": "some.jsonl"}))
    assert [level for level, said in found if "changes answers: plain text" in said] == [ERROR]


@pytest.mark.parametrize("key", ["reward_model.path", "reward_model.others.b.path", "evaluate.judges.b"])
def test_every_judge_is_asked_whether_it_takes_the_prompts(tmp_path, key):
    judge = tiny_judge(tmp_path / "judge", "gemma2")
    with_system = [{"role": "system", "content": "s"}, *user()]
    section = {"others": {"b": OtherJudge(path=str(judge))}}
    ((level, said),) = odd(look(judge, key, prompts=[user(), with_system], reward_model=section))
    assert level is WARNING and said == f"{key}: 1 of 2 prompts are refused by its template"
    assert [level for level, _ in odd(look(judge, key, prompts=[with_system], reward_model=section))] == [
        ERROR
    ]


def test_a_pairwise_judge_takes_every_prompt(tmp_path):
    judge = tiny_policy(tmp_path / "judge", "gemma2")
    with_system = [{"role": "system", "content": "s"}, *user()]
    assert (
        odd(look(judge, "reward_model.path", prompts=[with_system], reward_model={"kind": "pairwise"})) == []
    )


def test_a_template_that_demands_a_system_turn_is_fine_where_prompts_have_one(tmp_path, folders):
    demand = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn must come "
        "first') }}{% endif %}"
    )
    folder = altered(tmp_path, folders[0], lambda t: demand + t)
    with_system = [{"role": "system", "content": "s"}, *user()]
    for prompts in ([with_system], []):
        assert odd(look(folder, prompts=prompts, sft={"data": "some.jsonl"})) == []
    (tmp_path / "judge").mkdir()
    judge = altered(tmp_path / "judge", folders[1], lambda t: demand + t)
    assert odd(look(judge, "reward_model.path", prompts=[with_system])) == []
    assert [level for level, _ in odd(look(folder, prompts=[user()]))] == [ERROR]


def test_a_template_that_hangs_is_an_error_that_names_it(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(template, "TIME_LIMIT_SECONDS", 0.5)
    loop = 3 * "{% for a in range(99999) %}" + 3 * "{% endfor %}"
    folder = altered(tmp_path, folders[0], lambda t: loop + t)
    ((level, said),) = odd(look(folder, prompts=[user()]))
    assert level is ERROR and f"{folder}: the chat template is still at work" in said


@pytest.mark.parametrize("turns", ["every turn", "every question"])
def test_a_bos_that_opens_turns_is_fine(tmp_path, folders, turns):
    begin = "{{ bos_token }}{{ m['role'] }}: "
    if turns == "every question":
        begin = "{% if m['role'] == 'user' %}{{ bos_token }}{% endif %}{{ m['role'] }}: "
    header = "{{ bos_token }}" if turns == "every turn" else ""
    new = "{% for m in messages %}" + begin + "{{ m['content'] }}<|eot_id|>{% endfor %}"
    new += HEADER + header + "assistant: {% endif %}"
    folder = altered(tmp_path, folders[0], lambda t: new)
    chat = [*user(), {"role": "assistant", "content": "a"}, *user()]
    assert odd(look(folder, prompts=[chat, chat])) == []


def test_a_run_is_refused_before_any_stage(tmp_path, folders):
    (tmp_path / "bare").mkdir()
    bare = altered(tmp_path / "bare", folders[0], lambda template: "")
    (bare / "model.safetensors").symlink_to(folders[0] / "model.safetensors")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": f"say {i}"} for i in range(20)]))
    given = [
        f"model.path={bare}",
        f"reward_model.path={folders[1]}",
        f"prompts.path={tmp_path / 'prompts.json'}",
    ]
    given += ["run_dir=run", "num_iterations=1", "prompts.num_held_out=4", "prompts.num_per_iteration=30"]
    code, said = called(tmp_path, "rlhf.iterate", *given)
    assert code == 2 and "Traceback" not in said, said
    for text in ("✗ num_iterations=1 with", "no chat template", "prompts.num_per_iteration=16"):
        assert text in said
    assert not (tmp_path / "run").exists()


def test_limits_of_vllm_count_for_prompts(folders):
    prompts = [user("a " * 200), user("b")]
    engine = {"engine": "vllm", "max_new_tokens": 100, "vllm_args": {"max_model_len": 200}}
    ((level, text),) = odd(look(folders[0], prompts=prompts, generate=engine))
    assert level is WARNING and text == "1 of 2 prompts exceed 100 tokens"
    ((level, text),) = odd(
        look(folders[0], prompts=prompts, generate=engine | {"vllm_args": {"max_model_len": 90}})
    )
    assert level is ERROR and "max_model_len=90: has no room" in text
