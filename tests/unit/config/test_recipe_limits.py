"""What does not go together in a recipe is refused, with the setting and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.config.choices import Loss, Method, Reference, Strategy
from rlhf.config.limits import problems, value_at
from rlhf.config.recipe_limits import unused_training
from rlhf.config.schema import Config

RAFT = {"method": Method.raft}
GIVEN = {"pair.data": "pairs.jsonl", "num_iterations": 1}


def said(settings: dict[str, Any]) -> str:
    cfg = Config()
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return "\n".join(problems(cfg))


@pytest.mark.parametrize(
    ("settings", "wrong", "way_out"),
    [
        (RAFT | GIVEN, "method=raft with pair.data=pairs.jsonl", "method=dpo"),
        (RAFT | {"replay.iterations": 1}, "method=raft with replay", "method=dpo"),
        (RAFT | {"dpo.lora.rank": 8}, "dpo.lora.rank=8", "method=dpo"),
        (RAFT | {"pair.min_margin": 0.5}, "pair.min_margin=0.5", "method=dpo"),
        (RAFT | {"pair.max_pairs_per_prompt": 2}, "pair.max_pairs_per_prompt=2", "method=dpo"),
        (RAFT | {"pair.strategy": Strategy.random}, "pair.strategy=random", "method=dpo"),
        ({"dpo.length_alpha": 0.1, "dpo.loss": Loss.ipo}, "dpo.length_alpha=0.1", "dpo.loss=sigmoid"),
        ({"dpo.loss": Loss.simpo, "dpo.reference": Reference.previous}, "no reference", "sigmoid_norm"),
        ({"dpo.loss": Loss.inpo, "dpo.reference": Reference.previous}, "inpo", "dpo.initial_share=0"),
        (GIVEN | {"dpo.loss": Loss.score_aware}, "pair.data=pairs.jsonl", "dpo.loss=sigmoid"),
        ({"dpo.loss": Loss.score_aware, "replay.data": "p.jsonl"}, "replay.data=p.jsonl", "dpo.loss=sigmoid"),
        (GIVEN | {"replay.data": "p.jsonl"}, "replay with pair.data", "pair.data=null"),
        ({"dpo.loss": Loss.simpo, "dpo.label_smoothing": 0.1}, "dpo.label_smoothing=0.1", "dpo.loss=sigmoid"),
        (
            {"dpo.loss": Loss.ipo, "dpo.label_smoothing": 0.1},
            "for dpo.loss=ipo",
            "sigmoid, robust or exo_pair",
        ),
        (
            {"dpo.simpo_gamma": 0.5},
            "dpo.simpo_gamma=0.5: has no meaning for dpo.loss=sigmoid",
            "Set it to 1,",
        ),
        ({"dpo.loss": Loss.inpo, "dpo.simpo_gamma": 0.0}, "dpo.simpo_gamma=0.0", "dpo.loss=simpo"),
        (
            {"dpo.score_scale": 2.0},
            "dpo.score_scale=2.0",
            "Set it to 1, its default, or use dpo.loss=score_aware",
        ),
        ({"dpo.loss": Loss.simpo, "dpo.initial_share": 0.5}, "dpo.initial_share=0.5", "dpo.loss=inpo"),
        ({"dpo.initial_share": 0.0}, "dpo.initial_share=0.0", "Set it to 0.333333, its default"),
        ({"dpo.length_alpha": 1e39}, "dpo.length_alpha=1e+39: must not be negative, and at most 1e9", "fp32"),
        ({"dpo.loss": Loss.simpo, "dpo.simpo_gamma": 1e39}, "dpo.simpo_gamma=1e+39", "at most 1e9"),
        ({"dpo.loss": Loss.score_aware, "dpo.score_scale": 1e39}, "dpo.score_scale=1e+39", "1e-9 to 1e9"),
        ({"dpo.rpo_alpha": 1e39}, "dpo.rpo_alpha=1e+39", "at most 1e9"),
        ({"dpo.beta": 1e-300}, "dpo.beta=1e-300", "from 1e-9 to 1e9"),
        ({"dpo.beta": 1e39, "dpo.loss": Loss.inpo}, "dpo.beta=1e+39", "from 1e-9 to 1e9"),
        ({"replay.columns": {"question": "x"}}, "replay.columns={'question': 'x'}", "Set replay.data"),
        ({"pair.columns": {"question": "x"}}, "pair.columns={'question': 'x'}", "Set pair.data"),
        ({"sft.columns": {"question": "x"}}, "sft.columns={'question': 'x'}", "Set sft.data"),
        ({"reward_model.columns": {"question": "x"}}, "reward_model.columns=", "Set reward_model.data"),
        ({"dpo.initial_share": 1.5, "dpo.loss": Loss.inpo}, "dpo.initial_share=1.5", "[0, 1]"),
        ({"replay.iterations": -1}, "replay.iterations=-1", "negative"),
        ({"dpo.score_scale": 0.0, "dpo.loss": Loss.score_aware}, "dpo.score_scale=0.0", "positive"),
        ({"replay.columns": {"ask": "x"}, "replay.data": "p.jsonl"}, "replay.columns={ask: x}", "question"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_it_is_refused(settings: dict[str, Any], wrong: str, way_out: str) -> None:
    found = said(settings)
    assert wrong in found and way_out in found
    assert found.count("\n") == 0, "one line for one mistake"


@pytest.mark.parametrize(
    "settings",
    [
        RAFT,
        {"dpo.loss": Loss.simpo, "replay.iterations": 2, "replay.data": "pairs.jsonl"},
        {"dpo.loss": Loss.inpo, "dpo.initial_share": 0.0},
        {"dpo.loss": Loss.score_aware, "replay.iterations": 2},
        {"dpo.length_alpha": 0.1, "dpo.label_smoothing": 0.1},
    ],
    ids=str,
)
def test_what_goes_together_passes(settings: dict[str, Any]) -> None:
    assert said(settings) == ""


@pytest.mark.parametrize(
    ("settings", "typed", "said"),
    [
        (RAFT, {"dpo": {"learning_rate": 1e-5}}, "Set raft.learning_rate in its place, or method=dpo."),
        (RAFT, {"dpo": {"loss": "simpo"}}, "dpo.loss=simpo with method=raft: has no meaning"),
        (RAFT, {"dpo": {"lora": {"alpha": 8}}}, "Leave it out, or set method=dpo."),
        ({}, {"raft": {"num_epochs": 3}}, "raft.num_epochs=3 with method=dpo"),
    ],
    ids=str,
)
def test_what_was_typed_of_another_training_is_refused(
    settings: dict[str, Any], typed: dict[str, Any], said: str
) -> None:
    cfg = Config(**settings)
    [line] = unused_training(cfg, typed)
    assert said in line


def test_what_changes_the_cost_of_a_training_alone_may_be_typed_for_any() -> None:
    typed = {"dpo": {"save_steps": 5, "batch_tokens": 64}, "raft": {"save_steps": 5}, "generate": {"n": 4}}
    assert not [*unused_training(Config(), typed), *unused_training(Config(method=Method.raft), typed)]
    assert not list(unused_training(Config(), {"dpo": {"learning_rate": 1.0}, "raft": None}))
