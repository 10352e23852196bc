"""Gates: what a run makes is held against limits while it goes on; `gates` in the config says which warn or
stop.

Findings follow from finished artifacts alone, so a resumed run finds the same again. docs/gates.md has the
reasons.
"""

from __future__ import annotations

import json
import math
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlhf.config.choices import Action, Reference
from rlhf.config.schema import Config
from rlhf.config.step_count import FEW_STEPS
from rlhf.config.training import MAIN_JUDGE, DpoConfig
from rlhf.data.json_text import json_text
from rlhf.errors import UserError
from rlhf.evaluation.judge_quality import wilson
from rlhf.loop.equal_policies import loss_at_equal_policies
from rlhf.loop.figures import (
    Evaluation,
    Row,
    best,
    finite,
    measured,
    rows_of,
    scores_by_prompt,
    write_summary,
)
from rlhf.run.artifact import Artifact
from rlhf.run.commit import damaged
from rlhf.run.plan import Run

METRICS = "metrics.jsonl"
"""A training's optimizer steps, in its folder."""
_ROUNDING = 1e-3
"""Of a loss in fp32: how far below that of a coin a judge of equal scores may seem."""
_FEWEST_HELD_OUT = 4
"""Of fewer pairs even all right could be a coin's luck: Wilson's interval of 3 of 3 holds ½."""
_TEXTS = {
    "first_loss": "the first loss is {value:.4f}, but a policy that is its own reference has "
    "{limit:.4f}: the two see "
    "other weights, tokens or precision. See whether a model's files changed, and try model.dtype=float32",
    "judge_loss": "the judge's last losses are {value:.4f}, and that of a coin is ln 2 = {limit:.4f}: it has "
    "learnt nothing that its scores could show. Look at reward_model.learning_rate and the steps "
    "(reward_model.batch_size, num_epochs), and read some of its pairs",
    "judge_accuracy": "the judge is right on {value:.1%} of {held_out} held-out pairs, 95 % interval "
    "{low:.3f} to {high:.3f}: {what}. Train it on more or cleaner pairs, hold out more of them "
    "(reward_model.held_out_share) to see better, or take a ready judge",
    "judge_cut": "{value:.1%} of the judge's pairs are longer than reward_model.max_length={max_length} and "
    "lost their beginning, so it has hardly seen what was asked. Raise it",
    "grad_norm": "the gradient norm of step {step} is {value:.3g} times the median of the steps "
    "before it. Look at the "
    "loss around it; lower {ways_out}",
    "accuracy": "in the later half of the steps the policy prefers {value:.1%} of the chosen "
    "responses, no better than "
    "chance. Raise dpo.learning_rate if rewards/margins hardly move, else look at the pairs",
    "truncated": "{value:.1%} of the responses were cut, so the judge reads unfinished answers. Raise "
    "generate.max_new_tokens, or see what makes them so long",
    "same_candidates": "{value:.1%} of the prompts have candidates that are alike in text or score "
    "and teach nothing. "
    "Raise generate.temperatures or generate.n, use other prompts, or look at the judge",
    "length": "π{t}'s responses are {value:.2f} times as long as π0's: the judge may reward "
    "length. Read some; set "
    "pair.length_penalty, or add a judge under evaluate.judges",
    "kl": "π{t} is {value:.2f} nats per response from π0{no_kl}, where the judge is less and less to be "
    "trusted. Raise "
    "dpo.beta, lower dpo.learning_rate, or take an earlier iterate",
    "second_judge": "{judge} changes by {change:+.3f} from π{base} to π{t}, a fall of {value:.1f} "
    "standard errors, the "
    "training judge by {rise:+.3f}: it may be exploited. Read what it likes best; take π{base}, or "
    "raise dpo.beta",
}


@dataclass(frozen=True)
class Violation:
    """A gate that iteration `iteration` does not pass; `where` is the file or folder that shows it.

    `threshold` is the value of the key `limit` that `value` is beyond; `first_loss` has none, but an expected
    value.
    """

    iteration: int
    gate: str
    value: float
    threshold: float
    limit: str | None
    text: str
    where: Path


