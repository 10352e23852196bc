"""The sections of what is trained: the policy by DPO and SFT, and the judge. Part of `rlhf.config.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from rlhf.config.choices import ChatApi, Dtype, JudgeKind, Loss, Reference
from rlhf.config.fields import (
    CHECKED_WITH_OTHERS,
    HALF_OR_OFF,
    LOSS_FACTOR,
    LOSS_TERM,
    NOT_NEGATIVE,
    SHARE,
    SHARE_OF_STEPS,
    SHARE_OR_OFF,
    setting,
)

MAIN_JUDGE = "main"
"""What `reward_model` itself is called beside `reward_model.others`."""
POLICY = "@policy"
"""As `reward_model.path`: the policy itself judges (self-rewarding)."""


@dataclass
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning, merged into the weights after an iteration:
    docs/training.md.
    """

    rank: int = setting(0, within=NOT_NEGATIVE)
    """Rank r of an adapter B·A; 0 trains all weights. With adapters use a larger dpo.learning_rate: 5e-6 to
    1e-4."""
    alpha: int = 32
    """A weight becomes W + alpha / rank · B·A."""
    dropout: float = setting(0.0, within=SHARE_OR_OFF)
    """Dropout in front of the adapters, in [0, 1); above 0 the curve depends on ranks and bins."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of linear layers that get adapters, such as [q_proj,v_proj]; all-linear is all but the output
    head."""


@dataclass
class DpoConfig:
    """Direct preference optimisation (paper, Eq. 5)."""

    beta: float = setting(0.1, within=LOSS_FACTOR)
    """Strength of the KL anchor (paper: 0.1)."""
    # So small that bf16 weights would not move: they are fp32 between iterations.
    learning_rate: float = 5.0e-7
    """Peak (paper: 5e-7)."""
    reference: Reference = Reference.initial
    """`initial` anchors every iteration to π0 (paper), `previous` to the policy the iteration starts from."""
    loss: Loss = Loss.sigmoid
    """`sigmoid` is DPO (paper); docs/training.md has the formulas, docs/recipes.md says when to use which."""
    label_smoothing: float = setting(0.0, within=HALF_OR_OFF)
    """Assumed share of flipped labels, in [0, 0.5), of sigmoid, robust and exo_pair (above 0 there; its
    paper: 1e-3)."""
    length_alpha: float = setting(0.0, within=LOSS_TERM, later=True)
    """α of R-DPO (arXiv 2403.19159), with loss=sigmoid: α · (chosen − rejected tokens) is added to the
    margin, so that length itself is not learnt; 0 is off."""
    score_scale: float = setting(1.0, within=LOSS_FACTOR, later=True)
    """Of loss=score_aware: σ(score_scale · score margin) is how surely the chosen response is the better
    one."""
    simpo_gamma: float = setting(1.0, within=LOSS_TERM, later=True)
    """γ of loss=simpo: the margin to reach, in units of β · nats per token (its repository, Llama-3-8B base:
    1.0 with β 2)."""
    initial_share: float = setting(1 / 3, within=SHARE, later=True)
    """Of loss=inpo, τ/η: how much of the anchor is π0, the rest being the policy the iteration starts from
    (paper: 1/3)."""
    rpo_alpha: float = setting(0.0, within=LOSS_TERM)
    """Weight of the chosen response's negative log-likelihood per token, added to the loss; 0 is off."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters in place of full fine-tuning."""
    num_epochs: int = 2
    """Passes over an iteration's pairs (paper: 2)."""
    # Reproductions at 32 lost half a point of MT-Bench.
    batch_size: int = 128
    """Pairs of one optimizer step, over all ranks (paper: 128)."""
    max_length: int = 2048
    """Tokens of prompt plus response; longer responses are cut at the end and counted (paper: 2048)."""
    batch_tokens: Optional[int] = setting(None, compared=False)
    """Tokens of one forward and backward pass on one rank, a prompt and its two responses counted once; never
    changes which pairs form a step. null finds what memory allows, up to 1536 on a CPU and 16384 on a GPU,
    and halves it when memory runs out."""
    warmup_ratio: float = setting(0.03, within=SHARE_OF_STEPS)
    """Share of the steps with a rising learning rate (paper: 0.03)."""
    lr_scheduler: str = "cosine"
    """Any scheduler name of transformers (paper: cosine)."""
    weight_decay: float = setting(0.0, within=NOT_NEGATIVE)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = setting(1.0, within=NOT_NEGATIVE)
    """Gradient clipping; 0 is off."""
    gradient_checkpointing: bool = setting(True, compared=False)
    """Recompute activations in the backward pass: slower, far less memory."""
    # About a minute apart at 8B on eight GPUs.
    save_steps: int = setting(50, compared=False)
    """Optimizer steps between checkpoints: what a kill can cost at most."""
    trainer_args: dict[str, Any] = setting(factory=dict, code=True)
    """Passed on to `trl.DPOConfig` untouched."""


