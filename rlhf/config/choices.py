"""What config keys may be chosen from."""

from __future__ import annotations

from enum import Enum


class Dtype(Enum):
    """`auto` is the dtype the weights were saved in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class SpecialTokens(Enum):
    """What special tokens are that a prompt or answer spells, such as `<|im_end|>`: text, or those tokens."""

    text = "text"
    tokens = "tokens"


class Launcher(Enum):
    """Who starts the processes of a stage: this machine alone, or the nodes of a Ray cluster."""

    local = "local"
    ray = "ray"


class Engine(Enum):
    """What samples or scores; `auto` is vLLM where it can load the model, else transformers, and says so."""

    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


class Seeds(Enum):
    """What is seeded: every response by itself, or the engine that samples them."""

    request = "request"
    engine = "engine"


class KeptPolicies(Enum):
    """Whose weights stay when a run has come past them; figures, responses and pairs stay in any case."""

    all = "all"
    best_and_last = "best_and_last"


class JudgeKind(Enum):
    """What a judge is: a classifier that gives one response a number, a model whose next token says which of
    two is better, or a language model that is asked in words.
    """

    scalar = "scalar"
    pairwise = "pairwise"
    generative = "generative"


class ChatApi(Enum):
    """What of an OpenAI-compatible server is asked: messages, or one text."""

    chat = "chat"
    completions = "completions"


class Strategy(Enum):
    """How a pair is made of n scored candidates."""

    best_worst = "best_worst"
    best_random = "best_random"
    best_second = "best_second"
    best_sigma = "best_sigma"
    random = "random"


class Truncated(Enum):
    """What becomes of responses cut at the token limit when pairs are made."""

    never_chosen = "never_chosen"
    allow = "allow"
    drop = "drop"


class Sampled(Enum):
    """Which policy an iteration's responses come from."""

    previous = "previous"
    initial = "initial"


class Method(Enum):
    """How an iteration trains: by `dpo` on pairs, or by `raft` on the best response of each prompt."""

    dpo = "dpo"
    raft = "raft"


TRAINED = tuple(method.value for method in Method)
"""Stages that make an iteration's policy, each named as its method; an iteration has one of them."""


class Reference(Enum):
    """Which policy anchors DPO."""

    initial = "initial"
    previous = "previous"


class Loss(Enum):
    """Preference losses."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    robust = "robust"
    hinge = "hinge"
    exo_pair = "exo_pair"
    sigmoid_norm = "sigmoid_norm"
    score_aware = "score_aware"
    simpo = "simpo"
    inpo = "inpo"


class Action(Enum):
    """What becomes of a run that does not pass a gate."""

    ignore = "ignore"
    warn = "warn"
    stop = "stop"


class Device(Enum):
    """`auto` takes the GPUs it finds, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


TRACKERS = ("tensorboard", "trackio", "wandb")
"""What `report_to` may name; each is also the name of a package."""