def check_stage(cfg: Config, t: int, artifact: Artifact) -> Iterator[Violation]:
    """Hold a finished `generate`, `pair`, `dpo` or `raft` of iteration t, or a `reward_model` (0), against
    its gates; what is unknown passes.

    Example:
        `pair` with counts {"prompts": 10, "pairs": 4, "dropped/all_tied": 6} yields one violation of
        `same_candidates`, whose value is 0.6.
    """
    counts = artifact.counts
    stage = artifact.path.name
    if stage == "generate" and counts.get("responses"):
        share = counts["truncated"] / counts["responses"]
        yield from _beyond(cfg, t, "truncated", "max_truncated", share, artifact.path)
    if stage == "pair" and counts.get("prompts"):
        num_alike = counts.get("dropped/identical_text", 0) + counts.get("dropped/all_tied", 0)
        share = num_alike / counts["prompts"]
        yield from _beyond(cfg, t, "same_candidates", "max_same_candidates", share, artifact.path)
    if stage == "reward_model":
        yield from _judge(t, artifact)
    if stage == "dpo":
        path = artifact.path / METRICS
        steps = training_steps(path)
        # Only here is the policy its own reference before the first update.
        if t == 1 or cfg.dpo.reference is Reference.previous:
            dtype = artifact.record.get("config", {}).get("dtype")
            yield from _first_loss(cfg.dpo, t, steps[0]["loss"], dtype, path)
        yield from _grad_norm(cfg, t, steps, path, "dpo.learning_rate or dpo.max_grad_norm")
        yield from _accuracy(cfg, t, steps, path)
    if stage == "raft":
        path = artifact.path / METRICS
        yield from _grad_norm(cfg, t, training_steps(path), path, "raft.learning_rate")