@dataclass
class SftSettings:
    """Supervised fine-tuning: what the stage is told."""

    columns: Any = setting(None, later=True)
    """What columns of `data` hold (as `prompts.columns`)."""
    chat_template: Optional[str] = None
    """Jinja text of the chat template for a base model, which has none; null takes the model's own."""
    learning_rate: float = 2.0e-5
    """Peak (paper: 2e-5)."""
    num_epochs: int = 1
    """Passes over the data (paper: 1)."""
    batch_size: int = 32
    """Packs, or without packing conversations, of one optimizer step, over all ranks (paper: 32)."""
    micro_batch_size: int = setting(1, compared=False)
    """Packs or conversations of one forward pass on one rank."""
    max_length: int = 8192
    """Tokens of a pack or conversation; longer conversations are cut at the end and counted (paper: 8192)."""
    packing: bool = True
    """Join conversations to packs of up to `max_length` tokens, none of which sees another (paper); false for
    small data, where packs make too few steps."""
    held_out_share: float = setting(0.02, within=SHARE_OR_OFF)
    """Share of the conversations kept out of training to measure the loss; 0 is off."""
    warmup_ratio: float = setting(0.03, within=SHARE_OF_STEPS)
    """Share of the steps with a rising learning rate (paper: 0.03)."""
    gradient_checkpointing: bool = setting(True, compared=False)
    """Recompute activations in the backward pass."""
    save_steps: int = setting(200, compared=False)
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = setting(factory=dict, code=True)
    """Passed on to `trl.SFTConfig` untouched."""


@dataclass
class SftConfig(SftSettings):
    """Supervised fine-tuning of `model.path` before anything else."""

    data: Optional[str] = None
    """File or Hub data set of conversations (shapes: docs/training.md), or `@stage/…`; null skips the
    stage."""


@dataclass
class RaftConfig:
    """Training on the best of n responses with `method=raft` (RAFT, arXiv 2304.06767)."""

    learning_rate: float = 2.0e-5
    """Peak (its paper: 2e-5)."""
    num_epochs: int = 1
    """Passes over an iteration's best responses."""
    batch_size: int = 32
    """Responses, or with packing packs, of one optimizer step, over all ranks."""
    micro_batch_size: int = setting(1, compared=False)
    """Responses or packs of one forward pass on one rank."""
    max_length: int = 2048
    """Tokens of prompt plus response, or of a pack; longer responses are cut at the end and counted."""
    packing: bool = False
    """Join responses with their prompts to packs of up to `max_length` tokens, none of which sees another."""
    held_out_share: float = setting(0.0, within=SHARE_OR_OFF)
    """Share of the best responses kept out of training to measure the loss; 0 is off."""
    warmup_ratio: float = setting(0.03, within=SHARE_OF_STEPS)
    """Share of the steps with a rising learning rate."""
    gradient_checkpointing: bool = setting(True, compared=False)
    """Recompute activations in the backward pass."""
    save_steps: int = setting(200, compared=False)
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = setting(factory=dict, code=True)
    """Passed on to `trl.SFTConfig` untouched."""


@dataclass
class ReplayConfig:
    """Pairs that an iteration trains on besides its own."""

    iterations: int = setting(0, within=NOT_NEGATIVE)
    """Of so many earlier iterations, the last ones; a number as large as `num_iterations` is all of them."""
    data: Optional[str] = None
    """Given preference pairs (as `reward_model.data`) in every iteration; null is none."""
    columns: Any = setting(None, later=True)
    """What columns of `data` hold (as `prompts.columns`)."""


@dataclass
class RewardModelSettings:
    """Training a judge: what the stage is told."""

    columns: Any = setting(None, later=True)
    """What columns of `data` hold (as `prompts.columns`)."""
    learning_rate: float = 2.0e-6
    """Peak (paper: 2e-6; pairwise 5e-6)."""
    num_epochs: int = 1
    """Passes over the data (paper: 1)."""
    batch_size: int = 512
    """Pairs of one optimizer step, over all ranks (paper: 512; pairwise 128)."""
    micro_batch_size: int = setting(1, compared=False)
    """Pairs of one forward pass on one rank."""
    max_length: int = 4096
    """Tokens (paper, pairwise: 3072); longer conversations lose tokens on the left, and are counted."""
    warmup_ratio: float = setting(0.03, within=SHARE_OF_STEPS)
    """Share of the steps with a rising learning rate (paper: 0.03)."""
    held_out_share: float = setting(0.05, within=SHARE_OR_OFF)
    """Share of the pairs kept out of training to measure accuracy."""
    gradient_checkpointing: bool = setting(True, compared=False)
    """Recompute activations in the backward pass."""
    save_steps: int = setting(100, compared=False)
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = setting(factory=dict, code=True)
    """Passed on to `trl.RewardConfig` (pairwise: `trl.SFTConfig`) untouched."""


