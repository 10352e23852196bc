"""The judge a config names."""

from __future__ import annotations

from typing import Any

from rlhf.errors import UserError
from rlhf.scoring.judge import Judge, RuleJudge
from rlhf.scoring.tournament import Tournament


def load_judge(config: dict[str, Any], inputs: dict[str, str]) -> Judge | Tournament:
    """The rule that `config["rule"]` names, else the reward model `inputs["judge"]`: at `config["url"]`, or loaded.

    Where transformers stands in for vLLM, the judge's `note` says why.
    """
    if config.get("rule"):
        return RuleJudge(config["rule"])
    if config.get("url"):
        from rlhf.scoring.remote_judge import RemoteJudge

        keys = ("url", "max_tokens", "batch_tokens", "trust_remote_code")
        patience = ("concurrency", "timeout_seconds", "retry_seconds")
        return RemoteJudge(inputs["judge"], **{key: config[key] for key in keys + patience})
    shared = {key: config[key] for key in ("dtype", "max_tokens", "batch_tokens", "trust_remote_code")}
    if config.get("kind") == "pairwise":
        from rlhf.scoring.preference_judge import PairwiseJudge

        return Tournament(PairwiseJudge(inputs["judge"], **shared), config["opponents"])
    note = ""
    if config["engine"] != "transformers":
        from rlhf.scoring.vllm_judge import VllmJudge

        try:
            return VllmJudge(inputs["judge"], **shared, tensor_parallel_size=config["tensor_parallel_size"])
        except UserError as error:
            if config["engine"] == "vllm":
                raise
            note = f"transformers, since vLLM refuses: {error}"
    from rlhf.scoring.classifier_judge import ClassifierJudge

    return ClassifierJudge(inputs["judge"], **shared, note=note)
