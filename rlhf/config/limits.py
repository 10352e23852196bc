"""What can be said of a config before anything else is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rlhf.config.choices import TRACKERS, Engine, JudgeKind, Method, Strategy
from rlhf.config.fields import CHECKED_WITH_OTHERS, numbers
from rlhf.config.generative_limits import generative_problems
from rlhf.config.recipe_limits import recipes
from rlhf.config.sampling_limits import evaluation_problems, length_problems, sampling_problems
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.errors import ConfigError


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
    wrong = problems(cfg)
    if wrong:
        raise ConfigError("\n".join(wrong))


def problems(cfg: Config) -> list[str]:
    """Values that cannot work, one line each, with the way out."""
    # All of them, so that a person mends a config once.
    return [
        *_ranges(cfg),
        *_files(cfg),
        *sampling_problems(cfg),
        *evaluation_problems(cfg),
        *length_problems(cfg),
        *_pairs(cfg),
        *_pairing(cfg),
        *_judge(cfg),
        *generative_problems(cfg),
        *_judges(cfg),
        *_dpo(cfg),
        *recipes(cfg),
        *_training(cfg),
        *_trackers(cfg),
    ]


def check_stages(cfg: Config) -> None:
    """Refuse values that cannot work in single stages, whatever else would make a loop of them.

    Raises:
        ConfigError: one line per wrong value, with the way out.
    """
    wrong = [
        *_ranges(cfg),
        *sampling_problems(cfg),
        *_pairing(cfg),
        *_judge(cfg),
        *generative_problems(cfg),
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def check_numbers(tool: Any) -> None:
    """Raise ConfigError for numbers outside their range, for tools that have no stage's settings."""
    wrong = list(_wrong_numbers(tool))
    if wrong:
        raise ConfigError("\n".join(wrong))


def _wrong_numbers(cfg: Any) -> Iterator[str]:
    for key, value, within in numbers(cfg):
        if within is not CHECKED_WITH_OTHERS and not within.holds(value):
            yield f"{key}={value}: {within.says}"


def _ranges(cfg: Config) -> Iterator[str]:
    """Numbers outside their range, and what of `score` does not go with the kind of judge."""
    yield from _wrong_numbers(cfg)
    score = cfg.score
    # Only vLLM cuts a model into parts.
    if score.tensor_parallel_size > 1 and score.engine is not Engine.vllm:
        yield f"score.tensor_parallel_size={score.tensor_parallel_size}: only with score.engine=vllm."
    judge = cfg.reward_model
    pairwise = judge.kind is JudgeKind.pairwise
    is_elsewhere = judge.url is not None or judge.rule is not None
    if pairwise and is_elsewhere:
        yield (
            "reward_model.kind=pairwise: such a judge is loaded here, and neither reward_model.url nor "
            "reward_model.rule goes with it. Remove them, or set reward_model.kind=scalar."
        )
    if pairwise and score.engine is Engine.vllm:
        yield (
            f"score.engine={score.engine.value}: a pairwise judge (reward_model.kind) runs on score.engine="
            "transformers only."
        )
    opponents = score.opponents
    compares = pairwise or judge.kind is JudgeKind.generative
    if opponents is not None and (not compares or opponents < 2):
        yield (
            f"score.opponents={opponents}: must be 2 or more, and only with reward_model.kind=pairwise or "
            "generative; null is all others."
        )


_COLUMN_KEYS = ("question", "context", "system", "history", "answer", "chosen", "rejected")
"""What a column of a file may be said to hold (`prompts.columns` and its like)."""


def _files(cfg: Config) -> Iterator[str]:
    """What files are named and how their columns are read."""
    yield from _prompts(cfg)
    for section in ("prompts", "sft", "reward_model", "pair", "replay"):
        columns = value_at(cfg, f"{section}.columns")
        wrong = list(column_problems(f"{section}.columns", columns))
        yield from wrong
        if section == "prompts" or not columns or wrong:
            continue
        if value_at(cfg, f"{section}.data") is None:
            yield (
                f"{section}.columns={columns}: has no meaning without {section}.data, whose columns are "
                f"meant. Set {section}.data, or leave {section}.columns out."
            )


