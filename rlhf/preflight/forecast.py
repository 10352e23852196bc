"""A run on paper: every stage that the loop will ask for, in its order, with what it costs.

The names are those of the run's folders; a test holds them against the loop's own plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from rlhf.config.choices import JudgeKind, Method
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.data.files import resolved
from rlhf.loop.judges import is_rule
from rlhf.loop.pair_pool import GIVEN, PREVIOUS, anchors_of
from rlhf.loop.prompt_sets import has_set_per_iteration, prompt_paths, samples_to_train
from rlhf.loop.shard_sizes import SMALLEST_SHARD
from rlhf.preflight.costs import Texts
from rlhf.preflight.devices import Machine
from rlhf.preflight.lengths import Lengths, lengths_of
from rlhf.preflight.stage_costs import StageCosts, StageForecast
from rlhf.run import hub
from rlhf.run.commit import MANIFEST

_JUDGE_PAIRS = 0.5
"""Share of the pairs a prompt could give that a judge's on-policy samples do give, an assumption."""


@dataclass
class Forecast:
    """All stages of a run on a machine, and what the figures rest on."""

    machine: Machine
    lengths: Lengths
    stages: list[StageForecast] = field(default_factory=list)
    until: str | None = None
    """The stage that it ends with, where it is not the whole run."""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.time.planned for stage in self.stages)


def forecast_of(
    cfg: Config,
    machine: Machine,
    folder: Path | None = None,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
) -> Forecast:
    """What a run costs, without a model or the network.

    Args:
        cfg: a checked config.
        machine: what it runs on.
        folder: the run folder whose finished samples say how long prompts and responses are; None assumes.
        prompt_tokens: mean of a prompt; None measures or assumes.
        response_tokens: mean of a response, likewise.

    Raises:
        ConfigError: how large a model is cannot be told, or an engine wants more GPUs than there are.
    """
    lengths = lengths_of(cfg, folder, prompt_tokens, response_tokens)
    stages = list(_stages(cfg, lengths, StageCosts(cfg, machine, lengths)))
    return Forecast(machine, lengths, stages)


def up_to(forecast: Forecast, last: str | None) -> Forecast:
    """The same of the stages up to one of them; None is the very end."""
    names = [stage.name for stage in forecast.stages]
    if last is None:
        return forecast
    return replace(forecast, stages=forecast.stages[: names.index(last) + 1], until=last)


def with_spent(forecast: Forecast, spent: Mapping[str, float]) -> Forecast:
    """The same with seconds that were spent in the place of planned ones.

    Those of a stage that is finished are its own; those of one that is not are the mean of the same stage's
    in other iterations, where one is finished.

    Args:
        forecast: a plan.
        spent: seconds by name of stage.
    """
    seconds_of: dict[str, list[float]] = {}
    for stage in forecast.stages:
        if stage.name in spent:
            seconds_of.setdefault(stage.label, []).append(spent[stage.name])
    stages = []
    for stage in forecast.stages:
        if stage.name in spent:
            stage = replace(stage, time=replace(stage.time, planned=spent[stage.name]), spent=True)
        elif stage.label in seconds_of:
            stage = replace(stage, time=replace(stage.time, planned=fmean(seconds_of[stage.label])))
        stages.append(stage)
    measured = list(forecast.lengths.measured)
    if seconds_of:
        measured.append("time of finished stages; in iterations to come the same stages have their mean")
    return replace(forecast, stages=stages, lengths=replace(forecast.lengths, measured=measured))


