"""The schema of every experiment, and the only home of defaults.

The defaults are the paper's (arXiv 2405.07863, section 4); what an experiment changes stands in its YAML
file. A docstring stands under each field; `docs/configuration.md` is generated from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from rlhf.config.choices import (
    Action,
    Device,
    Dtype,
    Engine,
    KeptPolicies,
    Launcher,
    Method,
    Sampled,
    Seeds,
    SpecialTokens,
    Strategy,
    Truncated,
)
from rlhf.config.fields import (
    CHECKED_WITH_OTHERS,
    NONE_OR_MORE,
    NOT_NEGATIVE,
    POSITIVE_SHARE,
    SEALED_CHECKPOINTS,
    SEED,
    SHARE,
    SOME_OR_ALL,
    ZERO_STAGE,
    setting,
)
from rlhf.config.training import DpoConfig, RaftConfig, ReplayConfig, RewardModelConfig, SftConfig


@dataclass
class ModelConfig:
    """The initial policy π0, or what `sft` starts from."""

    path: str = "meta-llama/Meta-Llama-3-8B-Instruct"
    """Folder, Hub id, or `@stage/…` for something this run makes."""
    revision: Optional[str] = None
    """Branch, tag or commit on the Hub; null is the main branch."""
    dtype: Dtype = Dtype.auto
    """Numeric type the policy is sampled, scored and trained in; weights between iterations stay fp32 all the
    same."""
    trust_remote_code: bool = setting(False, code=True)
    """Run Python code that comes with the model."""


@dataclass
class PromptsSettings:
    """How prompts are split: what the stage is told."""

    num_held_out: int = 256
    """Prompts that no iteration trains on, at most."""
    columns: Any = setting(None, later=True)
    """What columns of the file hold, where their names are not known: `{question: ask, context: [table,
    notes]}`. Keys are question, context, system, history, answer, chosen and rejected; values are a column or
    a list of them. Null: what the names say."""


@dataclass
class PromptsConfig(PromptsSettings):
    """The prompts of all iterations and of the evaluation."""

    # The article's own sets: a prompt never comes twice, and each iteration has 20,000.
    # Text, or a list of texts: OmegaConf knows no type that is both.
    path: Any = "RLHFlow/iterative-prompt-v1-iter{iteration}-20K"
    """JSON, JSONL, CSV or Parquet file, data set on the Hub (`owner/name[@revision][:[subset/]split]`, split
    train if not said; the defaults are pinned, of others the main branch is read), or `@stage/…`; or a list
    of them. With `{iteration}` in it each iteration has a set of its own, else they share this one. Given
    pairs (`pair.data`) with a `held_out_path` need none: null, or the default, which is then not read."""
    held_out_path: Optional[str] = None
    """The prompts to evaluate on, as `path`; null cuts them off `path` (off iteration 1's) before anything
    else."""
    num_per_iteration: int = 20000
    """Prompts of one iteration, in disjoint slices of one set; of sets per iteration at most so many."""


@dataclass
class GenerateSettings:
    """Sampling n responses per prompt: what the stage is told."""

    engine: Engine = Engine.vllm
    """`vllm`, or `transformers` where vLLM is missing."""
    n: int = 8
    """Responses per prompt (paper: 8)."""
    # The article says both temperatures; its scripts sample at 1.0 alone (experiment rlhf_workflow_scripts).
    temperatures: list[float] = field(default_factory=lambda: [1.0, 0.7])
    """The n responses are shared out evenly over these (paper: n/2 at 1.0, n/2 at 0.7)."""
    top_p: float = setting(1.0, within=POSITIVE_SHARE)
    """Nucleus mass in (0, 1]; 1 is off (paper)."""
    top_k: int = setting(0, within=NOT_NEGATIVE)
    """Keep the k likeliest tokens; 0 is off (paper)."""
    max_new_tokens: int = 2048
    """Tokens of a response before it is cut (paper: 2048)."""
    max_prompt_tokens: int = 1000
    """Longer prompts are dropped and counted (paper: 1000)."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Terminators besides the tokenizer's eos, the template's end of turn and the model's
    generation_config."""
    shard_size: int = 256
    """Prompts in one shard, at most: what a kill can cost, and what an idle worker takes next. Cut finer
    where there are several GPUs and too few prompts to give each some shards, as the run's first iteration
    finds them; held-out ones likewise. Cut coarser, and said so, where a folder would hold more than 5,000
    shards."""
    overlap_shards: Optional[bool] = setting(None, compared=False, later=True)
    """Sample the next shard's first responses beside the longest of the last one, so that an engine is never
    half empty; vLLM only. Null: on GPUs. On a CPU shards stay apart, so that `logprob` too has the same last
    bits after any kill; the token ids are the same either way."""
    seeds: Seeds = setting(Seeds.request, later=True)
    """`request`: each response has a seed of its own, whatever is sampled beside it. `engine`: the engine has
    one for all, which spares a GPU a loop over the requests at every token; after a kill, or with other
    workers, the same prompts get other responses, none lost or doubled. docs/recipe.md has both."""
    batch_invariant: bool = setting(False, later=True)
    """vLLM's batch-invariant mode: on a GPU, too, a response does not depend on what is sampled beside it.
    Costs 0.6 to 31 % of the throughput; needs a GPU of compute capability 8.0 or more. Refused on a CPU,
    which has no need of it."""
    tensor_parallel_size: int = setting(1, compared=False)
    """GPUs that share one vLLM engine."""
    gpu_memory_utilization: float = setting(0.9, within=POSITIVE_SHARE, compared=False)
    """Share of GPU memory vLLM may take, in (0, 1]."""
    vllm_args: dict[str, Any] = setting(factory=dict, code=True)
    """Passed on to `vllm.LLM`; what contradicts other settings (dtype, seed, …) is refused, and
    `max_model_len` limits prompts too."""


@dataclass
class GenerateConfig(GenerateSettings):
    """Sampling n responses per prompt."""

    policy: Sampled = Sampled.previous
    """`previous` samples from the policy trained last (online), `initial` always from π0 (offline
    baseline)."""


@dataclass
class ScoreSettings:
    """Scoring responses with the judge: what the stage is told, whatever the judge."""

    # An artifact's identity names the engine that made it, and one judge has one engine in a run
    # (`rlhf.run.engine_choice`): what was made by a named one goes on under `auto`.
    engine: Engine = Engine.auto
    """`vllm`, or `transformers`: the same scores up to rounding. `auto` is vLLM where it is installed and
    knows the judge, but for so little work on a CPU that its start is not worth it; the stage says which, and
    what is begun in one is not finished in the other."""
    max_tokens: int = 4096
    """Longer conversations lose tokens on the left, and are counted."""
    batch_tokens: Optional[int] = setting(None, compared=False)
    """Padded tokens of one forward pass; in vLLM real ones. null: 2048 on a CPU, 16384 on a GPU and in a
    request to `reward_model.url`."""
    tensor_parallel_size: int = setting(1, compared=False)
    """GPUs that share one vLLM engine."""
    gpu_memory_utilization: float = setting(0.9, within=POSITIVE_SHARE, compared=False, later=True)
    """Share of GPU memory vLLM may take, in (0, 1]."""
    concurrency: int = setting(8, compared=False)
    """Requests that one worker has on their way to `reward_model.url`, of up to `batch_tokens` each."""
    timeout_seconds: float = setting(120.0, compared=False)
    """Silence of the server after which a request is sent again."""
    retry_seconds: float = setting(600.0, within=NOT_NEGATIVE, compared=False)
    """How long a request that fails (server down, HTTP 408, 429, 5xx) is sent again; then the stage fails,
    and resumes by the same command."""


@dataclass
class ScoreConfig(ScoreSettings):
    """Scoring responses with the judge."""

    opponents: Optional[int] = setting(None, within=CHECKED_WITH_OTHERS)
    """Pairwise judges only: responses of the same prompt that each is compared with, at least so many (2 or
    more); null is all others, n·(n − 1) calls per prompt."""


@dataclass
class PairSettings:
    """Making preference pairs of scored candidates: what the stage is told."""

    strategy: Strategy = Strategy.best_worst
    """Paper: best_worst. `best_sigma` rejects the response nearest to mean − 2 standard deviations of the
    prompt's scores (arXiv 2502.16825), for n of 32 and more."""
    truncated: Truncated = Truncated.never_chosen
    """Whether a response cut at the token limit may be chosen, may only be rejected, or is left out."""
    length_penalty: float = setting(0.0, within=NOT_NEGATIVE)
    """λ of r = r̂ − λ·|a|, |a| in characters; the paper's concise variant has 0.001."""
    min_margin: float = setting(0.0, within=NOT_NEGATIVE)
    """Pairs whose penalised scores differ by less are dropped and counted; equal scores always are."""
    num_candidates: Optional[int] = setting(None, within=CHECKED_WITH_OTHERS)
    """Use only the first so many of the n candidates (at least 2); null uses all."""
    max_pairs_per_prompt: int = 1
    """best_worst only: then the second best with the second worst, and so on."""


@dataclass
class PairConfig(PairSettings):
    """Making preference pairs of scored candidates."""

    data: Optional[str] = None
    """Given preference pairs (as `reward_model.data`) in place of sampled ones: offline DPO, with
    num_iterations=1 and no training prompts."""
    columns: Any = setting(None, later=True)
    """What columns of `data` hold (as `prompts.columns`)."""


@dataclass
class ReferenceConfig:
    """Log-probabilities under the reference policy, computed once."""

    batch_tokens: Optional[int] = setting(None, compared=False)
    """Tokens of one forward pass, a prompt counted once for its responses. null finds what memory allows, up
    to 1536 on a CPU and 16384 on a GPU, and halves it when memory runs out."""


@dataclass
class EvaluateConfig:
    """Held-out evaluation of π0 and every iterate."""

    n: int = 4
    """Samples per held-out prompt."""
    greedy: int = setting(0, within=NOT_NEGATIVE, later=True)
    """So many held-out prompts, as drawn, that every policy also answers at temperature 0, to be read side by
    side in the report; 0: none."""
    temperature: float = setting(1.0, within=NOT_NEGATIVE)
    """Sampling temperature; 0 wants n = 1. At another than 1 (or with `generate.top_p`, `top_k`) the table
    has a mean log-ratio to π0 in place of the KL."""
    gold: Optional[str] = setting(None, code=True)
    """`module:function` that maps (messages, response) to 0 or 1: a yardstick that the loop never sees."""
    judges: dict[str, str] = field(default_factory=dict)
    """Other judges, a name and a path as `reward_model.path` each, with `@revision` if wanted, or a Python
    function as `reward_model.rule`: the training judge cannot reveal that it is being hacked."""


@dataclass
class GatesConfig:
    """What a run must pass while it goes on, each `warn`, `stop` or `ignore`: docs/gates.md. No part of any
    artifact, so limits may change at any time.
    """

    # The one gate that stops by itself: the whole training would be anchored to something else.
    first_loss: Action = Action.stop
    """The first DPO loss where the policy is the reference: ln 2, or what `dpo.loss` is at equal policies,
    where that is known (docs/gates.md)."""
    judge: Action = setting(Action.warn, later=True)
    """A judge that the run has trained is at chance: by its last losses or its held-out accuracy, or because
    most of what it read was cut."""
    grad_norm: Action = Action.warn
    """A step's gradient norm beside the median of the steps before it, from the 11th step on."""
    max_grad_growth: float = setting(100.0, within=NOT_NEGATIVE)
    """So many times that median."""
    accuracy: Action = Action.warn
    """Share of pairs whose chosen response has the higher implicit reward, over the later half of the
    steps."""
    min_accuracy: float = setting(0.5, within=SHARE)
    """At least; 0.5 is chance."""
    truncated: Action = Action.warn
    """Share of an iteration's sampled responses that were cut at the token limit."""
    max_truncated: float = setting(0.2, within=SHARE)
    """At most."""
    same_candidates: Action = Action.warn
    """Share of an iteration's prompts whose candidates are alike in text or score, so that they give no
    pair."""
    max_same_candidates: float = setting(0.5, within=SHARE)
    """At most."""
    length: Action = Action.warn
    """Mean tokens of the held-out responses beside π0's."""
    max_length_growth: float = setting(1.5, within=NOT_NEGATIVE)
    """So many times π0's."""
    kl: Action = Action.warn
    """KL to π0 on the held-out prompts, or the mean log-ratio where `evaluate.temperature`, `generate.top_p`
    or `top_k` make it no KL."""
    # Far beyond what the article's β and rate lead to; best-of-n stays below log n.
    max_kl: float = setting(50.0, within=NOT_NEGATIVE)
    """Nats per response."""
    second_judge: Action = Action.warn
    """A judge of `evaluate.judges`, or `evaluate.gold`, falls while the training judge rises: since the
    policy before, or since π0."""
    max_fall: float = setting(2.0, within=NOT_NEGATIVE)
    """So many standard errors, of differences per prompt."""


@dataclass
class WorldConfig:
    """The quickstart's synthetic world: tokenizer, base model, data, built from the seed."""

    enabled: bool = False
    """Build it as the run's first stage."""
    # The smallest world in which π0 is far from perfect, the judge is fallible, and a run takes minutes.
    num_base_examples: int = 16000
    """Clean conversations the base is pre-trained on."""
    num_sft_examples: int = 1600
    """Conversations of which 45 % have a wrong answer."""
    num_preferences: int = 2500
    """Synthetic preference pairs, 5 % of them the wrong way round."""
    num_judge_prompts: int = 800
    """Prompts for the judge's on-policy pairs."""
    num_prompts: int = 1920
    """Prompts of all iterations together."""
    num_held_out: int = 192
    """Prompts of the evaluation."""
    base_steps: int = 1000
    """Optimizer steps of pre-training, 16 conversations each."""
    base_learning_rate: float = 2.0e-3
    """Peak."""
    save_steps: int = setting(100, compared=False)
    """Pre-training steps between checkpoints."""


@dataclass
class ComputeConfig:
    """Where it runs. Recorded, and never a reason to redo a finished stage."""

    launcher: Launcher = setting(Launcher.local, later=True)
    """`local`: this machine; `ray`: the nodes of a Ray cluster that is up already (docs/cluster.md).
    `compute=ray` is short for `compute.launcher=ray`."""
    ray_address: Optional[str] = setting(None, later=True)
    """Address of the cluster's head, such as `10.0.0.1:6379`; null is what RAY_ADDRESS says, or the cluster
    that this machine belongs to."""
    num_nodes: int = setting(1, later=True)
    """Nodes that must be there before the first stage of a command begins. Then they may come and go."""
    node_wait_seconds: float = setting(1800.0, within=NOT_NEGATIVE, later=True)
    """So long a stage waits for the nodes it needs before the run stops, to be resumed. 0 is for ever."""
    device: Device = Device.auto
    """`auto`, `cpu` or `cuda`."""
    num_gpus: Optional[int] = setting(None, within=NONE_OR_MORE)
    """GPUs to use, on a cluster of each node; null is all that are visible. Where there are fewer, what
    config files prefer of this and the next two is lowered, and what the command line says is refused."""
    num_inference_workers: Optional[int] = setting(None, within=SOME_OR_ALL)
    """Workers that sample and score, on a cluster of each node, each with GPUs of its own; null is one per
    GPU (per tensor-parallel group), one on a CPU."""
    num_training_ranks: Optional[int] = setting(None, within=SOME_OR_ALL)
    """Ranks that train, on a cluster of all nodes together, each with a GPU of its own; null is one per GPU,
    one on a CPU (of each node)."""
    num_threads: Optional[int] = setting(None, within=SOME_OR_ALL)
    """CPU threads of one worker; null shares the cores out."""
    zero_stage: int = setting(2, within=ZERO_STAGE)
    """DeepSpeed ZeRO stage: 2 shards gradients and optimizer, 3 the weights too."""
    offload_optimizer: bool = False
    """Keep the optimizer's states in CPU memory."""
    preload: bool = True
    """Start workers from a process that has the heavy imports done."""
    # Four hours: the slowest shard of the defaults on one small GPU, with room to spare.
    hang_seconds: float = setting(14400.0, within=NOT_NEGATIVE)
    """A stage whose worker says nothing for so long (no shard, no step) is stopped; the same command resumes
    it. Ranks wait for each other as long. 0 is for ever. Must be longer than a shard takes: on a slow machine
    raise it, or lower `generate.shard_size`."""
    num_checkpoints: int = setting(2, within=SEALED_CHECKPOINTS, later=True)
    """Checkpoints of a training that are kept while it goes on: the newest, and those before it in case it
    is damaged. None is left of a finished one."""
    kv_cache_gib: int = 1
    """vLLM on a CPU: memory for its cache, in GiB."""


@dataclass
class Config:
    """Everything `python -m rlhf.iterate` can be told."""

    run_dir: Optional[str] = None
    """The run folder; null is `runs/<experiment>`. Alone, it goes on with the settings that the run holds."""
    until: Optional[str] = setting(None, compared=False, later=True)
    """Stop when this stage is finished: `reward_model`, `iteration_002/dpo`, `held_out/score`, `judge`; null
    runs to the end. Never taken from the settings that a run holds."""
    take_over: Optional[str] = setting(None, compared=False, later=True)
    """`HOST:PID` of a driver that is gone and that a refusal names: takes the run folder over from it
    (docs/file_systems.md). Does no harm where nobody has it, and is never taken from the settings that a run
    holds."""
    seed: int = setting(42, within=SEED)
    """Source of every random choice."""
    num_iterations: int = 3
    """Online iterations (paper: 3)."""
    reuse: list[str] = field(default_factory=list)
    """Run folders whose finished artifacts are taken when their fingerprint is the same; a sweep adds its
    siblings."""
    keep_policies: KeptPolicies = setting(KeptPolicies.all, compared=False, later=True)
    """`best_and_last`: after each iteration the weights of policies that are neither are removed, as
    `rlhf.gc` does it (docs/retention.md); `all`: none."""
    report_to: list[str] = field(default_factory=list)
    """Trackers that are told what the run makes, any of `tensorboard`, `trackio`, `wandb` (docs/trackers.md);
    none by default."""
    debug: bool = False
    """Show tracebacks for the user's errors too."""
    special_tokens: SpecialTokens = setting(SpecialTokens.text, later=True)
    """What prompts and answers spell of special tokens, such as `<|im_end|>`, is read as: `text`, or those
    `tokens`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The initial policy."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """What it is asked."""
    sft: SftConfig = field(default_factory=SftConfig)
    """Optional supervised fine-tuning."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The judge."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """Sampling."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scoring."""
    pair: PairConfig = field(default_factory=PairConfig)
    """Preference pairs."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    """Reference log-probabilities."""
    method: Method = setting(Method.dpo, later=True)
    """How an iteration trains: `dpo` on pairs, or `raft`, supervised on each prompt's best response."""
    dpo: DpoConfig = field(default_factory=DpoConfig)
    """Training on pairs."""
    replay: ReplayConfig = setting(factory=ReplayConfig, later=True)
    """Pairs of earlier iterations, and given ones, beside an iteration's own."""
    raft: RaftConfig = setting(factory=RaftConfig, later=True)
    """Training on best responses."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Held-out evaluation."""
    gates: GatesConfig = field(default_factory=GatesConfig)
    """What the run must pass."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """The quickstart's own world."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Machines."""