def column_problems(key: str, columns: Any) -> Iterator[str]:
    """What is wrong with what a setting says of the columns of a file."""
    if columns is None:
        return
    if not isinstance(columns, dict):
        yield f"{key}={columns}: must be a mapping such as {{context: evidence}}, or null."
        return
    for held, names in columns.items():
        setting = f"{key}={{{held}: {names}}}"
        if held not in _COLUMN_KEYS:
            yield f"{setting}: a column holds one of {', '.join(_COLUMN_KEYS)}."
        elif not (
            isinstance(names, str) or (isinstance(names, list) and all(isinstance(n, str) for n in names))
        ):
            yield f"{setting}: name a column, or a list of columns."


def _prompts(cfg: Config) -> Iterator[str]:
    """What names no prompts at all; with given pairs held-out ones are enough."""
    paths = cfg.prompts.path
    if paths is None and cfg.pair.data is not None:
        if cfg.prompts.held_out_path is None:
            yield (
                "prompts.path=null with prompts.held_out_path=null: pair.data has what is trained on, but "
                "the policies are evaluated on prompts. Set prompts.held_out_path to a file of them, or "
                "prompts.path, of which prompts.num_held_out are taken."
            )
        return
    is_list = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
    if not isinstance(paths, str) and not is_list:
        yield (
            f"prompts.path={'null' if paths is None else paths}: must be a path or a data set, or a list of "
            "them such as [a.jsonl,b.csv]. Only given pairs (pair.data) go without, with "
            "prompts.held_out_path."
        )


def _pairs(cfg: Config) -> Iterator[str]:
    """What keeps sampled responses from becoming pairs; no concern of `rlhf.generate`, which makes none."""
    if cfg.pair.data is not None:
        if cfg.num_iterations != 1:
            yield (
                f"pair.data={cfg.pair.data} with num_iterations={cfg.num_iterations}: given pairs make one "
                "iteration, as each would train on the same ones. Set num_iterations=1 (and dpo.num_epochs "
                "for more passes)."
            )
        return  # none is made of samples
    n = cfg.generate.n
    if n < 2:
        yield f"generate.n={n}: a pair needs two responses. Use 2 or more."
    num_candidates = cfg.pair.num_candidates
    if num_candidates is not None and num_candidates > n:
        yield f"pair.num_candidates={num_candidates}: must be at most generate.n={n}; null uses all."


def _pairing(cfg: Config) -> Iterator[str]:
    pair = cfg.pair
    if pair.num_candidates is not None and pair.num_candidates < 2:
        yield f"pair.num_candidates={pair.num_candidates}: a pair needs two. Use 2 or more; null uses all."
    # The other strategies say which pair is the first, and none which would be the second.
    if pair.max_pairs_per_prompt > 1 and pair.strategy is not Strategy.best_worst:
        yield (
            f"pair.max_pairs_per_prompt={pair.max_pairs_per_prompt}: only with pair.strategy=best_worst, not "
            f"{pair.strategy.value}."
        )


def _judge(cfg: Config) -> Iterator[str]:
    judge = cfg.reward_model
    if judge.url is not None and "@" in judge.url:
        yield (
            "reward_model.url=https://***@…: holds a user or a password, which would stand in the run's "
            "files. Take it out, and put a key in the environment variable RLHF_JUDGE_API_KEY (sent as a "
            "bearer token)."
        )
        # No other message about it: they show the URL.
        return
    sources = []
    for key in ("rule", "url", "data"):
        value = getattr(judge, key)
        if value is not None:
            sources.append(f"reward_model.{key}={value}")
    if len(sources) > 1:
        yield (
            f"{', '.join(sources)}: only one of them. A rule is a Python function, a url is where a ready "
            "model is served, data trains one here; leave out the others."
        )
    # Paths such as /classify are put behind it, so it has no query and no fragment.
    if judge.url is not None and not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", judge.url):
        yield f"reward_model.url={judge.url}: must be the base URL of a server, such as http://127.0.0.1:8000."
    if judge.url is not None and not judge.path:
        yield (
            f"reward_model.url={judge.url}: needs reward_model.path too, whose tokenizer and "
            "template are used."
        )


