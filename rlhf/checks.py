"""What can be said of a config before anything else is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from rlhf.choices import Engine, JudgeKind, Loss, Strategy
from rlhf.config import Config
from rlhf.errors import ConfigError

_POSITIVE = [
    "num_iterations",
    "prompts.num_per_iteration",
    "prompts.num_held_out",
    "generate.n",
    "generate.max_new_tokens",
    "generate.max_prompt_tokens",
    "generate.shard_size",
    "generate.tensor_parallel_size",
    "score.max_tokens",
    "score.batch_tokens",
    "score.tensor_parallel_size",
    "score.concurrency",
    "score.timeout_seconds",
    "pair.max_pairs_per_prompt",
    "reference.batch_tokens",
    "dpo.beta",
    "dpo.num_epochs",
    "dpo.batch_size",
    "dpo.max_length",
    "dpo.batch_tokens",
    "dpo.save_steps",
    "dpo.learning_rate",
    "dpo.lora.alpha",
    "sft.learning_rate",
    "sft.num_epochs",
    "sft.batch_size",
    "sft.micro_batch_size",
    "sft.max_length",
    "sft.save_steps",
    "reward_model.learning_rate",
    "reward_model.num_epochs",
    "reward_model.batch_size",
    "reward_model.micro_batch_size",
    "reward_model.max_length",
    "reward_model.save_steps",
    "reward_model.on_policy.n",
    "evaluate.n",
    "compute.kv_cache_gib",
]
_NOT_NEGATIVE = [
    "seed",
    "generate.top_k",
    "score.retry_seconds",
    "pair.length_penalty",
    "pair.min_margin",
    "dpo.weight_decay",
    "dpo.max_grad_norm",
    "dpo.warmup_ratio",
    "dpo.rpo_alpha",
    "dpo.lora.rank",
    "sft.warmup_ratio",
    "reward_model.warmup_ratio",
    "evaluate.temperature",
    "compute.hang_seconds",
]


def value_at(config: object, key: str) -> object:
    """The value a dotted key names."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def check_config(cfg: Config) -> None:
    """Refuse values that cannot work, all at once.

    Raises:
        ConfigError: one line per wrong value, with the way out.
    """
    _refuse([*_ranges(cfg), *_sampling(cfg), *_pairs(cfg), *_judge(cfg), *_judges(cfg), *_dpo(cfg), *_training(cfg)])


