"""The judge a config names."""

from __future__ import annotations

from typing import Any

from rlhf.scoring.judge import Judge, RuleJudge


def load_judge(config: dict[str, Any], inputs: dict[str, str]) -> Judge:
    """The rule that `config["rule"]` names, else the reward model folder `inputs["judge"]`."""
    if config.get("rule"):
        return RuleJudge(config["rule"])
    from rlhf.scoring.classifier import ClassifierJudge

    return ClassifierJudge(
        inputs["judge"],
        dtype=config["dtype"],
        max_tokens=config["max_tokens"],
        batch_tokens=config["batch_tokens"],
        trust_remote_code=config["trust_remote_code"],
    )
