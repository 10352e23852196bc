"""What tokenizers and templates say before a run, and that a run is refused before any stage is begun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import PreflightStage
from rlhf.preflight.findings import Level
from rlhf.run.job import Job
from tests.families import FAMILIES, tiny_policy
from tests.stage_runner import config_of, run_here
from tests.tiny import tiny_llama, tiny_reward_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
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
    for text in ("chat template ", "2 of 2 rendered prompts end with", "end of turn '<|eot_id|>'", "rows of embedd"):
        assert any(text in each.text for each in found), text
    assert odd(look(judge, "reward_model.path")) == []


@pytest.mark.parametrize(
    ("template", "text", "sft"),
    [
        (lambda t: t.replace(HEADER, "{% if false %}"), "the template writes '<|start_header_id|>assistant", False),
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
    assert level is ERROR and "2 labels" in text
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
    assert odd(look(folder, prompts=[user()], sft={"data": "some.jsonl"}, generate={"max_new_tokens": 20})) == []


def test_a_run_is_refused_before_any_stage(tmp_path, folders):
    (tmp_path / "bare").mkdir()
    bare = altered(tmp_path / "bare", folders[0], lambda template: "")
    (bare / "model.safetensors").symlink_to(folders[0] / "model.safetensors")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": f"say {i}"} for i in range(20)]))
    given = [f"model.path={bare}", f"reward_model.path={folders[1]}", f"prompts.path={tmp_path / 'prompts.json'}"]
    given += ["run_dir=run", "num_iterations=1", "prompts.num_held_out=4", "prompts.num_per_iteration=30"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf.iterate", *given, "compute.preload=false"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for text in ("✗ num_iterations=1 with", "no chat template", "prompts.num_per_iteration=16"):
        assert text in done.stderr
    assert not any(path.is_dir() and path.name != "logs" for path in (tmp_path / "run").iterdir())