@dataclass
class OnPolicyConfig:
    """Preference pairs of π0's own samples, labelled by a program."""

    prompts: Optional[str] = None
    """File of prompts to sample on, or `@stage/…`; null makes none."""
    rule: Optional[str] = setting(None, code=True)
    """`module:function` that maps (messages, response) to a number; higher is better."""
    n: int = 8
    """Samples per prompt, at temperature 1."""
    max_pairs_per_prompt: int = 4
    """Best with worst, second best with second worst, and so on, while the label differs."""


@dataclass
class OtherJudge:
    """A judge whose normalised scores are added to the training judge's; either `path` or `rule`."""

    path: Optional[str] = None
    """Folder, Hub id, or `@stage/…` of a scalar judge."""
    revision: Optional[str] = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    trust_remote_code: bool = setting(False, code=True)
    """Run Python code that comes with the model."""
    rule: Optional[str] = setting(None, code=True)
    """`module:function` that maps (messages, response) to a number, in place of a model."""
    weight: float = 1.0
    """Its weight in the sum; below 0 its high scores count against a response."""


@dataclass
class GenerativeConfig:
    """A language model as judge (`reward_model.kind=generative`): docs/judges.md."""

    template: str = setting("score_1_10", later=True)
    """What it is asked and how its answer is read: `score_1_10`, `a_or_b` (two responses, in both orders),
    `self_rewarding`, or the path of a YAML file."""
    model: Optional[str] = setting(None, later=True)
    """What the server of `reward_model.url` calls the model; needed with a url, and only there."""
    api: ChatApi = setting(ChatApi.chat, later=True)
    """Of a server: `chat` (/v1/chat/completions) or `completions` (/v1/completions, for models without a chat
    template)."""
    temperature: float = setting(0.0, within=NOT_NEGATIVE, later=True)
    """Sampling temperature of its answers; 0 is greedy."""
    max_new_tokens: int = setting(1024, later=True)
    """Tokens of an answer before it is cut."""
    body: Any = setting(None, later=True)
    """More of a request's body, such as `{reasoning_effort: low, seed: 1}`; a value of null takes a key away:
    `{max_tokens: null, max_completion_tokens: 512}`. null adds nothing."""
    api_key_variable: Optional[str] = setting(None, compared=False, later=True, code=True)
    """Name of the environment variable that holds the server's key, which is written nowhere; null is
    RLHF_JUDGE_API_KEY, if it is set."""
    prompt_price: Optional[float] = setting(None, within=NOT_NEGATIVE, compared=False, later=True)
    """Of a million tokens that the judge reads, in your currency; null tells no cost."""
    answer_price: Optional[float] = setting(None, within=NOT_NEGATIVE, compared=False, later=True)
    """Of a million tokens that it writes."""


@dataclass
class RewardModelConfig(RewardModelSettings):
    """The judge: a Bradley-Terry reward model with one logit, or a pairwise preference model, ready or
    trained here.
    """

    kind: JudgeKind = JudgeKind.scalar
    """`scalar`; `pairwise`: a causal LM that answers A or B (docs/recipe.md); `generative`: a chat model
    that is asked in words (docs/judges.md)."""
    generative: GenerativeConfig = setting(factory=GenerativeConfig, later=True)
    """What a generative judge is asked, and how."""
    path: str = "sfairXC/FsfairX-LLaMA3-RM-v0.1"
    """Folder, Hub id, or `@stage/…`; with `data`, what the training starts from; not read with `rule`. A
    generative judge is a chat model, or `@policy`: the policy itself, not read with `url`."""
    url: Optional[str] = setting(None, compared=False, code=True)
    """Base URL of a server of the very model of `path`; conversations are rendered here, by the tokenizer of
    `path`. `vllm serve MODEL --runner pooling --dtype float32|bfloat16 --hf-overrides '{"head_dtype":
    "float32"}'`: vLLM's own choice for fp32 weights is 16 bits. A key stands in the environment,
    RLHF_JUDGE_API_KEY. Of a generative judge any OpenAI-compatible server. null loads `path`."""
    rule: Optional[str] = setting(None, code=True)
    """`module:function` that maps (messages, response) to a number, higher is better, in place of a model. It
    may be `async`, or take lists (docs/judges.md, Rules)."""
    revision: Optional[str] = None
    """Branch, tag or commit on the Hub; null is the main branch, of the default judge the commit it is pinned
    to."""
    dtype: Dtype = Dtype.auto
    """Numeric type of the body; the score head is fp32, but for models that bring code of their own."""
    trust_remote_code: bool = setting(False, code=True)
    """Run Python code that comes with the model."""
    weight: float = setting(1.0, within=CHECKED_WITH_OTHERS)
    """Of this judge in the sum; means something with `others` only."""
    others: dict[str, OtherJudge] = field(default_factory=dict)
    """More judges, by name: what trains and evaluates is then the weighted sum of all normalised scores; on
    the command line `'+reward_model.others={NAME: {path: …, weight: 0.5}}'`; docs/recipe.md, Several judges.
    """
    data: Optional[str] = None
    """File or Hub data set of preferences (`chosen` and `rejected` as messages), or `@stage/…`; null takes
    `path` as it is."""
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    """More training pairs, sampled from π0."""
