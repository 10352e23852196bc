"""Whether batch size, learning rates and token limits are what is usual for models of this size."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.config.choices import JudgeKind, Method
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.config.training import DpoConfig
from rlhf.preflight.findings import Finding, finding
from rlhf.preflight.memory import num_training_ranks

LARGE = 1e9
"""Parameters from which the usual learning rates are known; smaller models take larger ones."""


def hyperparameters(cfg: Config, sizes: dict[str, float]) -> Iterator[Finding]:
    """Batch size, learning rates and token limits; `sizes` are parameters by config key, where known.

    Example:
        sizes: {"model.path": 8.03e9, "reward_model.path": 7.5e9}
    """
    policy_is_large = sizes.get("model.path", 0) >= LARGE
    judge_is_large = sizes.get("reward_model.path", 0) >= LARGE
    if cfg.method is Method.raft:
        yield _learning_rate(cfg, "raft", 1e-7, 1e-4, is_known=policy_is_large)
    else:
        yield from _dpo(cfg, policy_is_large)
    if cfg.sft.data:
        yield _learning_rate(cfg, "sft", 1e-7, 1e-4, is_known=policy_is_large)
    if cfg.reward_model.data:
        yield _learning_rate(cfg, "reward_model", 1e-7, 1e-4, is_known=judge_is_large)
    yield _tokens_of_the_judge(cfg)


def _dpo(cfg: Config, policy_is_large: bool) -> Iterator[Finding]:
    yield from _batch_size(cfg, policy_is_large)
    if cfg.dpo.lora.rank > 0:
        # Adapters take such rates whatever the size of the model below them.
        yield _learning_rate(cfg, "dpo", 1e-6, 1e-3, is_known=True, how=" with LoRA")
    else:
        yield _learning_rate(cfg, "dpo", 1e-8, 1e-5, is_known=policy_is_large)


def _batch_size(cfg: Config, policy_is_large: bool) -> Iterator[Finding]:
    batch_size = cfg.dpo.batch_size
    ranks = num_training_ranks(cfg)
    text = f"dpo.batch_size={batch_size} over {ranks} training ranks"
    why = "It does not divide evenly: some ranks wait in every step. The result is the same."
    yield finding(batch_size % ranks == 0, text, why)
    recipe = DpoConfig()
    is_full_training = cfg.dpo.lora.rank == 0
    # Whoever changed the rate as well has left the recipe on purpose.
    has_rate_of_recipe = cfg.dpo.learning_rate == recipe.learning_rate
    if policy_is_large and is_full_training and has_rate_of_recipe:
        why = f"The two go together ({recipe.batch_size}): at 32 others lost half a point of MT-Bench."
        text = f"dpo.batch_size={batch_size} at the recipe's learning rate"
        yield finding(batch_size == recipe.batch_size, text, why)


def _learning_rate(
    cfg: Config, section: str, low: float, high: float, *, is_known: bool, how: str = ""
) -> Finding:
    """Whether a section's learning rate lies in [low, high], if these are known for a model like this."""
    key = f"{section}.learning_rate"
    rate = value_at(cfg, key)
    why = f"Usual are {low:g} to {high:g}: below, the model hardly moves; above, it tends to break."
    is_usual = low <= rate <= high
    fine = is_usual or not is_known
    return finding(fine, f"{key}={rate:g}{how}", why)


def _tokens_of_the_judge(cfg: Config) -> Finding:
    max_tokens = cfg.score.max_tokens
    generate = cfg.generate
    whole = generate.max_prompt_tokens + generate.max_new_tokens
    why = (
        f"Prompt and response may have {whole}: the judge would not see the beginning. Raise it "
        "if it can read them."
    )
    # A rule reads text and knows no limit of tokens.
    judge = cfg.reward_model
    is_asked = judge.kind is JudgeKind.generative and judge.url is not None
    fine = max_tokens >= whole or judge.rule is not None or is_asked
    return finding(fine, f"score.max_tokens={max_tokens}", why)
