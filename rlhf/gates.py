"""Gates: what a run makes is held against limits while it goes on; `gates` in the config says which warn or stop.

Findings follow from finished artifacts alone, so a resumed run finds the same again. docs/gates.md has the reasons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from rlhf.choices import Action, Loss, Reference
from rlhf.config import Config
from rlhf.config_training import DpoConfig
from rlhf.errors import UserError
from rlhf.run import Artifact, Run
from rlhf.summary import Evaluation, Row, best, rows_of, scores_by_prompt, write_summary

LIMITS = {
    "grad_norm": "max_grad_growth",
    "accuracy": "min_accuracy",
    "truncated": "max_truncated",
    "same_candidates": "max_same_candidates",
    "length": "max_length_growth",
    "kl": "max_kl",
    "second_judge": "max_fall",
}
"""The key that limits each gate; `first_loss` has a tolerance of its own."""
FEW_STEPS = 10
"""Steps too few to speak of a usual gradient norm, or of an accuracy."""


@dataclass(frozen=True)
class Finding:
    """A gate that iteration `iteration` does not pass; `where` is the file or folder that shows it.

    `threshold` is the limit that `value` is beyond; of `first_loss` the value at equal policies.
    """

    iteration: int
    gate: str
    value: float
    threshold: float
    text: str
    where: Path


def check_stage(cfg: Config, t: int, made: Artifact) -> Iterator[Finding]:
    """Hold what a finished `generate`, `pair` or `dpo` of iteration t counted and measured against its gates.

    A gate that cannot be evaluated is silent.
    """
    counts, stage = made.counts, made.path.name
    if stage == "generate" and counts.get("responses"):
        share = counts["truncated"] / counts["responses"]
        text = (
            f"{share:.1%} of the responses were cut at generate.max_new_tokens={cfg.generate.max_new_tokens}, so the "
            "judge reads unfinished answers. Raise it, or see what makes them so long"
        )
        yield from _beyond(cfg, t, "truncated", share, text, made.path)
    if stage == "pair" and counts.get("prompts"):
        share = (counts.get("dropped/identical_text", 0) + counts.get("dropped/all_tied", 0)) / counts["prompts"]
        text = (
            f"{share:.1%} of the prompts have candidates that are alike in text or score and teach nothing. Raise "
            "generate.temperatures or generate.n, use other prompts, or look at the judge"
        )
        yield from _beyond(cfg, t, "same_candidates", share, text, made.path)
    if stage == "dpo":
        path = made.path / "metrics.jsonl"
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        if t == 1 or cfg.dpo.reference is Reference.previous:
            yield from _first_loss(cfg.dpo, t, steps[0]["loss"], made.record["config"]["dtype"], path)
        yield from _training(cfg, t, steps, path)


def loss_at_equal_policies(dpo: DpoConfig) -> float:
    """What a pair's loss is when policy and reference are the same: the table of docs/training.md."""
    if dpo.loss is Loss.hinge:
        return 1.0
    if dpo.loss is Loss.ipo:
        return 1 / (4 * dpo.beta**2)
    if dpo.loss is Loss.exo_pair:
        return -math.log(2) - math.log(dpo.label_smoothing * (1 - dpo.label_smoothing)) / 2
    return math.log(2)


def _first_loss(dpo: DpoConfig, t: int, loss: float, dtype: str, path: Path) -> Iterator[Finding]:
    """Before its first update a policy that is its own reference has a known loss, up to rounding.

    Losses grow with β times the error of a log-probability, `ipo`'s with its value. `rpo_alpha` adds a term of unknown
    size, so nothing is said then.
    """
    expected = loss_at_equal_policies(dpo)
    tolerance = (1e-3 if dtype == "float32" else 0.02) * max(1.0, expected, dpo.beta / 0.1)
    if not dpo.rpo_alpha and not abs(loss - expected) <= tolerance:
        text = (
            f"the first loss is {loss:.4f}, but a policy that is its own reference has {expected:.4f} (± "
            f"{tolerance:.2g}). Reference and training see other weights, tokens or numbers: look whether the files of "
            "the model changed meanwhile, and try model.dtype=float32"
        )
        yield Finding(t, "first_loss", loss, expected, text, path)


def _training(cfg: Config, t: int, steps: list[dict[str, Any]], path: Path) -> Iterator[Finding]:
    """Gradient norms and implicit-reward accuracy over an iteration's steps."""
    norms = [step["grad_norm"] for step in steps if "grad_norm" in step]
    usual = [(norms[k] / m, k + 1) for k in range(FEW_STEPS, len(norms)) if (m := median(norms[:k]))]
    growth, number = max(usual, default=(0.0, 0))
    text = (
        f"the gradient norm of step {number} is {growth:.3g} times the median of the steps before it. Look at loss and "
        "grad_norm around it; lower dpo.learning_rate or dpo.max_grad_norm"
    )
    yield from _beyond(cfg, t, "grad_norm", growth, text, path)
    later = steps[math.ceil(len(steps) * max(0.5, cfg.dpo.warmup_ratio)) :]
    if len(steps) < FEW_STEPS or not later:
        return
    accuracy = fmean(step["rewards/accuracies"] for step in later)
    text = (
        f"over the later half of the steps the policy prefers the chosen response in {accuracy:.1%} of the pairs, no "
        "better than chance. Raise dpo.learning_rate if rewards/margins hardly move, else look at the pairs' labels"
    )
    yield from _beyond(cfg, t, "accuracy", accuracy, text, path)


