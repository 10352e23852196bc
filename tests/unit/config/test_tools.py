"""Tools on files are told what the loop is told, but where they say otherwise."""

from __future__ import annotations

import pytest

from rlhf.config import tools
from rlhf.config.choices import Engine, JudgeKind, SpecialTokens
from rlhf.config.fields import plain
from rlhf.config.schema import Config
from rlhf.config.tools import as_config
from rlhf.config.training import RewardModelConfig

OF_THE_LOOP = {
    "seed",
    "debug",
    "special_tokens",
    "compute",
    "model",
    "generate",
    "score",
    "pair",
    "reward_model",
}

OTHERWISE = {
    tools.FileTool: {},
    tools.GenerateTool: {"generate.engine": "auto"},
    tools.ScoreTool: {},
    tools.RewardBenchTool: {},
    tools.BestOfNTool: {"reward_model.path": ""},
    tools.AnswerTool: {
        "model.path": "",
        "generate.engine": "auto",
        "generate.n": 1,
        "generate.temperatures": [0.0],
        "generate.max_prompt_tokens": 6000,
    },
}


def flat(value, prefix=""):
    """Dotted keys of a nested config."""
    if not isinstance(value, dict):
        return {prefix: value}
    keys = {}
    for name, item in value.items():
        keys |= flat(item, f"{prefix}.{name}" if prefix else name)
    return keys or {prefix: {}}


@pytest.mark.parametrize("tool", OTHERWISE)
def test_the_defaults_are_the_loops(tool):
    loop, own = flat(plain(Config())), flat(plain(as_config(tool())))
    assert {key: own[key] for key in own if own[key] != loop[key]} == OTHERWISE[tool]


def test_what_a_tool_is_told_reaches_the_stages():
    tool = tools.ScoreTool(seed=7, debug=True, special_tokens=SpecialTokens.tokens)
    tool.reward_model = tools.JudgeConfig(
        kind=JudgeKind.pairwise, path="p", revision="r", trust_remote_code=True
    )
    tool.score.engine = Engine.vllm
    tool.compute.num_threads = 3
    cfg = as_config(tool)
    assert (cfg.seed, cfg.debug, cfg.special_tokens) == (7, True, SpecialTokens.tokens)
    assert (cfg.score.engine, cfg.compute.num_threads) == (Engine.vllm, 3)
    judge = RewardModelConfig(kind=JudgeKind.pairwise, path="p", revision="r", trust_remote_code=True)
    assert cfg.reward_model == judge


def test_what_only_a_tool_has():
    assert (tools.RewardBenchTool().version, tools.RewardBenchTool().input) == (tools.Version.v1, "")
    assert [version.value for version in tools.Version] == [1, 2]
    assert tools.RewardBenchTool().subsets is None and tools.AnswerTool().run_dir is None
    planned = tools.PlanConfig()
    assert (planned.hardware, planned.price, planned.prompt_tokens, planned.response_tokens) == (None,) * 4
    assert tools.CheckConfig().json is False and tools.FileTool().columns is None
