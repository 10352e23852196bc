"""What each stage is told: its section of the config, and what it needs of others.

Everything in such a config is part of the stage's fingerprint, but for fields that are not compared
(`rlhf.config.fields.setting`). A field added here, or a default changed, makes every finished artifact of the
stage another one; so fields that only some judges have stand in a class of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from rlhf.config.choices import ChatApi, JudgeKind, SpecialTokens
from rlhf.config.fields import setting
from rlhf.config.schema import (
    ComputeConfig,
    Config,
    GenerateSettings,
    PairSettings,
    PromptsSettings,
    ReferenceConfig,
    ScoreSettings,
    WorldConfig,
)
from rlhf.config.training import DpoConfig, RaftConfig, RewardModelSettings, SftSettings

__all__ = ["PairSettings", "WorldConfig"]


@dataclass
class StageCompute(ComputeConfig):
    """Where a stage runs; recorded, never compared."""

    found_budget: Optional[dict[str, Any]] = None
    """With `batch_tokens: null`, what the stage's last artifact of this run says of it
    (`rlhf.training.token_budget`)."""


@dataclass
class PromptsStage(PromptsSettings):
    """Splitting prompts."""

    # Not compared: where it is false, what is written is the same as where prompts are left to train on.
    needs_training: bool = setting(True, compared=False)
    """Whether prompts must be left to train on; with given pairs they need not."""


@dataclass
class GenerateStage(GenerateSettings):
    """Sampling of one iteration, or of held-out prompts."""

    dtype: str = "auto"
    """Of the policy: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the policy."""
    iteration: int = 0
    """Which one; seeds depend on it."""
    slice: Optional[list[int]] = None
    """Rows [start, stop) of the prompts; null is all."""
    trusted_judges: list[str] = setting(factory=list, compared=False)
    """Of the judges whose templates must take a prompt, those whose Python code may run."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What contents spell of special tokens: text, or those tokens."""


@dataclass
class ScoreStage(ScoreSettings):
    """Scoring with a reward model: loaded, or behind a server."""

    dtype: str = "auto"
    """Of the judge's body: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the judge."""
    rule: Optional[str] = None
    """`module:function` in place of a model (`RuleStage`)."""
    url: Optional[str] = setting(None, compared=False)
    """Base URL of the server that has the model; null loads it."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What contents spell of special tokens: text, or those tokens."""


@dataclass
class RuleStage(ScoreStage):
    """Scoring with a Python function."""

    rule_source: str = ""
    """Digest of the module's source: another source is another rule."""


@dataclass
class ComparisonStage(ScoreStage):
    """Scoring with a pairwise preference model."""

    kind: JudgeKind = JudgeKind.pairwise
    """Always `pairwise`."""
    opponents: Optional[int] = None
    """Responses of the same prompt that each is compared with, at least; null is all others."""


@dataclass
class GenerativeStage(ScoreStage):
    """Scoring with a language model that is asked in words."""

    kind: JudgeKind = JudgeKind.generative
    """Always `generative`."""
    judge_file: dict[str, Any] = field(default_factory=dict)
    """What it is asked and how its answer is read (`rlhf.data.judge_files`): the file's content."""
    opponents: Optional[int] = None
    """Where it compares: responses of the same prompt that each is compared with, at least; null is all."""
    served_model: Optional[str] = None
    """What the server at `url` calls it; null loads the input `judge`."""
    api: ChatApi = ChatApi.chat
    """Of a server."""
    temperature: float = 0.0
    """Of its answers."""
    max_new_tokens: int = 1024
    """Of an answer."""
    body: Optional[dict[str, Any]] = None
    """More of a request's body."""
    api_key_variable: Optional[str] = setting(None, compared=False)
    """Name of the environment variable with the key."""
    prompt_price: Optional[float] = setting(None, compared=False)
    """Of a million tokens that it reads; null is not known."""
    answer_price: Optional[float] = setting(None, compared=False)
    """Of a million tokens that it writes."""