def _judges(cfg: Config) -> Iterator[str]:
    """What is wrong with the judges beside the first one: their names, weights and sources."""
    others = cfg.reward_model.others
    further = [*others, *cfg.evaluate.judges]
    # One folder each, so no two may have one name, and none that of `reward_model` itself.
    names = [MAIN_JUDGE, *further]
    for name in further:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            section = "reward_model.others" if name in others else "evaluate.judges"
            yield f"{section}.{name}: the name becomes a folder; use letters, digits, '_', '-' and '.' only."
        if names.count(name) > 1:
            yield f"judge {name!r}: two are called so ({MAIN_JUDGE} is reward_model itself). Rename one."
    weights = {"reward_model": cfg.reward_model.weight}
    for name, other in others.items():
        weights[f"reward_model.others.{name}"] = other.weight
        has_path = other.path is not None
        has_rule = other.rule is not None
        if has_path == has_rule:
            yield f"reward_model.others.{name}: path={other.path}, rule={other.rule}: give one of the two."
    for key, weight in weights.items():
        # Negative is allowed: what one judge likes may be what another is to be rid of.
        if not math.isfinite(weight) or weight == 0:
            yield (
                f"{key}.weight={weight}: must be a number other than 0. What only evaluates is "
                "in evaluate.judges."
            )
    if others and cfg.reward_model.kind is JudgeKind.pairwise:
        yield (
            "reward_model.others: do not go with reward_model.kind=pairwise, whose scores depend on the "
            "other responses. Set reward_model.kind=scalar, or let them evaluate only, as evaluate.judges."
        )


def _dpo(cfg: Config) -> Iterator[str]:
    max_length = cfg.dpo.max_length
    if max_length <= 1:
        yield f"dpo.max_length={max_length}: must leave room for a prompt and a response."
    modules = cfg.dpo.lora.target_modules
    # PEFT knows the word only by itself; in a list of others it looks for a layer of that name.
    mixes_all_with_some = "all-linear" in modules and len(modules) > 1
    if not modules or mixes_all_with_some:
        yield (
            f"dpo.lora.target_modules={modules}: name layers, such as [q_proj,v_proj], or [all-linear] "
            "alone. dpo.lora.rank=0 switches adapters off."
        )


def _training(cfg: Config) -> Iterator[str]:
    on_policy = cfg.reward_model.on_policy
    has_prompts = on_policy.prompts is not None
    has_rule = on_policy.rule is not None
    if has_prompts != has_rule:
        yield "reward_model.on_policy: prompts and rule go together; give both or neither."
    if has_prompts and cfg.reward_model.data is None:
        yield "reward_model.on_policy.prompts: needs reward_model.data too; without it no judge is trained."
    if cfg.model.path.startswith("@world") and not cfg.world.enabled:
        yield f"model.path={cfg.model.path}: needs world.enabled=true, or another model."
    # Only ranks that are asked for: how many GPUs there are is the preflight's business.
    ranks = cfg.compute.num_training_ranks
    batch_size = cfg.dpo.batch_size
    if cfg.method is Method.dpo and ranks is not None and batch_size < ranks:
        yield (
            f"dpo.batch_size={batch_size}: smaller than compute.num_training_ranks={ranks}, so some ranks "
            "would have nothing to do. Raise it or use fewer ranks."
        )


def _trackers(cfg: Config) -> Iterator[str]:
    for name in cfg.report_to:
        if name not in TRACKERS:
            yield (
                f"report_to={name!r} is no tracker of this package; there are {', '.join(TRACKERS)}. Name "
                "one of them, or leave it out: report_to=[] reports to none."
            )