def check_iteration(cfg: Config, rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> Iterator[Finding]:
    """Hold the last policy's held-out figures against π0's and the previous policy's; π0 first, silent on π0 alone."""
    first, last, made = rows[0], rows[-1], evaluations[-1]
    if len(rows) < 2:
        return
    t = last.iteration
    growth = last.mean_response_tokens / max(first.mean_response_tokens, 1e-9)
    text = (
        f"π{t}'s responses have {last.mean_response_tokens:.1f} tokens, {growth:.2f} times π0's: the judge may reward "
        "length. Read some; set pair.length_penalty, or add a judge under evaluate.judges"
    )
    yield from _beyond(cfg, t, "length", growth, text, made.candidates.path)
    if last.kl is not None:
        text = (
            f"π{t} is {last.kl:.1f} nats per response from π0, where the judge is less and less to be trusted. Raise "
            "dpo.beta, lower dpo.learning_rate, or take an earlier iterate"
        )
        yield from _beyond(cfg, t, "kl", last.kl, text, made.candidates.path)
    for base in sorted({len(rows) - 2, 0}, reverse=True):
        rise = last.mean_score - rows[base].mean_score
        for name, scores in _others(made).items() if rise > 0 else ():
            change, error = _change(scores, _others(evaluations[base])[name])
            text = (
                f"{name} changes by {change:+.3f} (standard error {error:.3f}) from π{base} to π{t}, the training "
                f"judge by {rise:+.3f}: the policy may be exploiting it. Read the answers it likes best; take "
                f"π{base}, raise dpo.beta, or use a better judge"
            )
            fall = -change / error if error else math.inf * (change < 0 or math.nan)
            yield from _beyond(cfg, t, "second_judge", fall, text, scores.path)


def _others(evaluation: Evaluation) -> dict[str, Artifact]:
    """Scores that no training sees, by the key that asks for them."""
    gold = {"evaluate.gold": evaluation.gold} if evaluation.gold is not None else {}
    return gold | {f"evaluate.judges.{name}": scores for name, scores in evaluation.others.items()}


def _change(now: Artifact, before: Artifact) -> tuple[float, float]:
    """Mean over prompts of how a judge's mean score changes, and its standard error; NaN of fewer than two prompts."""
    means = [
        {prompt: fmean(finite) for prompt, values in scores_by_prompt(a).items() if (finite := _finite(values))}
        for a in (now, before)
    ]
    changes = [mean - means[1][prompt] for prompt, mean in means[0].items() if prompt in means[1]]
    if len(changes) < 2:
        return math.nan, math.nan
    return fmean(changes), stdev(changes) / math.sqrt(len(changes))


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _beyond(cfg: Config, t: int, gate: str, value: float, text: str, where: Path) -> Iterator[Finding]:
    key = LIMITS[gate]
    limit = getattr(cfg.gates, key)
    if value < limit if key.startswith("min_") else value > limit:
        yield Finding(t, gate, value, limit, f"{text} (gates.{key}={limit:g})", where)


@dataclass
class Gates:
    """What was found so far, for the person who watches and for `summary.json`."""

    run: Run
    found: list[dict[str, Any]] = field(default_factory=list)

    def heed(self, findings: Iterable[Finding], evaluations: Sequence[Evaluation]) -> None:
        """Tell and keep findings; silent in a plan and for a stage alone.

        Raises:
            UserError: one's action is `stop`; `summary.json` holds it and the figures so far.
        """
        if self.run.planning or self.run.only is not None:
            return
        stops = []
        for finding in findings:
            action: Action = getattr(self.run.cfg.gates, finding.gate)
            if action is Action.ignore:
                continue
            where = str(finding.where.relative_to(self.run.folder))
            self.found.append(vars(finding) | {"where": where, "action": action.value})
            self.run.say(f"  ! gates.{finding.gate}: {finding.text}. See {where}")
            stops += [finding] if action is Action.stop else []
        if stops:
            rows = rows_of(evaluations)
            write_summary(self.run.folder, rows, rows[best(rows)].iteration, self.found)
            raise UserError("\n".join(_stopped(self.run.folder, finding) for finding in stops))


def _stopped(folder: Path, finding: Finding) -> str:
    gate, limit = finding.gate, LIMITS.get(finding.gate)
    return "\n".join(
        [
            f"gates.{gate}=stop stopped the run in iteration {finding.iteration}: {finding.text}.",
            f"  look at: {finding.where}",
            "  ways out: change a setting named above; the same command then says what has to be redone;"
            + (f" or move gates.{limit}, now {finding.threshold:g}, past {finding.value:.4g};" if limit else ""),
            f"  or go on all the same with gates.{gate}=warn: {folder} keeps all that is finished.",
        ]
    )
