"""The schemas of the tools on plain files: sections of `rlhf.config.schema`, an input and an output."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from omegaconf import MISSING

from rlhf.config.choices import Dtype, Engine, JudgeKind, SpecialTokens
from rlhf.config.fields import NOT_NEGATIVE, setting
from rlhf.config.schema import ComputeConfig, Config, GenerateConfig, ModelConfig, PairConfig, ScoreConfig
from rlhf.config.training import GenerativeConfig, RewardModelConfig


@dataclass
class FileTool:
    """What every tool can be told."""

    input: str = MISSING
    """The .json, .jsonl, .csv or .parquet file to read, or a data set on the Hub."""
    output: str = MISSING
    """The file to write: whole or not at all, and never over another one."""
    columns: Any = None
    """What columns of the input hold, where their names are not known: `{question: ask, context: [table,
    notes]}`."""
    take_over: Optional[str] = None
    """`HOST:PID` of a command that is gone and whose work towards this output is taken over, as a refusal
    names it."""
    seed: int = 42
    """Source of every random choice."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
    special_tokens: SpecialTokens = SpecialTokens.text
    """What prompts and answers spell of special tokens, such as `<|im_end|>`, is read as: `text`, or those
    `tokens`."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Machines."""


@dataclass
class JudgeConfig:
    """A ready reward model with one logit, a ready pairwise preference model, or a chat "
    "model that is asked.
    """

    kind: JudgeKind = RewardModelConfig.kind
    """`scalar`; `pairwise`: a causal LM that answers A or B; `generative`: a chat model asked in words."""
    generative: GenerativeConfig = field(default_factory=GenerativeConfig)
    """What a generative judge is asked, and how."""
    path: str = RewardModelConfig.path
    """Folder or Hub id; not read with `rule`."""
    url: Optional[str] = None
    """Base URL of a server that has the model of `path`, whose tokenizer is read here; null loads `path`."""
    rule: Optional[str] = None
    """`module:function` that maps (messages, response) to a number, in place of a model."""
    revision: Optional[str] = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    dtype: Dtype = Dtype.auto
    """Numeric type of the body; the score head is always fp32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass
class GenerateTool(FileTool):
    """`python -m rlhf.generate`: prompts in, n responses to each out."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy."""
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(engine=Engine.auto))
    """Sampling; responses of at most half the model's context where `max_new_tokens` does not fit in it."""


@dataclass
class ScoreTool(FileTool):
    """`python -m rlhf.score`: responses in, the same with rewards out."""

    reward_model: JudgeConfig = field(default_factory=JudgeConfig)
    """The judge."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scoring."""


@dataclass
class PairTool(FileTool):
    """`python -m rlhf.pair`: responses with rewards in, preference pairs out."""

    pair: PairConfig = field(default_factory=PairConfig)
    """Preference pairs."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Machines."""


class Version(Enum):
    """Which RewardBench."""

    v1 = 1
    v2 = 2


@dataclass
class RewardBenchTool(FileTool):
    """`python -m rlhf.rewardbench`: comparisons in, accuracies and sections out."""

    version: Version = Version.v1
    """1 compares two responses; 2 looks for the best of four, and has prompts with several right answers."""
    input: str = ""  # not MISSING, as of the other tools: the benchmark has data of its own
    """Data set or file with `prompt`, `chosen`, `rejected`, `subset`, in version 1 any known shape; empty:
    its own."""
    subsets: Optional[str] = None
    """JSON file of accuracies per subset, all in percent or all fractions: version 1's arithmetic alone."""
    reward_model: JudgeConfig = field(default_factory=JudgeConfig)
    """The judge."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scoring."""


@dataclass
class BestOfNTool(FileTool):
    """`python -m rlhf.bestofn`: responses of known quality in, what the judge's choices are worth out."""

    reward_model: JudgeConfig = field(default_factory=lambda: JudgeConfig(path=""))
    """The judge; without a path the rows' own rewards are judged."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scoring."""


class Benchmark(Enum):
    """Whose questions are answered, and in whose format."""

    alpaca_eval = "alpaca_eval"
    arena_hard = "arena_hard"


@dataclass
class AnswerTool(FileTool):
    """`python -m rlhf.answer`: a benchmark's questions in, one answer to each out."""

    benchmark: Benchmark = MISSING
    """`alpaca_eval` (2) or `arena_hard` (v0.1 and v2.0)."""
    run_dir: Optional[str] = None
    """Run folder whose best policy answers; in place of `model.path`."""
    name: Optional[str] = None
    """What the benchmark calls the model; null is the name of the run or model folder."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(path=""))
    """The model that answers."""
    generate: GenerateConfig = field(
        default_factory=lambda: GenerateConfig(
            engine=Engine.auto,
            n=1,
            temperatures=[0.0],
            max_prompt_tokens=6000,
        )
    )
    """Sampling: greedy, up to 2048 tokens."""


def as_config(tool: FileTool) -> Config:
    """The loop's config with the tool's sections in it: what the stages of the loop are told."""
    cfg = Config(
        seed=tool.seed,
        debug=tool.debug,
        special_tokens=tool.special_tokens,
        compute=tool.compute,
    )
    # A tool has the sections of its own stages; the others keep their defaults, and no stage reads them.
    for section in ("model", "generate", "score", "pair"):
        if hasattr(tool, section):
            setattr(cfg, section, getattr(tool, section))
    if hasattr(tool, "reward_model"):
        # A tool's judge is ready-made: it has fewer settings than one that a run may train.
        settings = vars(tool.reward_model)
        cfg.reward_model = RewardModelConfig(**settings)
    return cfg


@dataclass
class CheckConfig(Config):
    """`python -m rlhf.check`: a run's config, and how to show what is found."""

    # A class derived from `Config`, so `rlhf.command.line` does not refuse what is wrong: the table shows it.

    json: bool = False
    """Print one JSON document in place of a table."""


@dataclass
class PlanConfig(Config):
    """`python -m rlhf.plan`: a run's config, and what to plan it for."""

    # Nothing that a run is made of: such a command goes on with the settings that a run folder holds.

    hardware: Optional[str] = setting(None, compared=False)
    """`8xH100`, `cpu` (the cores here), `16xcpu`; null is this machine. rlhf/preflight/devices.py has the
    GPUs."""
    price: Optional[float] = setting(None, within=NOT_NEGATIVE, compared=False)
    """Of a GPU hour, in your currency (of a CPU, of the machine's hour); null shows no money."""
    prompt_tokens: Optional[float] = setting(None, compared=False)
    """Mean length of a prompt; null measures the prompts file or the run's samples, or assumes."""
    response_tokens: Optional[float] = setting(None, compared=False)
    """Mean length of a response; null measures the run's samples, or assumes."""