@dataclass
class MixStage:
    """The weighted sum of several judges."""

    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each judge, by name."""


@dataclass
class GivenPairsStage:
    """Given preference pairs as training pairs."""

    dtype: str = "auto"
    """Of the policy, which is not loaded: part of the fingerprint since the first version."""
    trust_remote_code: bool = False
    """Run Python code that comes with the policy's tokenizer."""
    columns: Any = setting(None, later=True)
    """What columns of the file hold."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What contents spell of special tokens: text, or those tokens."""


@dataclass
class ReferenceStage(ReferenceConfig):
    """Log-probabilities of responses under a frozen model."""

    dtype: str = "auto"
    """Of the model: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    max_length: Optional[int] = None
    """Tokens of prompt and response, as DPO will cut them; null takes responses whole."""


@dataclass
class DpoStage(DpoConfig):
    """DPO of one iteration."""

    dtype: str = "auto"
    """Of the policy: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the policy."""


@dataclass
class SftStage(SftSettings):
    """Supervised fine-tuning."""

    dtype: str = "auto"
    """Of the model: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What contents spell of special tokens: text, or those tokens."""


@dataclass
class RaftStage(RaftConfig):
    """RAFT of one iteration."""

    dtype: str = "auto"
    """Of the policy: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the policy."""
    pairing: PairSettings = field(default_factory=PairSettings)
    """Which responses may be chosen, and by what score."""


@dataclass
class RewardModelStage(RewardModelSettings):
    """Training of a Bradley-Terry reward model."""

    dtype: str = "auto"
    """Of the body: `auto`, `float32` or `bfloat16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What contents spell of special tokens: text, or those tokens."""


@dataclass
class PreferenceModelStage(RewardModelStage):
    """Training of a pairwise preference model."""

    kind: JudgeKind = JudgeKind.pairwise
    """Always `pairwise`."""


@dataclass
class ExportStage:
    """A policy as people serve it."""

    dtype: str = "auto"
    """Of the exported weights."""
    card: dict[str, Any] = field(default_factory=dict)
    """Facts of the model card (`rlhf.loop.card`)."""


@dataclass
class DatasetStage:
    """A split of a data set of the Hub."""

    repo: str = ""
    """`owner/name`."""
    commit: str = ""
    """Which snapshot of it."""
    subset: Optional[str] = None
    """Its configuration; null is the default one."""
    split: str = "train"
    """Which split."""


@dataclass
class ReadStage:
    """Rows of a plain file as shards, for the tools on files."""

    what: str = "prompts"
    """What the rows are; a name in `rlhf.stages.read`."""
    shard_size: int = 256
    """Rows of one shard."""
    columns: Any = setting(None, later=True)
    """What columns of the file hold."""


@dataclass
class TrackStage:
    """Telling a tracker what a run has made."""

    tracker: str = ""
    """One of `rlhf.config.choices.TRACKERS`."""
    run_folder: str = ""
    """Whose points it is told, and in which its files lie."""
    units: list[dict[str, Any]] = field(default_factory=list)
    """Everything there is to tell (`rlhf.view.history.Unit`); what it has been told already is left out."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The run's."""


@dataclass
class PreflightStage:
    """What tokenizers and templates say before a run; no stage of the loop, and no artifact."""

    cfg: Config = field(default_factory=Config)
    """The run's config."""
    folders: dict[str, str] = field(default_factory=dict)
    """Model folders from outside, by config key."""
    prompts: list[list[dict[str, str]]] = field(default_factory=list)
    """Some of the run's prompts, as messages."""


@dataclass
class CallRuleStage:
    """One call of a Python function of a run; no stage of the loop, and no artifact."""

    key: str = ""
    """The config key that names it."""
    rule: str = ""
    """`module:function`."""
    messages: Optional[list[dict[str, str]]] = None
    """A prompt that it will be asked about; null where none is here yet."""
