"""The policy and the judges that a run begins with, and the scores they give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf.config.choices import Engine, JudgeKind, SpecialTokens, Strategy, Truncated
from rlhf.config.fields import filled
from rlhf.config.schema import Config
from rlhf.config.stage_configs import (
    ComparisonStage,
    GenerativeStage,
    MixStage,
    PairSettings,
    PreferenceModelStage,
    RuleStage,
    ScoreStage,
)
from rlhf.config.training import MAIN_JUDGE, POLICY
from rlhf.data.files import resolved
from rlhf.data.judge_files import judge_file, load_judge_file
from rlhf.errors import ConfigError
from rlhf.loop.shard_sizes import judge_shard_size
from rlhf.loop.step import Step, policy_dtype, stage_config
from rlhf.models.folder import require_trust
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.job import JUDGE_INPUT
from rlhf.run.plan import Run


@dataclass(frozen=True)
class Judge:
    """What the `score` stage of a judge is told, and the reward model it loads; a rule has none."""

    config: ScoreStage
    model: Artifact | None


def initial_policy(cfg: Config, run: Run) -> Artifact:
    """π0: the model as given, or fine-tuned on `sft.data`."""
    if cfg.world.enabled:
        run.stage("world", "world", cfg.world, {})
    model = sources.model(run, cfg.model.path, cfg.model.revision, "model.path")
    if cfg.sft.data is None:
        return model
    data = sources.data_file(run, cfg.sft.data, "sft.data")
    trained = run.stage("sft", "sft", stage_config(cfg, "sft"), {"model": model, "data": data})
    return trained.part("model")


def models_of(cfg: Config) -> dict[str, tuple[str, str | None]]:
    """Path and revision of the models that a run is given, by config key: the policy, and every judge.

    Example:
        {"model.path": ("meta-llama/Meta-Llama-3-8B-Instruct", None), "evaluate.judges.other": ("owner/name",
        "v2")}
    """
    models = {"model.path": (cfg.model.path, cfg.model.revision)}
    section = cfg.reward_model
    # A server has the model; what it is called there is no path.
    is_asked = section.kind is JudgeKind.generative and section.url is not None
    if section.rule is None and not is_asked:
        models["reward_model.path"] = (cfg.reward_model.path, cfg.reward_model.revision)
    for name, other in cfg.reward_model.others.items():
        if other.path is not None:
            models[f"reward_model.others.{name}.path"] = (other.path, other.revision)
    for name, path in cfg.evaluate.judges.items():
        key = f"evaluate.judges.{name}"
        if not is_rule(path, key):
            models[key] = _path_and_revision(path, key)
    return models


def is_rule(path: str, key: str) -> bool:
    """Whether a judge of `evaluate.judges` is a Python function, `module:function`, and no model.

    No Hub id has a colon, but a folder may be called so: one that is there is meant.
    """
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", path) is not None and not resolved(path, key).exists()


def rules_of(cfg: Config) -> dict[str, str]:
    """The Python functions that a run is given, `module:function` by config key."""
    section = cfg.reward_model
    named = {
        "reward_model.rule": section.rule,
        "reward_model.on_policy.rule": section.on_policy.rule,
        "evaluate.gold": cfg.evaluate.gold,
    }
    for name, other in section.others.items():
        named[f"reward_model.others.{name}.rule"] = other.rule
    for name, path in cfg.evaluate.judges.items():
        key = f"evaluate.judges.{name}"
        if is_rule(path, key):
            named[key] = path
    return {key: rule for key, rule in named.items() if rule is not None}


def _path_and_revision(path: str, key: str) -> tuple[str, str | None]:
    """The two parts of `owner/name@revision`.

    An @ in front names something this run makes, and in the name of a folder it is a letter like
    any other.
    """
    if path.startswith(("@", "/", ".", "~")) or resolved(path, key).exists():
        return path, None
    repo, _, revision = path.partition("@")
    return repo, revision or None


def ready_judge(run: Run) -> Artifact | None:
    """The reward model as given; None where a rule judges."""
    section = run.cfg.reward_model
    if section.rule is not None or "reward_model.path" not in models_of(run.cfg):
        return None
    model = sources.model(run, section.path, section.revision, "reward_model.path")
    if section.kind is JudgeKind.scalar:
        require_trust(model.path, section.trust_remote_code)
    return model


def training_judge_config(cfg: Config) -> ScoreStage:
    """What makes a `score` stage ask the training judge: a rule, comparisons, or where the reward model is
    served.
    """
    section = cfg.reward_model
    if section.rule is not None:
        return rule_config(cfg, section.rule, "reward_model.rule")
    if section.kind is JudgeKind.generative:
        return _generative_config(cfg)
    config: ScoreStage = stage_config(cfg, "score", url=section.url)
    if section.kind is JudgeKind.pairwise:
        # It runs in transformers alone, so `auto` leaves no choice.
        return filled(
            ComparisonStage,
            config,
            engine=Engine.transformers,
            url=None,
            kind=section.kind,
            opponents=cfg.score.opponents,
        )
    return config


def _generative_config(cfg: Config) -> GenerativeStage:
    """What makes a `score` stage ask a language model in words.

    Raises:
        ConfigError: the file that says what it is asked is wrong, or does not go with other settings.
    """
    section = cfg.reward_model
    told = section.generative
    content = load_judge_file(told.template)
    compares = judge_file(content).compares
    if compares and section.others:
        raise ConfigError(
            "reward_model.others: do not go with "
            f"reward_model.generative.template={told.template}, whose scores "
            "depend on the other responses. Take a template that scores one response, or let the others "
            "evaluate only, as evaluate.judges."
        )
    if cfg.score.opponents is not None and not compares:
        raise ConfigError(
            f"score.opponents={cfg.score.opponents}: "
            f"reward_model.generative.template={told.template} scores one "
            "response at a time, and compares none. Leave it out."
        )
    config: ScoreStage = stage_config(cfg, "score", engine=Engine.vllm)
    if section.url is not None:
        # Of no concern to a server: fixed, so that changing them leaves what it has answered alone.
        config = stage_config(
            cfg,
            "score",
            engine=Engine.vllm,
            dtype="auto",
            trust_remote_code=False,
            special_tokens=SpecialTokens.text,
            max_tokens=ScoreStage.max_tokens,
        )
    return filled(
        GenerativeStage,
        config,
        kind=section.kind,
        url=section.url,
        judge_file=content,
        opponents=cfg.score.opponents,
        served_model=told.model,
        api=told.api,
        temperature=told.temperature,
        max_new_tokens=told.max_new_tokens,
        body=told.body,
        api_key_variable=told.api_key_variable,
        prompt_price=told.prompt_price,
        answer_price=told.answer_price,
    )


def compares_responses(config: ScoreStage) -> bool:
    """Whether a judge gives no response a score of its own, but holds two against each other."""
    if isinstance(config, GenerativeStage):
        return judge_file(config.judge_file).compares
    return isinstance(config, ComparisonStage)


def judged_by(cfg: Config, judges: Mapping[str, Judge], policy: Artifact) -> dict[str, Judge]:
    """The judges of an iteration that begins with a policy: where the policy itself "
    "judges, it is that one.
    """
    if cfg.reward_model.path != POLICY:
        return dict(judges)
    return {**judges, MAIN_JUDGE: replace(judges[MAIN_JUDGE], model=policy)}


def rule_config(cfg: Config, rule: str, key: str) -> RuleStage:
    """What makes a `score` stage use a Python function; its source is part of the fingerprint."""
    config: ScoreStage = stage_config(cfg, "score")
    return filled(
        RuleStage,
        config,
        rule=rule,
        rule_source=sources.function_source(rule, key),
        # Of no concern to a rule: fixed, so that changing them for a model leaves the rule's artifacts alone.
        engine=Engine.transformers,
        tensor_parallel_size=1,
        dtype="auto",
        trust_remote_code=False,
        special_tokens=SpecialTokens.text,
    )


def scores_of(run: Run, candidates: Artifact) -> Artifact:
    """The `score` stage of a tool that works on files."""
    inputs = {"candidates": candidates}
    judge = ready_judge(run)
    if judge is not None:
        inputs["judge"] = judge
    return run.stage("score", "score", training_judge_config(run.cfg), inputs)


def judges_of(cfg: Config, run: Run, initial: Artifact) -> dict[str, Judge]:
    """The judges whose scores count, by name: the training judge, then those that are summed with it."""
    counted = {MAIN_JUDGE: _main_judge(cfg, run, initial)}
    for name, other in cfg.reward_model.others.items():
        key = f"reward_model.others.{name}"
        if other.path is None:
            counted[name] = Judge(rule_config(cfg, str(other.rule), f"{key}.rule"), None)
        else:
            counted[name] = _model_judge(
                run, other.path, other.revision, other.trust_remote_code, f"{key}.path"
            )
    return counted


def _main_judge(cfg: Config, run: Run, initial: Artifact) -> Judge:
    config = training_judge_config(cfg)
    if cfg.reward_model.path != POLICY:
        return Judge(config, training_judge(cfg, run, initial))
    # π0, until an iteration has made another policy; as it is sampled, whatever its weights are kept in.
    trusted = cfg.model.trust_remote_code
    return Judge(replace(config, dtype=policy_dtype(cfg, initial), trust_remote_code=trusted), initial)


def evaluation_judges(cfg: Config, run: Run) -> dict[str, Judge]:
    """The judges that only evaluate, by name."""
    models = models_of(cfg)
    others = {}
    for name, path in cfg.evaluate.judges.items():
        key = f"evaluate.judges.{name}"
        if key not in models:
            others[name] = Judge(rule_config(cfg, path, key), None)
            continue
        path, revision = models[key]
        others[name] = _model_judge(run, path, revision, False, key)
    return others


def _model_judge(run: Run, path: str, revision: str | None, trusted: bool, key: str) -> Judge:
    model = sources.model(run, path, revision, key)
    require_trust(model.path, trusted)
    return Judge(stage_config(run.cfg, "score", dtype="auto", trust_remote_code=trusted), model)


def reading(judges: Mapping[str, Judge]) -> dict[str, Artifact]:
    """The inputs of a `generate` stage that say which judges will read its responses.

    Not the pairwise and generative ones: they read a prompt as part of one user turn, whatever its own turns
    are.
    """
    inputs = {}
    for name, judge in judges.items():
        if judge.model is not None and not isinstance(judge.config, ComparisonStage | GenerativeStage):
            inputs[JUDGE_INPUT + name] = judge.model
    return inputs


def trusted(judges: Mapping[str, Judge]) -> list[str]:
    """The names of those of `reading` whose Python code may run."""
    inputs = reading(judges)
    names = []
    for name, judge in judges.items():
        if JUDGE_INPUT + name in inputs and judge.config.trust_remote_code:
            names.append(name)
    return names


def scored(
    step: Step,
    judges: dict[str, Judge],
    candidates: Artifact,
    initial_scores: dict[str, Artifact],
    known: dict[str, dict[str, Artifact]] | None = None,
    against: Artifact | None = None,
) -> tuple[Artifact, dict[str, Artifact]]:
    """The scores that count, and where several judges make them, those of each.

    Args:
        step: where the stages lie.
        judges: by name; the scores of several are summed.
        candidates: the responses.
        initial_scores: each judge's scores of π0's held-out responses, which fix its scale; empty where these
        are they.
        known: by judge, the inputs of its stage that say what it has scored before.
        against: another policy's responses, with which a pairwise judge compares these.
    """
    scores_of_judge = {}
    for name, judge in judges.items():
        folder = "score" if name == MAIN_JUDGE else f"score_{name}"
        earlier = known.get(name, {}) if known else {}
        scores_of_judge[name] = step.stage(
            "score",
            name=folder,
            config=judge.config,
            candidates=candidates,
            judge=judge.model,
            **earlier,
            against=against,
        )
    if len(scores_of_judge) == 1:
        return scores_of_judge[MAIN_JUDGE], {}
    section = step.run.cfg.reward_model
    weights = {MAIN_JUDGE: section.weight}
    for name, other in section.others.items():
        weights[name] = other.weight
    scale_of_judge = initial_scores or scores_of_judge
    inputs: dict[str, Any] = {}
    for name, scores in scores_of_judge.items():
        inputs[f"scores.{name}"] = scores
        inputs[f"initial.{name}"] = scale_of_judge[name]
    return step.stage("mix", config=MixStage(weights), **inputs), scores_of_judge


def training_judge(cfg: Config, run: Run, initial: Artifact) -> Artifact | None:
    """The training judge: ready, or trained on `reward_model.data` and on labelled samples of π0; None is a
    rule.
    """
    section = cfg.reward_model
    model = ready_judge(run)
    if model is None or section.data is None:
        return model
    inputs = {"model": model, "data": sources.data_file(run, section.data, "reward_model.data")}
    if section.on_policy.prompts is not None:
        inputs["on_policy"] = _on_policy_pairs(cfg, run, initial)
    config = stage_config(cfg, "reward_model")
    if section.kind is JudgeKind.pairwise:
        config = filled(PreferenceModelStage, config)
    return run.stage("reward_model", "reward_model", config, inputs).part("model")


def _on_policy_pairs(cfg: Config, run: Run, initial: Artifact) -> Artifact:
    """Pairs of π0's own samples, labelled by a program."""
    on_policy = cfg.reward_model.on_policy
    assert on_policy.prompts is not None and on_policy.rule is not None, "checked with the config"
    step = Step(run, "judge", 0, policy_dtype(cfg, initial))
    file = sources.data_file(run, on_policy.prompts, "reward_model.on_policy.prompts")
    prompts = step.stage("prompts", config=step.config("prompts", num_held_out=0), prompts=file)
    shard_size = judge_shard_size(cfg, run, prompts)
    sampling = step.config("generate", n=on_policy.n, temperatures=[1.0], shard_size=shard_size)
    train = prompts.part("train.parquet")
    candidates = step.stage("generate", config=sampling, policy=initial, prompts=train)
    rule = rule_config(cfg, on_policy.rule, "reward_model.on_policy.rule")
    labels = step.stage("score", config=rule, candidates=candidates)
    # Not the section `pair`: what the policy trains on is no reason to make another judge.
    pairing = PairSettings(
        strategy=Strategy.best_worst,
        max_pairs_per_prompt=on_policy.max_pairs_per_prompt,
        truncated=Truncated.allow,
    )
    return step.stage("pair", config=pairing, candidates=candidates, scores=labels)