def check_stages(cfg: Config) -> None:
    """Refuse values that cannot work in single stages, whatever else would make a loop of them.

    Raises:
        ConfigError: one line per wrong value, with the way out.
    """
    _refuse([*_ranges(cfg), *_sampling(cfg), *_judge(cfg)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _ranges(cfg: Config) -> Iterator[str]:
    for key in _POSITIVE:
        value = value_at(cfg, key)
        if not _number(value) > 0:
            yield f"{key}={value}: must be a positive number."
    for key in _NOT_NEGATIVE:
        value = value_at(cfg, key)
        if not _number(value) >= 0:
            yield f"{key}={value}: must not be negative."
    if not 0 < cfg.generate.top_p <= 1:
        yield f"generate.top_p={cfg.generate.top_p}: must lie in (0, 1]; 1 is off."
    if not 0 < cfg.generate.gpu_memory_utilization <= 1:
        yield f"generate.gpu_memory_utilization={cfg.generate.gpu_memory_utilization}: must lie in (0, 1]."
    if not 0 <= cfg.dpo.label_smoothing < 0.5:
        yield f"dpo.label_smoothing={cfg.dpo.label_smoothing}: must lie in [0, 0.5); 0 is off."
    if not 0 <= cfg.reward_model.held_out_share < 1:
        yield f"reward_model.held_out_share={cfg.reward_model.held_out_share}: must lie in [0, 1)."
    if not 0 <= cfg.sft.held_out_share < 1:
        yield f"sft.held_out_share={cfg.sft.held_out_share}: must lie in [0, 1)."
    if cfg.score.tensor_parallel_size > 1 and cfg.score.engine is not Engine.vllm:
        yield f"score.tensor_parallel_size={cfg.score.tensor_parallel_size}: only with score.engine=vllm."
    pairwise = cfg.reward_model.kind is JudgeKind.pairwise
    if pairwise and (cfg.reward_model.url is not None or cfg.reward_model.rule is not None):
        yield (
            "reward_model.kind=pairwise: such a judge is loaded here, and neither reward_model.url nor "
            "reward_model.rule goes with it. Remove them, or set reward_model.kind=scalar."
        )
    if pairwise and cfg.score.engine is Engine.vllm:
        yield (
            f"score.engine={cfg.score.engine.value}: a pairwise judge (reward_model.kind) runs on score.engine="
            "transformers only."
        )
    if (opponents := cfg.score.opponents) is not None and (not pairwise or opponents < 2):
        yield (
            f"score.opponents={opponents}: must be 2 or more, and only with reward_model.kind=pairwise; null is all "
            "others."
        )
    if cfg.compute.zero_stage not in (2, 3):
        yield f"compute.zero_stage={cfg.compute.zero_stage}: must be 2 or 3."


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _sampling(cfg: Config) -> Iterator[str]:
    temperatures, n = cfg.generate.temperatures, cfg.generate.n
    if not temperatures or any(not _number(t) >= 0 for t in temperatures):
        yield f"generate.temperatures={temperatures}: needs at least one, none negative; the paper has [1.0,0.7]."
    elif n % len(temperatures):
        yield (
            f"generate.n={n}: cannot be shared out evenly over {len(temperatures)} temperatures {temperatures}. Use a "
            f"multiple of {len(temperatures)}, or other temperatures."
        )
    elif 0 in temperatures and n // len(temperatures) > 1:
        yield (
            f"generate.temperatures={temperatures} with n={n}: at temperature 0 the {n // len(temperatures)} responses "
            "of one prompt are all the same. Use a temperature above 0, or fewer responses."
        )


def _pairs(cfg: Config) -> Iterator[str]:
    if cfg.generate.n < 2:
        yield f"generate.n={cfg.generate.n}: a pair needs two responses. Use 2 or more."
    k = cfg.pair.num_candidates
    if k is not None and not 2 <= k <= cfg.generate.n:
        yield f"pair.num_candidates={k}: must lie in 2..generate.n ({cfg.generate.n}); null uses all."
    if cfg.pair.max_pairs_per_prompt > 1 and cfg.pair.strategy is not Strategy.best_worst:
        yield (
            f"pair.max_pairs_per_prompt={cfg.pair.max_pairs_per_prompt}: only with pair.strategy=best_worst, not "
            f"{cfg.pair.strategy.value}."
        )

    if cfg.pair.data is not None and cfg.num_iterations != 1:
        yield (
            f"pair.data={cfg.pair.data} with num_iterations={cfg.num_iterations}: given pairs make one iteration, as "
            "each would train on the same ones. Set num_iterations=1 (and dpo.num_epochs for more passes)."
        )


def _judge(cfg: Config) -> Iterator[str]:
    judge = cfg.reward_model
    given = {key: value for key in ("rule", "url", "data") if (value := getattr(judge, key)) is not None}
    if len(given) > 1:
        what = ", ".join(f"reward_model.{key}={value}" for key, value in given.items())
        yield (
            f"{what}: only one of them. A rule is a Python function, a url is where a ready model is served, data "
            "trains one here; leave out the others."
        )
    if judge.url is not None and not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", judge.url):
        yield f"reward_model.url={judge.url}: must be the base URL of a server, such as http://127.0.0.1:8000."
    if judge.url is not None and not judge.path:
        yield f"reward_model.url={judge.url}: needs reward_model.path too, whose tokenizer and template are used."


def _judges(cfg: Config) -> Iterator[str]:
    for name in cfg.evaluate.judges:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            yield f"evaluate.judges.{name}: the name becomes a folder; use letters, digits, '_', '-' and '.' only."


def _dpo(cfg: Config) -> Iterator[str]:
    if cfg.dpo.max_length <= 1:
        yield f"dpo.max_length={cfg.dpo.max_length}: must leave room for a prompt and a response."
    loss, smoothing = cfg.dpo.loss, cfg.dpo.label_smoothing
    if loss in (Loss.ipo, Loss.hinge) and smoothing:
        yield (
            f"dpo.label_smoothing={smoothing}: has no meaning for dpo.loss={loss.value}. Set it to 0, or use dpo.loss="
            "sigmoid, robust or exo_pair."
        )
    if loss is Loss.exo_pair and smoothing == 0:
        yield (
            "dpo.label_smoothing=0: dpo.loss=exo_pair needs it above 0, since it takes its logarithm. Set it to 0.001 "
            "(the paper's), or use another loss."
        )
    lora = cfg.dpo.lora
    if not 0 <= _number(lora.dropout) < 1:
        yield f"dpo.lora.dropout={lora.dropout}: must lie in [0, 1); 0 is off."
    if not lora.target_modules or ("all-linear" in lora.target_modules and len(lora.target_modules) > 1):
        yield (
            f"dpo.lora.target_modules={lora.target_modules}: name layers, such as [q_proj,v_proj], or [all-linear] "
            "alone. dpo.lora.rank=0 switches adapters off."
        )


def _training(cfg: Config) -> Iterator[str]:
    on_policy = cfg.reward_model.on_policy
    if (on_policy.prompts is None) != (on_policy.rule is None):
        yield "reward_model.on_policy: prompts and rule go together; give both or neither."
    if on_policy.prompts is not None and cfg.reward_model.data is None:
        yield "reward_model.on_policy.prompts: needs reward_model.data too; without it no judge is trained."
    if cfg.model.path.startswith("@world") and not cfg.world.enabled:
        yield f"model.path={cfg.model.path}: needs world.enabled=true, or another model."
    ranks = cfg.compute.num_training_ranks
    if ranks is not None and cfg.dpo.batch_size < ranks:
        yield (
            f"dpo.batch_size={cfg.dpo.batch_size}: smaller than compute.num_training_ranks={ranks}, so some ranks "
            "would have nothing to do. Raise it or use fewer ranks."
        )