def training_steps(path: Path) -> list[dict[str, Any]]:
    """The optimizer steps in a training's `metrics.jsonl`, one at least.

    Raises:
        RunChanged: a line is damaged, or has no loss, or there is none.

    Example:
        [{"loss": 0.6931, "grad_norm": 1.32, "rewards/accuracies": 0.5, "step": 1, …}, …]
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error), path.parent) from None
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, dict) or "loss" not in step:
            raise damaged(path, f"line {number} has no loss", path.parent)
        for name in ("loss", "grad_norm", "rewards/accuracies"):
            value = step.get(name, 0.0)
            # Null stands for a number that was not finite.
            if value is None:
                value = step[name] = math.nan
            if isinstance(value, bool) or not isinstance(value, int | float):
                found = json_text(value)
                raise damaged(
                    path, f"line {number}: {name} is {found:.80}, and must be a number", path.parent
                )
    if not steps:
        raise damaged(path, "it has no step", path.parent)
    return steps


def _judge(t: int, artifact: Artifact) -> Iterator[Violation]:
    """Signs that a judge which was trained here is no better than a coin."""
    path = artifact.path / METRICS
    losses = [step["loss"] for step in training_steps(path)]
    # The loss of one batch is noisy: of long trainings the last tenth.
    last_loss = fmean(losses[-max(1, len(losses) // 10) :])
    of_a_coin = math.log(2)
    if last_loss >= of_a_coin - _ROUNDING:
        text = _TEXTS["judge_loss"].format(value=last_loss, limit=of_a_coin)
        yield Violation(t, "judge", last_loss, of_a_coin, None, text, path)
    counts = artifact.counts
    held_out = counts.get("held_out", 0)
    accuracy = artifact.metrics.get("held_out_accuracy")
    if accuracy is not None and held_out >= _FEWEST_HELD_OUT:
        low, high = wilson(accuracy * held_out, held_out)
        if low <= 0.5:
            what = (
                "it cannot be told from a coin"
                if high >= 0.5
                else "worse than a coin, as where labels are turned"
            )
            figures = {"held_out": held_out, "low": low, "high": high, "what": what}
            text = _TEXTS["judge_accuracy"].format(value=accuracy, **figures)
            yield Violation(t, "judge", accuracy, 0.5, None, text, artifact.path)
    num_read = counts.get("pairs", 0) + held_out
    cut = counts.get("cut_left", 0)
    if cut > num_read / 2:
        max_length = artifact.record.get("config", {}).get("max_length")
        text = _TEXTS["judge_cut"].format(value=cut / num_read, max_length=max_length)
        yield Violation(t, "judge", cut / num_read, 0.5, None, text, artifact.path)


def _first_loss(dpo: DpoConfig, t: int, loss: float, dtype: Any, path: Path) -> Iterator[Violation]:
    """Before its first update a policy that is its own reference has a known loss, up to rounding."""
    expected = loss_at_equal_policies(dpo)
    if expected is None:
        return
    # So far off may a loss be at β = 0.1, where policy and reference batch their rows differently
    # (docs/gates.md).
    rounding = 1e-3 if dtype == "float32" else 0.02
    # Losses grow with β times the error of a log-probability, those of `ipo` and `inpo` with their value.
    tolerance = rounding * max(1.0, expected, dpo.beta / 0.1)
    is_close = abs(loss - expected) <= tolerance  # never for NaN
    if not is_close:
        text = _TEXTS["first_loss"].format(value=loss, limit=expected)
        yield Violation(t, "first_loss", loss, expected, None, text, path)


def _grad_norm(
    cfg: Config, t: int, steps: list[dict[str, Any]], path: Path, ways_out: str
) -> Iterator[Violation]:
    """The largest gradient norm of an iteration beside the median of the steps before it."""
    norms: list[float] = []
    largest_growth = 0.0
    at_step = 0
    for number, step in enumerate(steps, start=1):
        norm = step.get("grad_norm", math.nan)
        # One that is not finite would spoil the median, and is nothing to compare.
        if not math.isfinite(norm):
            continue
        # All zero so far: there is no usual norm to grow from.
        half = len(norms) // 2  # and ~half is as far from the end: the median lies between
        usual = (norms[half] + norms[~half]) / 2 if norms and number > FEW_STEPS else 0.0
        if usual and norm / usual >= largest_growth:
            largest_growth = norm / usual
            at_step = number
        insort(norms, norm)  # not sorted anew in every step, of which there may be many thousands
    figures = {"step": at_step, "ways_out": ways_out}
    yield from _beyond(cfg, t, "grad_norm", "max_grad_growth", largest_growth, path, **figures)


def _accuracy(cfg: Config, t: int, steps: list[dict[str, Any]], path: Path) -> Iterator[Violation]:
    """How often the policy prefers the chosen response, over the later half of the steps and after the
    warm-up.
    """
    if len(steps) < FEW_STEPS:
        return
    begin = math.ceil(len(steps) * max(0.5, cfg.dpo.warmup_ratio))
    accuracies = finite(step["rewards/accuracies"] for step in steps[begin:] if "rewards/accuracies" in step)
    if accuracies:
        yield from _beyond(cfg, t, "accuracy", "min_accuracy", fmean(accuracies), path)


def check_iteration(
    cfg: Config, rows: Sequence[Row], evaluations: Sequence[Evaluation]
) -> Iterator[Violation]:
    """Hold the last policy's held-out figures against those of π0, the first, and of the policy before it."""
    if len(rows) < 2:
        return
    first, last = rows[0], rows[-1]
    t = last.iteration
    place = evaluations[-1].candidates.path
    growth = last.mean_response_tokens / max(first.mean_response_tokens, 1e-9)
    yield from _beyond(cfg, t, "length", "max_length_growth", growth, place)
    if last.distance is not None:
        no_kl = "" if last.log_ratio is None else " (the mean log-ratio of its samples, which is no KL here)"
        yield from _beyond(cfg, t, "kl", "max_kl", last.distance, place, no_kl=no_kl)
    previous = len(rows) - 2
    for base in sorted({previous, 0}, reverse=True):  # in iteration 1 they are the same
        yield from _second_judge(cfg, rows, evaluations, base)


def _second_judge(
    cfg: Config, rows: Sequence[Row], evaluations: Sequence[Evaluation], base: int
) -> Iterator[Violation]:
    """Judges that fall between policy `base` and the last one, while the training judge rises."""
    last = rows[-1]
    rise = last.mean_score - rows[base].mean_score
    if not rise > 0:  # also where it is NaN
        return
    scores_at_base = _unseen_scores(cfg, evaluations[base])
    for judge, scores in _unseen_scores(cfg, evaluations[-1]).items():
        change, error = _change(scores, scores_at_base[judge])
        figures = {"judge": judge, "change": change, "rise": rise, "base": base}
        fall = _standard_errors(-change, error)
        yield from _beyond(cfg, last.iteration, "second_judge", "max_fall", fall, scores.path, **figures)


def _standard_errors(fall: float, error: float) -> float:
    """A fall in standard errors; without any spread it is beyond every limit."""
    if error:
        return fall / error
    return math.inf if fall > 0 else 0.0


