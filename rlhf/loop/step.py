"""What each stage is told: its config section with what it needs of others, and where its folder lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.config.choices import JudgeKind
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.models.folder import require_trust, saved_dtype
from rlhf.run import sources
from rlhf.run.plan import UNKNOWN, Artifact, Run, plain

_ELSEWHERE = {
    "prompts": ("path", "held_out_path", "num_per_iteration"),
    "generate": ("policy",),
    "pair": ("data",),
    "sft": ("data",),
    "reward_model": ("path", "revision", "url", "rule", "data", "on_policy", "kind", "weight", "others"),
    "score": ("opponents",),
}
"""Keys of a section that reach its stage as inputs, by content, or that only the loop reads."""


def settings(cfg: Config, stage: str) -> dict[str, Any]:
    """The config section a stage is called with."""
    section = plain(getattr(cfg, stage, {}))
    for key in _ELSEWHERE.get(stage, ()):
        del section[key]
    if stage in ("generate", "reference", "dpo", "sft", "preferences"):
        section |= {"dtype": cfg.model.dtype.value, "trust_remote_code": cfg.model.trust_remote_code}
    if stage == "score":
        judge = cfg.reward_model
        section |= {"dtype": judge.dtype.value, "trust_remote_code": judge.trust_remote_code, "rule": None, "url": None}
    if stage == "reference":
        section |= {"max_length": cfg.dpo.max_length}
    return section


@dataclass(frozen=True)
class Step:
    """A folder of stages that belong together: an iteration, or an evaluation within it.

    `dtype` is what the policy runs in, settled once from π0's files: the iterates themselves are stored in fp32.
    """

    run: Run
    folder: str
    iteration: int
    dtype: str = UNKNOWN

    def stage(
        self, stage: str, *, name: str = "", config: dict[str, Any] | None = None, **inputs: Artifact | None
    ) -> Artifact:
        """The artifact of one stage in this folder; `config` says what differs from its section, None is no input."""
        section = settings(self.run.cfg, stage)
        if stage in ("generate", "reference", "dpo"):
            section["dtype"] = self.dtype
        given = {key: artifact for key, artifact in inputs.items() if artifact is not None}
        return self.run.stage(stage, f"{self.folder}/{name or stage}", section | (config or {}), given)

    def inside(self, folder: str) -> Step:
        """A step in a folder of this one."""
        return Step(self.run, f"{self.folder}/{folder}", self.iteration, self.dtype)


def policy_dtype(cfg: Config, initial: Artifact) -> str:
    """The dtype in which every iterate is sampled, scored and trained."""
    if initial.digest is None:
        return UNKNOWN if cfg.model.dtype.value == "auto" else cfg.model.dtype.value
    return saved_dtype(initial.path, cfg.model.dtype.value)


def initial_policy(cfg: Config, run: Run) -> Artifact:
    """π0: the model as given, or fine-tuned on `sft.data`."""
    if cfg.world.enabled:
        run.stage("world", "world", settings(cfg, "world"), {})
    model = sources.model(run, cfg.model.path, cfg.model.revision, "model.path")
    if cfg.sft.data is None:
        return model
    data = sources.data_file(run, cfg.sft.data, "sft.data")
    return run.stage("sft", "sft", settings(cfg, "sft"), {"model": model, "data": data}).part("model")


def models_of(cfg: Config) -> dict[str, tuple[str, str | None]]:
    """Path and revision of the models that a run is given, by config key: policy, judges, judges that only evaluate."""
    found = {"model.path": (cfg.model.path, cfg.model.revision)}
    if cfg.reward_model.rule is None:
        found["reward_model.path"] = (cfg.reward_model.path, cfg.reward_model.revision)
    for name, other in cfg.reward_model.others.items():
        if other.path is not None:
            found[f"reward_model.others.{name}.path"] = (other.path, other.revision)
    for name, path in cfg.evaluate.judges.items():
        repo, _, revision = (path, "", "") if path.startswith("@") else path.partition("@")
        found[f"evaluate.judges.{name}"] = (repo, revision or None)
    return found


def ready_judge(run: Run) -> Artifact | None:
    """The reward model as given; None where a rule judges."""
    chosen = run.cfg.reward_model
    if chosen.rule is not None:
        return None
    model = sources.model(run, chosen.path, chosen.revision, "reward_model.path")
    if chosen.kind is JudgeKind.scalar:
        require_trust(model.path, chosen.trust_remote_code)
    return model


def judge_settings(cfg: Config) -> dict[str, Any]:
    """What makes a `score` stage ask the training judge: a rule, comparisons, or where the reward model is served."""
    chosen = cfg.reward_model
    if chosen.rule is not None:
        return rule_settings(chosen.rule, "reward_model.rule")
    if chosen.kind is JudgeKind.pairwise:
        return {"kind": chosen.kind.value, "opponents": cfg.score.opponents}
    return {"url": chosen.url}


def scores_of(run: Run, candidates: Artifact) -> Artifact:
    """The `score` stage of a tool that works on files."""
    judge = ready_judge(run)
    inputs = {"candidates": candidates} | ({"judge": judge} if judge else {})
    return run.stage("score", "score", settings(run.cfg, "score") | judge_settings(run.cfg), inputs)


Asked = tuple[dict[str, Any], Artifact | None]
"""What the `score` stage of a judge is told beside its section, and the reward model (None: a rule)."""


def _asked(run: Run, path: str, revision: str | None, trusted: bool, key: str) -> Asked:
    model = sources.model(run, path, revision, key)
    require_trust(model.path, trusted)
    return {"dtype": "auto", "trust_remote_code": trusted}, model


def judges(cfg: Config, run: Run, initial: Artifact) -> dict[str, Asked]:
    """The judges whose scores count, by name: the training judge, then those that are summed with it."""
    found: dict[str, Asked] = {MAIN_JUDGE: (judge_settings(cfg), judge(cfg, run, initial))}
    for name, other in cfg.reward_model.others.items():
        key = f"reward_model.others.{name}"
        if other.path is not None:
            found[name] = _asked(run, other.path, other.revision, other.trust_remote_code, f"{key}.path")
        else:
            found[name] = rule_settings(str(other.rule), f"{key}.rule"), None
    return found


def scored(
    step: Step,
    judges: dict[str, Asked],
    candidates: Artifact,
    initial: dict[str, Artifact],
    known: dict[str, dict[str, Artifact]] | None = None,
    **against: Artifact,
) -> tuple[Artifact, dict[str, Artifact]]:
    """The scores that count, and where several judges make them, those of each.

    `initial` holds each judge's scores of π0's held-out responses, which fix its scale; empty where these are they.
    `known` holds, by judge, the inputs of its stage that say what it has scored before.
    """
    apart = {}
    for name, (config, model) in judges.items():
        place = "score" if name == MAIN_JUDGE else f"score_{name}"
        before = (known or {}).get(name, {})
        apart[name] = step.stage(
            "score", name=place, config=config, candidates=candidates, judge=model, **before, **against
        )
    if len(apart) == 1:
        return apart[MAIN_JUDGE], {}
    chosen = step.run.cfg.reward_model
    weights = {MAIN_JUDGE: chosen.weight} | {name: other.weight for name, other in chosen.others.items()}
    inputs: dict[str, Any] = {f"scores.{name}": scores for name, scores in apart.items()}
    inputs |= {f"initial.{name}": (initial or apart)[name] for name in apart}
    return step.stage("mix", config={"weights": weights}, **inputs), apart


def judge(cfg: Config, run: Run, initial: Artifact) -> Artifact | None:
    """The training judge: ready, or trained on `reward_model.data` and on labelled samples of π0; None is a rule."""
    chosen, model = cfg.reward_model, ready_judge(run)
    if model is None or chosen.data is None:
        return model
    inputs = {"model": model, "data": sources.data_file(run, chosen.data, "reward_model.data")}
    if chosen.on_policy.prompts is not None:
        inputs["on_policy"] = _on_policy_pairs(cfg, run, initial)
    config = settings(cfg, "reward_model")
    if chosen.kind is JudgeKind.pairwise:
        config["kind"] = chosen.kind.value
    return run.stage("reward_model", "reward_model", config, inputs).part("model")


def evaluation_judges(cfg: Config, run: Run) -> dict[str, Asked]:
    """The judges that only evaluate, by name."""
    given = models_of(cfg)
    keys = {name: f"evaluate.judges.{name}" for name in cfg.evaluate.judges}
    return {name: _asked(run, *given[key], False, key) for name, key in keys.items()}


def _on_policy_pairs(cfg: Config, run: Run, initial: Artifact) -> Artifact:
    """Pairs of π0's own samples, labelled by a program."""
    on_policy = cfg.reward_model.on_policy
    assert on_policy.prompts is not None and on_policy.rule is not None, "checked with the config"
    step = Step(run, "judge", 0, policy_dtype(cfg, initial))
    given = sources.data_file(run, on_policy.prompts, "reward_model.on_policy.prompts")
    prompts = step.stage("prompts", config={"num_held_out": 0}, prompts=given)
    sampling = {"n": on_policy.n, "temperatures": [1.0], "iteration": 0, "slice": None}
    candidates = step.stage("generate", config=sampling, policy=initial, prompts=prompts.part("train.parquet"))
    labels = step.stage(
        "score", config=rule_settings(on_policy.rule, "reward_model.on_policy.rule"), candidates=candidates
    )
    pairing = {
        "strategy": "best_worst",
        "max_pairs_per_prompt": on_policy.max_pairs_per_prompt,
        "truncated": "allow",
        "length_penalty": 0.0,
        "min_margin": 0.0,
        "num_candidates": None,
    }
    return step.stage("pair", config=pairing, candidates=candidates, scores=labels)


def rule_settings(rule: str, key: str) -> dict[str, Any]:
    """What makes a `score` stage use a Python function; its source is part of the fingerprint."""
    return {
        "rule": rule,
        "rule_source": sources.function_source(rule, key),
        "engine": "transformers",  # like the dtype, no concern of a rule
        "tensor_parallel_size": 1,
        "dtype": "auto",
        "trust_remote_code": False,
    }
