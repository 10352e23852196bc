"""What can be said of a config before anything else is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rlhf.config.choices import Engine, JudgeKind, Loss, Strategy
from rlhf.config.fields import CHECKED_WITH_OTHERS, numbers
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.errors import ConfigError

_SAMPLED_AS_TRAINED = "responses would come from another model than the one that is trained. Leave it out."
_ONE_MODEL = "all stages read one folder. Leave it out; see model.path and model.revision."
_SAMPLING = "generate.temperatures, top_p, top_k and stop_token_ids say how to sample. Leave it out."
_GPUS = "each worker has generate.tensor_parallel_size GPUs. Set that."
_VLLM_ARGS = {
    "dtype": "set model.dtype, which holds for training too.",
    "seed": "set seed; every response has a seed of its own, made of it.",
    "tensor_parallel_size": "set generate.tensor_parallel_size, by which workers get their GPUs.",
    "pipeline_parallel_size": _GPUS,
    "data_parallel_size": _GPUS,
    "gpu_memory_utilization": "set generate.gpu_memory_utilization.",
    "quantization": _SAMPLED_AS_TRAINED,
    "hf_overrides": _SAMPLED_AS_TRAINED,
    "tokenizer": _ONE_MODEL,
    "tokenizer_revision": _ONE_MODEL,
    "revision": _ONE_MODEL,
    "code_revision": _ONE_MODEL,
    "config_format": _ONE_MODEL,
    "hf_config_path": _ONE_MODEL,
    "generation_config": _SAMPLING,
    "override_generation_config": _SAMPLING,
    "logprobs_mode": "records hold log-probabilities at temperature 1. Leave it out.",
    "runner": "the policy generates. Leave it out.",
    "convert": "the policy generates. Leave it out.",
    "task": "the policy generates. Leave it out.",
}
"""Arguments of vLLM that contradict what this package gives it, and what to do in place of them."""


def value_at(config: object, key: str) -> Any:
    """The value a dotted key names."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def check_config(cfg: Config) -> None:
    """Refuse values that cannot work, all at once.

    Raises:
        ConfigError: one line per wrong value, with the way out.
    """
    if wrong := problems(cfg):
        raise ConfigError("\n".join(wrong))


def problems(cfg: Config) -> list[str]:
    """Values that cannot work, one line each, with the way out."""
    groups = (_ranges, _sampling, _lengths, _pairs, _pairing, _judge, _judges, _dpo, _training)
    return [problem for group in groups for problem in group(cfg)]


def check_stages(cfg: Config) -> None:
    """Refuse values that cannot work in single stages, whatever else would make a loop of them.

    Raises:
        ConfigError: one line per wrong value, with the way out.
    """
    if wrong := [*_ranges(cfg), *_sampling(cfg), *_pairing(cfg), *_judge(cfg)]:
        raise ConfigError("\n".join(wrong))


def _ranges(cfg: Config) -> Iterator[str]:
    for key, value, within in numbers(cfg):
        if within is not CHECKED_WITH_OTHERS and not within.holds(value):
            yield f"{key}={value}: {within.says}"
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


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _sampling(cfg: Config) -> Iterator[str]:
    for key in {"model", "trust_remote_code", "load_format"} & set(cfg.generate.vllm_args):
        yield f"generate.vllm_args.{key}: not here; only safetensors are read. See model.path, model.trust_remote_code."
    for key in sorted(_VLLM_ARGS.keys() & cfg.generate.vllm_args.keys()):
        yield f"generate.vllm_args.{key}={cfg.generate.vllm_args[key]}: {_VLLM_ARGS[key]}"
    for key in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):
        value = cfg.generate.vllm_args.get(key)
        # vLLM itself takes -1 for a length that memory decides.
        is_count = isinstance(value, int) and not isinstance(value, bool) and (value > 0 or value == -1)
        if value is not None and not is_count:
            yield f"generate.vllm_args.{key}={value}: must be a whole number above 0."
    temperatures, n = cfg.generate.temperatures, cfg.generate.n
    if not temperatures or any(not _number(t) >= 0 for t in temperatures):
        yield f"generate.temperatures={temperatures}: needs finite numbers, none negative; the paper has [1.0,0.7]."
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


def _lengths(cfg: Config) -> Iterator[str]:
    # Tools on files are not asked: they take shorter responses where their default does not fit.
    length, max_new_tokens = cfg.generate.vllm_args.get("max_model_len"), cfg.generate.max_new_tokens
    if isinstance(length, int) and 0 < length <= max_new_tokens and cfg.generate.engine is not Engine.transformers:
        yield (
            f"generate.vllm_args.max_model_len={length}: has no room for generate.max_new_tokens={max_new_tokens} and "
            f"a prompt. Raise it, or set generate.max_new_tokens below {length}."
        )


def _pairs(cfg: Config) -> Iterator[str]:
    if cfg.generate.n < 2:
        yield f"generate.n={cfg.generate.n}: a pair needs two responses. Use 2 or more."
    if (k := cfg.pair.num_candidates) is not None and k > cfg.generate.n:
        yield f"pair.num_candidates={k}: must be at most generate.n={cfg.generate.n}; null uses all."
    if cfg.pair.data is not None and cfg.num_iterations != 1:
        yield (
            f"pair.data={cfg.pair.data} with num_iterations={cfg.num_iterations}: given pairs make one iteration, as "
            "each would train on the same ones. Set num_iterations=1 (and dpo.num_epochs for more passes)."
        )


def _pairing(cfg: Config) -> Iterator[str]:
    if (k := cfg.pair.num_candidates) is not None and k < 2:
        yield f"pair.num_candidates={k}: a pair needs two. Use 2 or more; null uses all."
    if cfg.pair.max_pairs_per_prompt > 1 and cfg.pair.strategy is not Strategy.best_worst:
        yield (
            f"pair.max_pairs_per_prompt={cfg.pair.max_pairs_per_prompt}: only with pair.strategy=best_worst, not "
            f"{cfg.pair.strategy.value}."
        )


def _judge(cfg: Config) -> Iterator[str]:
    judge = cfg.reward_model
    if judge.url is not None and "@" in judge.url:
        yield (
            "reward_model.url=https://***@…: holds a user or a password, which would stand in the run's files. Take it "
            "out, and put a key in the environment variable RLHF_JUDGE_API_KEY (sent as a bearer token)."
        )
        return
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
    others, names = cfg.reward_model.others, [MAIN_JUDGE, *cfg.reward_model.others, *cfg.evaluate.judges]
    for name in names[1:]:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            section = "reward_model.others" if name in others else "evaluate.judges"
            yield f"{section}.{name}: the name becomes a folder; use letters, digits, '_', '-' and '.' only."
        if names.count(name) > 1:
            yield f"judge {name!r}: two are called so ({MAIN_JUDGE} is reward_model itself). Rename one."
    weights = {"reward_model": cfg.reward_model.weight}
    for name, other in others.items():
        weights[f"reward_model.others.{name}"] = other.weight
        if (other.path is None) == (other.rule is None):
            yield f"reward_model.others.{name}: path={other.path}, rule={other.rule}: give one of the two."
    for key, weight in weights.items():
        if not math.isfinite(weight) or weight == 0:
            yield f"{key}.weight={weight}: must be a number other than 0. What only evaluates is in evaluate.judges."
    if others and cfg.reward_model.kind is JudgeKind.pairwise:
        yield (
            "reward_model.others: do not go with reward_model.kind=pairwise, whose scores depend on the other "
            "responses. Set reward_model.kind=scalar, or let them evaluate only, as evaluate.judges."
        )


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