def _unseen_scores(cfg: Config, evaluation: Evaluation) -> dict[str, Artifact]:
    """Scores that no training sees, by the key that asks for them; judges of a sum are not among them."""
    summed = {MAIN_JUDGE, *cfg.reward_model.others}
    unseen = {}
    if evaluation.gold is not None:
        unseen["evaluate.gold"] = evaluation.gold
    for name, scores in evaluation.others.items():
        if name not in summed:
            unseen[f"evaluate.judges.{name}"] = scores
    return unseen


def _change(now: Artifact, before: Artifact) -> tuple[float, float]:
    """Mean over prompts of how a judge's mean score changes, and its standard error; NaN of fewer than two
    prompts.
    """
    scores_before = scores_by_prompt(before)
    changes = []
    for prompt, scores in scores_by_prompt(now).items():
        scores = finite(scores)
        earlier = finite(scores_before.get(prompt, []))
        if scores and earlier:
            changes.append(fmean(scores) - fmean(earlier))
    if len(changes) < 2:
        return math.nan, math.nan
    return fmean(changes), stdev(changes) / math.sqrt(len(changes))


def _beyond(
    cfg: Config, t: int, gate: str, key: str, value: float, place: Path, **figures: Any
) -> Iterator[Violation]:
    """A violation where a value is beyond the limit of `gates.<key>`; a NaN never is."""
    limit = getattr(cfg.gates, key)
    is_beyond = value < limit if key.startswith("min_") else value > limit
    if is_beyond:
        text = _TEXTS[gate].format(t=t, value=value, **figures)
        yield Violation(t, gate, value, limit, key, f"{text} (gates.{key}={limit:g})", place)


@dataclass
class Gates:
    """Holds what a run makes against its gates, and keeps what it found for `summary.json`."""

    run: Run
    evaluations: list[Evaluation]
    """Those of the run so far, π0's first; the loop adds to them."""
    violations: list[dict[str, Any]] = field(default_factory=list)

    def stage_finished(self, iteration: int, artifact: Artifact) -> None:
        """Look at a finished stage; UserError where a gate whose action is `stop` does not let it pass."""
        if self._is_silent():
            return
        if artifact.path.name in ("dpo", "raft", "reward_model"):
            self.run.verify(artifact.part(METRICS))
        violations = check_stage(self.run.cfg, iteration, artifact)
        self._heed(violations)

    def iteration_finished(self, rows: Sequence[Row]) -> None:
        """Look at the figures of all policies so far; UserError as above."""
        violations = check_iteration(self.run.cfg, rows, self.evaluations)
        self._heed(violations)

    def _is_silent(self) -> bool:
        return self.run.planning or self.run.only is not None

    def _heed(self, violations: Iterable[Violation]) -> None:
        """Tell and keep violations; silent in a plan and for a stage alone.

        Raises:
            UserError: one's action is `stop`; `summary.json` holds it and the figures so far.
        """
        if self._is_silent():
            return
        reasons_to_stop = []
        for violation in violations:
            action: Action = getattr(self.run.cfg.gates, violation.gate)
            if action is Action.ignore:
                continue
            place = str(violation.where.relative_to(self.run.folder))
            self.violations.append(vars(violation) | {"where": place, "action": action.value})
            self.run.say(f"  ! gates.{violation.gate}: {violation.text}. See {place}")
            if action is Action.stop:
                reasons_to_stop.append(_stopped(violation))
        if reasons_to_stop:
            for evaluation in self.evaluations:
                self.run.verify(*measured(evaluation))
            # None yet where the judge, which comes first, is what stops it.
            rows = rows_of(self.evaluations) if self.evaluations else []
            best_iteration = rows[best(rows)].iteration if rows else None
            write_summary(self.run.folder, rows, best_iteration, self.violations)
            raise UserError("\n".join(reasons_to_stop))


def _stopped(violation: Violation) -> str:
    """Why the run stopped, where to look, and every way out."""
    gate = violation.gate
    move = ""
    if violation.limit is not None:
        move = f" or move gates.{violation.limit}, now {violation.threshold:g}, past {violation.value:.4g};"
    return (
        f"gates.{gate}=stop stopped the run in iteration {violation.iteration}: {violation.text}.\n"
        f"  look at: {violation.where}\n"
        f"  ways out: change a setting named above, and the same command says what has to be redone;{move}\n"
        f"  or go on all the same with gates.{gate}=warn: all that is finished is kept."
    )
