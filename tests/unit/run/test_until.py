"""`until=` names a stage as a person would."""

from __future__ import annotations

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import PromptsStage
from rlhf.errors import ConfigError
from rlhf.run.plan import AloneDone, Run
from rlhf.run.until import last_stage
from tests.unit.run.test_plan import InProcess, source

EVALUATION = ["generate", "score", "score_second", "mix", "gold"]
NAMES = [
    "world",
    "sft",
    "judge/prompts",
    "judge/generate",
    "judge/score",
    "judge/pair",
    "reward_model",
    "prompts",
    "data/prompts.path",
    *(f"iteration_000/held_out/{name}" for name in EVALUATION),
    *(f"iteration_001/{name}" for name in ("generate", "score", "pair", "reference", "dpo")),
    *(f"iteration_001/held_out/{name}" for name in [*EVALUATION, "reference"]),
    *(f"iteration_002/{name}" for name in ("generate", "score", "pair", "reference", "dpo")),
    *(f"iteration_002/held_out/{name}" for name in [*EVALUATION, "reference"]),
]


@pytest.mark.parametrize(
    ("until", "name"),
    [
        ("reward_model", "reward_model"),
        ("prompts", "prompts"),
        ("judge/score", "judge/score"),
        ("judge", "judge/pair"),
        ("generate", "iteration_001/generate"),
        ("score", "iteration_001/score"),
        ("dpo", "iteration_001/dpo"),
        ("iteration_002/dpo", "iteration_002/dpo"),
        ("held_out/generate", "iteration_000/held_out/generate"),
        ("held_out/reference", "iteration_001/held_out/reference"),
        ("score_second", "iteration_000/held_out/score_second"),
        ("gold", "iteration_000/held_out/gold"),
        ("mix", "iteration_000/held_out/mix"),
        ("iteration_000", "iteration_000/held_out/gold"),
        ("iteration_001", "iteration_001/held_out/reference"),
        ("iteration_001/held_out", "iteration_001/held_out/reference"),
        ("iteration_001/", "iteration_001/held_out/reference"),
        ("dataset", "data/prompts.path"),
        ("data", "data/prompts.path"),
        ("prompts.path", "data/prompts.path"),
        ("export", None),
    ],
)
def test_what_a_name_means(until, name):
    assert last_stage(until, NAMES) == name


@pytest.mark.parametrize("until", ["dop", "", "iteration_007", "iteration_00", "preferences", "..", "/"])
def test_an_unknown_name_lists_the_stages(until):
    with pytest.raises(ConfigError) as refusal:
        last_stage(until, NAMES)
    for part in (f"until={until}:", "reward_model", "held_out/gold", "dpo", "export", "iteration_00T/"):
        assert part in str(refusal.value)


def test_a_stage_of_the_table_that_this_run_lacks_is_said_to_be_that():
    with pytest.raises(ConfigError, match="until=preferences: a stage that this run does not have"):
        last_stage("preferences", NAMES)


def test_nothing_begins_after_it(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    launcher = InProcess()
    run = Run(tmp_path / "run", Config(), launcher, until="one")

    def make(name):
        run.stage("prompts", name, PromptsStage(1), {"prompts": source(path)})

    make("one")  # gates and figures have their look at it
    with pytest.raises(AloneDone):
        make("two")
    assert [name for name, _ in launcher.ran] == ["one"]
