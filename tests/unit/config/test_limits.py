"""Values that do not go together: each limit with the last value that is refused and the first that is not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf.config.choices import Engine, JudgeKind, Loss, Strategy
from rlhf.config.limits import check_stages, problems, value_at
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE, OtherJudge
from rlhf.errors import ConfigError


def config(settings: dict[str, Any]) -> Config:
    """The default config with other values at dotted keys."""
    cfg = Config()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def mentions(settings: dict[str, Any], phrase: str) -> bool:
    return any(phrase in line for line in problems(config(settings)))


def test_the_defaults_go_together():
    assert problems(Config()) == []


PAIRWISE = {"reward_model.kind": JudgeKind.pairwise}
SMOOTHING = "dpo.label_smoothing"
ON_POLICY = "reward_model.on_policy"

REFUSED = [
    ({"score.tensor_parallel_size": 2}, "score.tensor_parallel_size=2: only with score.engine=vllm"),
    (
        PAIRWISE | {"reward_model.url": "http://host"},
        "reward_model.kind=pairwise: such a judge is loaded here",
    ),
    (PAIRWISE | {"reward_model.rule": "a:b"}, "reward_model.kind=pairwise: such a judge is loaded here"),
    (PAIRWISE | {"score.engine": Engine.vllm}, "score.engine=vllm: a pairwise judge"),
    (PAIRWISE | {"score.opponents": 1}, "score.opponents=1: must be 2 or more"),
    ({"score.opponents": 2}, "score.opponents=2: must be 2 or more"),
    ({"prompts.path": []}, "prompts.path=[]"),
    ({"prompts.path": ["a.jsonl", 3]}, "prompts.path="),
    ({"prompts.path": 3}, "prompts.path=3"),
    ({"pair.columns": "evidence"}, "pair.columns=evidence: must be a mapping"),
    ({"reward_model.columns": {"note": "a"}}, "reward_model.columns={note: a}: a column holds one of"),
    ({"sft.columns": {"answer": ["a", 3]}}, "name a column, or a list"),
    ({"sft.columns": {"answer": 3}}, "name a column, or a list"),
    ({"generate.vllm_args": {"model": "x"}}, "generate.vllm_args.model: not here"),
    ({"generate.vllm_args": {"seed": 1}}, "generate.vllm_args.seed=1: set seed"),
    (
        {"generate.batch_invariant": True, "generate.engine": Engine.transformers},
        "generate.batch_invariant=true: only with generate.engine=vllm, not transformers",
    ),
    ({"generate.batch_invariant": True, "generate.engine": Engine.auto}, "not auto"),
    (
        {"generate.overlap_shards": True, "generate.engine": Engine.transformers},
        "generate.overlap_shards=true: only vLLM takes requests",
    ),
    ({"generate.vllm_args": {"max_model_len": 0}}, "max_model_len=0: must be a whole number above 0"),
    ({"generate.vllm_args": {"max_num_seqs": -2}}, "max_num_seqs=-2: must be a whole"),
    ({"generate.vllm_args": {"max_num_batched_tokens": 8.5}}, "max_num_batched_tokens=8.5: must be"),
    ({"generate.vllm_args": {"max_num_seqs": True}}, "max_num_seqs=True: must be"),
    ({"generate.temperatures": []}, "generate.temperatures=[]: needs finite numbers"),
    ({"generate.temperatures": [1.0, -0.1]}, "needs finite numbers, none negative"),
    ({"generate.temperatures": [1.0, math.nan]}, "needs finite numbers"),
    ({"generate.n": 7}, "generate.n=7: cannot be shared out evenly over 2"),
    ({"generate.n": 4, "generate.temperatures": [0, 1.0]}, "at temperature 0 the 2 responses"),
    ({"generate.vllm_args": {"max_model_len": 2048}}, "max_model_len=2048: has no room for generate.max_new"),
    ({"generate.vllm_args": {"max_model_len": 1}}, "max_model_len=1: has no room"),
    ({"generate.n": 1, "generate.temperatures": [1.0]}, "generate.n=1: a pair needs two responses"),
    ({"pair.num_candidates": 9}, "pair.num_candidates=9: must be at most generate.n=8"),
    ({"pair.num_candidates": 1}, "pair.num_candidates=1: a pair needs two"),
    ({"pair.data": "a.jsonl"}, "pair.data=a.jsonl with num_iterations=3"),
    (
        {"pair.max_pairs_per_prompt": 2, "pair.strategy": Strategy.best_random},
        "pair.max_pairs_per_prompt=2: only with pair.strategy=best_worst, not best_random",
    ),
    ({"reward_model.rule": "a:b", "reward_model.url": "http://h"}, "only one of them"),
    ({"reward_model.rule": "a:b", "reward_model.data": "d"}, "only one of them"),
    ({"reward_model.url": "http://h", "reward_model.data": "d"}, "only one of them"),
    ({"reward_model.url": "http://h?a=b"}, "must be the base URL"),
    ({"reward_model.url": "ftp://h"}, "must be the base URL"),
    ({"reward_model.url": "http://h", "reward_model.path": ""}, "needs reward_model.path too"),
    ({"evaluate.judges": {"a/b": "x"}}, "evaluate.judges.a/b: the name becomes a folder"),
    ({"reward_model.others": {"a b": OtherJudge(path="x")}}, "reward_model.others.a b: the name becomes"),
    ({"evaluate.judges": {MAIN_JUDGE: "x"}}, f"judge {MAIN_JUDGE!r}: two are called so"),
    (
        {"evaluate.judges": {"two": "x"}, "reward_model.others": {"two": OtherJudge(path="x")}},
        "judge 'two': two are called so",
    ),
    ({"reward_model.others": {"a": OtherJudge()}}, "reward_model.others.a: path=None, rule=None: give one"),
    ({"reward_model.others": {"a": OtherJudge(path="x", rule="y:z")}}, "give one of the two"),
    ({"reward_model.weight": 0.0}, "reward_model.weight=0.0: must be a number other than 0"),
    ({"reward_model.weight": math.inf}, "reward_model.weight=inf: must be a number other than 0"),
    (
        {"reward_model.others": {"a": OtherJudge(path="x", weight=math.nan)}},
        "reward_model.others.a.weight=nan: must be",
    ),
    (PAIRWISE | {"reward_model.others": {"a": OtherJudge(path="x")}}, "do not go with reward_model.kind"),
    ({"dpo.max_length": 1}, "dpo.max_length=1: must leave room"),
    ({"dpo.loss": Loss.ipo, SMOOTHING: 0.1}, "has no meaning for dpo.loss=ipo"),
    ({"dpo.loss": Loss.hinge, SMOOTHING: 0.1}, "has no meaning for dpo.loss=hinge"),
    ({"dpo.loss": Loss.exo_pair}, "dpo.loss=exo_pair needs it above 0"),
    ({"dpo.lora.target_modules": []}, "dpo.lora.target_modules=[]: name layers"),
    ({"dpo.lora.target_modules": ["all-linear", "q_proj"]}, "[all-linear] alone"),
    ({f"{ON_POLICY}.prompts": "p", "reward_model.data": "d"}, "prompts and rule go together"),
    ({f"{ON_POLICY}.rule": "a:b", "reward_model.data": "d"}, "prompts and rule go together"),
    ({f"{ON_POLICY}.prompts": "p", f"{ON_POLICY}.rule": "a:b"}, "needs reward_model.data too"),
    ({"model.path": "@world/model"}, "model.path=@world/model: needs world.enabled=true"),
    (
        {"compute.num_training_ranks": 9, "dpo.batch_size": 8},
        "dpo.batch_size=8: smaller than compute.num_training_ranks=9",
    ),
]

GO_TOGETHER = [
    {"generate.batch_invariant": True, "generate.overlap_shards": True},
    {"generate.overlap_shards": False, "generate.engine": Engine.transformers},
    {"generate.overlap_shards": True, "generate.engine": Engine.auto},
    {"score.tensor_parallel_size": 2, "score.engine": Engine.vllm},
    {"score.engine": Engine.vllm},
    PAIRWISE,
    PAIRWISE | {"score.opponents": 2},
    {"reward_model.rule": "a:b"},
    {"prompts.path": "a.jsonl"},
    {"prompts.path": ["a.jsonl", "b.csv"]},
    {
        "pair.data": "pairs.jsonl",
        "num_iterations": 1,
        "pair.columns": {"chosen": "good", "rejected": ["bad", "worse"]},
    },
    {"sft.columns": {}},
    {"generate.vllm_args": {"enforce_eager": True}},
    {"generate.vllm_args": {"max_num_seqs": 1, "max_num_batched_tokens": None}},
    {"generate.vllm_args": {"max_model_len": -1}},
    {"generate.vllm_args": {"max_model_len": 2049}},
    {"generate.vllm_args": {"max_model_len": 2048}, "generate.engine": Engine.transformers},
    {"generate.n": 2, "generate.temperatures": [0, 1.0]},
    {"generate.n": 2, "generate.temperatures": [1.0]},
    {"generate.n": 6, "generate.temperatures": [0.5, 1.0]},
    {"pair.num_candidates": 8},
    {"pair.num_candidates": 2},
    {"pair.data": "a.jsonl", "num_iterations": 1},
    {"pair.max_pairs_per_prompt": 2},
    {"pair.strategy": Strategy.best_random},
    {"reward_model.url": "https://host:8000/judge"},
    {"reward_model.data": "d"},
    {"evaluate.judges": {"other_judge-2.0": "x"}},
    {"reward_model.others": {"a": OtherJudge(path="x", weight=-0.5), "b": OtherJudge(rule="y:z")}},
    {"reward_model.weight": -1.0},
    {"dpo.max_length": 2},
    {"dpo.loss": Loss.ipo},
    {"dpo.loss": Loss.hinge},
    {"dpo.loss": Loss.exo_pair, SMOOTHING: 0.001},
    {"dpo.loss": Loss.robust, SMOOTHING: 0.1},
    {SMOOTHING: 0.1},
    {"dpo.lora.target_modules": ["all-linear"]},
    {"dpo.lora.target_modules": ["q_proj", "v_proj"]},
    {f"{ON_POLICY}.prompts": "p", f"{ON_POLICY}.rule": "a:b", "reward_model.data": "d"},
    {"model.path": "@world/model", "world.enabled": True},
    {"world.enabled": True},
    {"compute.num_training_ranks": 8, "dpo.batch_size": 8},
    {"compute.num_training_ranks": 1},
]


@pytest.mark.parametrize(("settings", "phrase"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(settings, phrase):
    assert mentions(settings, phrase), problems(config(settings))


@pytest.mark.parametrize("settings", GO_TOGETHER, ids=lambda value: str(value)[:60])
def test_not_refused(settings):
    assert problems(config(settings)) == []


def test_a_url_with_a_password_is_shown_by_no_message():
    wrong = problems(config({"reward_model.url": "me:secret@host", "reward_model.path": ""}))
    assert len(wrong) == 1 and "secret" not in wrong[0]


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ({"dpo.beta": -1.0}, True),
        ({"generate.temperatures": []}, True),
        ({"pair.num_candidates": 1}, True),
        ({"reward_model.url": "ftp://h"}, True),
        # What only a loop has to do with.
        ({"generate.n": 1, "generate.temperatures": [1.0]}, False),
        ({"dpo.max_length": 1}, False),
    ],
)
def test_single_stages_are_held_to_what_concerns_them(settings, is_refused):
    if is_refused:
        with pytest.raises(ConfigError):
            check_stages(config(settings))
    else:
        check_stages(config(settings))