def spent_in(folder: Path) -> dict[str, float]:
    """Seconds of the finished stages of a run folder, by name; of a damaged record none."""
    spent = {}
    for manifest in sorted(folder.glob(f"**/{MANIFEST}")):
        try:
            seconds = json.loads(manifest.read_bytes())["seconds"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(seconds, int | float):
            spent[manifest.parent.relative_to(folder).as_posix()] = float(seconds)
    return spent


def _stages(cfg: Config, lengths: Lengths, costs: StageCosts) -> Iterator[StageForecast]:
    """As `rlhf.iterate` asks for them."""
    if cfg.world.enabled:
        yield costs.world("world")
    if cfg.sft.data is not None:
        yield from _dataset(cfg, lengths, costs, "sft.data", cfg.sft.data)
        yield costs.sft("sft")
    if cfg.reward_model.data is not None and cfg.reward_model.rule is None:
        yield from _trained_judge(cfg, lengths, costs)
    yield from _prompts(cfg, lengths, costs)
    yield from _evaluation(cfg, lengths, costs, 0)
    yield from _replayed(cfg, lengths, costs)
    for t in range(1, cfg.num_iterations + 1):
        yield from _iteration(cfg, lengths, costs, t)
    yield costs.export(f"iteration_{cfg.num_iterations:03d}/export")


def _dataset(
    cfg: Config, lengths: Lengths, costs: StageCosts, key: str, path: str, name: str = ""
) -> Iterator[StageForecast]:
    """The stage that fetches a data set of the Hub; none where the data is a file or made here."""
    if path.startswith("@") or hub.parse_dataset(path) is None or resolved(path, key).exists():
        return
    rows = lengths.rows.get(key, cfg.prompts.num_per_iteration)
    yield costs.single(f"data/{name or key}", rows, "without the download")


def _trained_judge(cfg: Config, lengths: Lengths, costs: StageCosts) -> Iterator[StageForecast]:
    section = cfg.reward_model
    assert section.data is not None, "only such a judge is trained"
    yield from _dataset(cfg, lengths, costs, "reward_model.data", section.data)
    num_pairs = lengths.rows["reward_model.data"]
    on_policy = section.on_policy
    if on_policy.prompts is not None:
        key = "reward_model.on_policy.prompts"
        yield from _dataset(cfg, lengths, costs, key, on_policy.prompts)
        num_prompts = lengths.rows[key]
        yield costs.single("judge/prompts", num_prompts)
        yield costs.generate("judge/generate", num_prompts, on_policy.n, cfg.generate.shard_size)
        yield costs.by_rule("judge/score", num_prompts * on_policy.n)
        yield costs.pair("judge/pair", num_prompts, on_policy.n)
        num_pairs += _JUDGE_PAIRS * num_prompts * min(on_policy.max_pairs_per_prompt, on_policy.n // 2)
    yield costs.reward_model("reward_model", num_pairs)


def _prompts(cfg: Config, lengths: Lengths, costs: StageCosts) -> Iterator[StageForecast]:
    per_iteration = has_set_per_iteration(cfg)
    num_sets = cfg.num_iterations if per_iteration else 1
    num_rows = cfg.prompts.num_per_iteration * (1 if per_iteration else cfg.num_iterations)
    for t in range(1, num_sets + 1):
        for number, path in enumerate(prompt_paths(cfg, t), start=1):
            name = "prompts.path" if number == 1 else f"prompts.path.file{number}"
            name = f"{name}.{t}" if per_iteration else name
            yield from _dataset(cfg, lengths, costs, "prompts.path", path, name)
        if t == 1 and cfg.prompts.held_out_path is not None:
            yield from _dataset(cfg, lengths, costs, "prompts.held_out_path", cfg.prompts.held_out_path)
        yield costs.single("prompts" if t == 1 else f"iteration_{t:03d}/prompts", num_rows)


def _iteration(cfg: Config, lengths: Lengths, costs: StageCosts, t: int) -> Iterator[StageForecast]:
    step = f"iteration_{t:03d}"
    if samples_to_train(cfg):
        num_prompts = cfg.prompts.num_per_iteration
        yield costs.generate(f"{step}/generate", num_prompts, cfg.generate.n, cfg.generate.shard_size)
        yield from _scores(cfg, costs, step, costs.texts(num_prompts, cfg.generate.n))
        if cfg.method is Method.raft:
            yield costs.raft(f"{step}/raft", costs.texts(num_prompts, 1))
            yield from _evaluation(cfg, lengths, costs, t)
            return
        yield costs.pair(f"{step}/pair", num_prompts, cfg.generate.n)
        num_pairs: float = num_prompts * min(cfg.pair.max_pairs_per_prompt, cfg.generate.n // 2)
    else:
        assert cfg.pair.data is not None, "else there are samples"
        yield from _dataset(cfg, lengths, costs, "pair.data", cfg.pair.data)
        num_pairs = lengths.rows["pair.data"]
        yield costs.single(f"{step}/preferences", num_pairs)
    yield from _trained_on_pairs(cfg, lengths, costs, t, num_pairs)
    yield from _evaluation(cfg, lengths, costs, t)


def _replayed(cfg: Config, lengths: Lengths, costs: StageCosts) -> Iterator[StageForecast]:
    """Given pairs that every iteration trains on besides its own, and their log-probabilities under π0."""
    if cfg.replay.data is None:
        return
    yield from _dataset(cfg, lengths, costs, "replay.data", cfg.replay.data)
    num_pairs = lengths.rows["replay.data"]
    yield costs.single("replay/preferences", num_pairs)
    if any(is_initial for _, is_initial in anchors_of(cfg.dpo.loss, cfg.dpo.reference)):
        yield costs.reference("replay/reference", costs.texts(num_pairs, 2))


def _trained_on_pairs(
    cfg: Config, lengths: Lengths, costs: StageCosts, t: int, num_pairs: float
) -> Iterator[StageForecast]:
    """As `rlhf.loop.pair_pool` asks for them: log-probabilities where they are not known yet, then DPO."""
    step = f"iteration_{t:03d}"
    others: dict[str, float] = {}
    if cfg.replay.data is not None:
        others[GIVEN] = lengths.rows["replay.data"]
    for earlier in range(max(1, t - cfg.replay.iterations), t):
        # As many as now: how many prompts give a pair, nobody knows.
        others[f"iteration_{earlier:03d}"] = num_pairs
    for name, is_initial in anchors_of(cfg.dpo.loss, cfg.dpo.reference):
        if t == 1 and name == PREVIOUS:
            continue  # π0 again
        yield costs.reference(f"{step}/{name}", costs.texts(num_pairs, 2))
        for origin, number in others.items():
            if not is_initial:
                yield costs.reference(f"{step}/{name}_of_{origin}", costs.texts(number, 2))
    yield costs.dpo(f"{step}/dpo", costs.texts(num_pairs + sum(others.values()), 2))


def _evaluation(cfg: Config, lengths: Lengths, costs: StageCosts, t: int) -> Iterator[StageForecast]:
    step = f"iteration_{t:03d}/held_out"
    section = cfg.evaluate
    texts = costs.texts(lengths.num_held_out, section.n)
    # Cut so that every engine has a shard, if it can be.
    yield costs.generate(f"{step}/generate", lengths.num_held_out, section.n, SMALLEST_SHARD)
    yield from _scores(cfg, costs, step, texts, against_initial=t > 0)
    if section.gold is not None:
        yield costs.by_rule(f"{step}/gold", texts.prompts * texts.responses)
    if section.greedy:
        num_prompts = min(section.greedy, lengths.num_held_out)
        yield costs.generate(f"{step}/greedy", num_prompts, 1, SMALLEST_SHARD)
    for name, path in section.judges.items():
        key = f"evaluate.judges.{name}"
        if is_rule(path, key):
            yield costs.by_rule(f"{step}/score_{name}", texts.prompts * texts.responses)
        else:
            yield costs.score(f"{step}/score_{name}", key, texts)
    if t > 0:
        yield costs.reference(f"{step}/reference", texts)


def _scores(
    cfg: Config, costs: StageCosts, step: str, texts: Texts, against_initial: bool = False
) -> Iterator[StageForecast]:
    """Of every judge that counts, and their sum where there are several."""
    section = cfg.reward_model
    num_responses = texts.prompts * texts.responses
    rules: dict[str, str | None] = {MAIN_JUDGE: section.rule}
    rules |= {name: other.rule for name, other in section.others.items()}
    for name, rule in rules.items():
        stage, key = f"{step}/score_{name}", f"reward_model.others.{name}.path"
        if name == MAIN_JUDGE:
            stage, key = f"{step}/score", "reward_model.path"
        is_main = name == MAIN_JUDGE
        if rule is not None:
            yield costs.by_rule(stage, num_responses)
        elif is_main and section.url is not None:
            yield costs.by_rule(stage, num_responses, "without the server's time")
        elif is_main and section.kind is JudgeKind.generative:
            yield costs.by_rule(stage, num_responses, "without the time of what the judge writes")
        elif is_main and section.kind is JudgeKind.pairwise:
            yield costs.score(stage, key, _comparisons(cfg, texts, against_initial), in_pairs=True)
        else:
            yield costs.score(stage, key, texts)
    if len(rules) > 1:
        yield costs.single(f"{step}/mix", texts.prompts)


def _comparisons(cfg: Config, texts: Texts, against_initial: bool) -> Texts:
    """What a pairwise judge reads: a prompt and two responses to it, in either order.

    n responses make n·(n − 1) calls, n times `score.opponents` where that is less, and 2·n² against another
    policy's.
    """
    n = texts.responses
    calls = n * min(n - 1, cfg.score.opponents or n - 1)
    if against_initial:
        calls = 2 * n * n
    return Texts(texts.prompts * calls, 1, 0, texts.prompt_tokens + 2 * texts.response_tokens)
