"""Who gave a score: two judges' scores are not comparable, and a name does not make two of them the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.loop.figures import Evaluation
from rlhf.run.artifact import Artifact

SCORE = "score"
"""The role of what policies are compared by: the training judge, or the sum of several."""
GOLD = "gold"
"""The role of the yardstick that no training sees."""
_ASKED = ("judge_file", "served_model", "api", "temperature", "max_new_tokens", "body")
"""What a generative judge's answers depend on."""
_WHO = ("rule", "rule_source", "kind", *_ASKED)
"""Of what a `score` stage is told: who judges. The rest is how."""


@dataclass(frozen=True)
class Judged:
    """Scores of a policy's responses and who gave them.

    `role` is `score`, `gold`, or the judge's name in its run. Equal `identity` means comparable scores; None
    is comparable with nothing. `told` is how the judge was asked; `trained_on` says that policies learned to
    please it.
    """

    role: str
    scores: Artifact
    identity: str | None
    who: str
    told: Mapping[str, Any]
    trained_on: bool


def judged(evaluation: Evaluation) -> list[Judged]:
    """All scores of a policy: what policies are compared by first, then gold, then each further judge's."""
    roles = [(SCORE, evaluation.scores)]
    if evaluation.gold is not None:
        roles.append((GOLD, evaluation.gold))
    for name, scores in evaluation.others.items():
        roles.append((role_of(name), scores))
    summed = [SCORE, *map(role_of, _weights(evaluation))]
    found = []
    for role, scores in roles:
        identity, who = _sum(evaluation) if _is_sum(scores) else _one(scores)
        config = scores.record["identity"]["config"]
        told = {key: value for key, value in config.items() if key not in _WHO}
        found.append(Judged(role, scores, identity, who, told, role in summed))
    return found


def role_of(name: str) -> str:
    """The role of a further judge: its name, unless a person has given it one of the two above."""
    return f"judge {name}" if name in (SCORE, GOLD) else name


def _weights(evaluation: Evaluation) -> dict[str, float]:
    """The weight of each judge of a sum, by name; {} of one judge alone."""
    config = evaluation.scores.record["identity"]["config"]
    return dict(config["weights"]) if _is_sum(evaluation.scores) else {}


def _is_sum(scores: Artifact) -> bool:
    return bool(scores.record["identity"]["stage"] == "mix")


def _one(scores: Artifact) -> tuple[str | None, str]:
    """The identity of one judge, and what to call it."""
    made_of = scores.record["identity"]
    config, inputs = made_of["config"], made_of["inputs"]
    rule = config.get("rule")
    if rule is not None:
        source = str(config.get("rule_source", ""))
        return json_text(["rule", rule, source]), f"the rule {rule} (source {source[:8]}…)"
    model = inputs.get("judge")
    if config.get("kind") == "generative":
        return _generative(config, model, inputs.get("against"))
    if model is None:
        return None, "nobody that is recorded"
    who = f"the model {model[:8]}…"
    if config.get("kind") != "pairwise":
        return json_text(["model", model]), who
    # Its scores are chances against the responses of a policy, as a rule π0's; π0's own, against each other.
    against = inputs.get("against")
    if against is None:
        return None, f"{who}, which compared π0's responses with each other"
    return json_text(["pairwise", model, against]), f"{who} against the responses {against[:8]}…"


def _generative(config: Mapping[str, Any], model: str | None, against: str | None) -> tuple[str | None, str]:
    """Of a language model that is asked in words: who it is and what it is asked."""
    asked = {name: config.get(name) for name in _ASKED}
    who = f"the model {model[:8]}… asked in words" if model else f"the server's {config.get('served_model')}"
    compares = "{response_a}" in config["judge_file"]["prompt"]
    if compares and against is None:
        return None, f"{who}, which compared π0's responses with each other"
    return json_text(["generative", model, against, asked], sort_keys=True), who


def _sum(evaluation: Evaluation) -> tuple[str | None, str]:
    """The identity of a sum: of its judges, their weights, and the scales on which π0 has put them."""
    weights = _weights(evaluation)
    metrics = evaluation.scores.metrics
    parts: list[Any] = ["sum"]
    for name, weight in sorted(weights.items()):
        judge = evaluation.others.get(name)
        identity = None if judge is None else _one(judge)[0]
        if identity is None:
            return None, f"a sum of judges of which {name} is not known"
        parts.append([identity, weight, metrics.get(f"mean/{name}"), metrics.get(f"std/{name}")])
    written = [f"{weight:g} × {name}" for name, weight in sorted(weights.items())]
    return json_text(parts), f"the sum {' + '.join(written)}, on the scale of π0"
