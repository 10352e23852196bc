"""The judge a config names."""

from __future__ import annotations

from typing import Any

from rlhf.errors import UserError
from rlhf.scoring.judge import Judge, RuleJudge


def load_judge(config: dict[str, Any], inputs: dict[str, str]) -> Judge:
    """The rule that `config["rule"]` names, else the reward model folder `inputs["judge"]`."""
    if config.get("rule"):
        return RuleJudge(config["rule"])
    shared = {key: config[key] for key in ("dtype", "max_tokens", "batch_tokens", "trust_remote_code")}
    if config["engine"] != "transformers":
        from rlhf.scoring.vllm import VllmJudge

        try:
            return VllmJudge(inputs["judge"], **shared, tensor_parallel_size=config["tensor_parallel_size"])
        except UserError:
            if config["engine"] == "vllm":
                raise
    from rlhf.scoring.classifier import ClassifierJudge

    return ClassifierJudge(inputs["judge"], **shared)
