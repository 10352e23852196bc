"""What each kind of stage costs in a run: the formulas of `rlhf.preflight.costs`, with the run's settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.config.choices import Engine, JudgeKind
from rlhf.config.schema import Config
from rlhf.data.files import resolved
from rlhf.errors import ConfigError
from rlhf.loop.judges import models_of
from rlhf.loop.shard_sizes import SMALLEST_SHARD
from rlhf.models.forward_tokens import forward_tokens
from rlhf.models.shape import Shape
from rlhf.models.weight_files import has_weights, saved_dtype
from rlhf.preflight import costs
from rlhf.preflight.costs import FP32, Engines, Texts, Time
from rlhf.preflight.devices import Machine
from rlhf.preflight.lengths import Lengths
from rlhf.preflight.memory import first_tokens, longest_pair
from rlhf.preflight.shapes import WORLD_JUDGE, WORLD_MODEL, shape_of
from rlhf.training.memory_forecast import HowTrained, Memory, dpo_memory, reference_memory

_WORLD_BATCH = 16
"""Conversations of a step of pre-training in the quickstart's world."""


@dataclass(frozen=True)
class StageForecast:
    """What one stage of a run costs.

    Attributes:
        name: its folder in the run, such as `iteration_001/generate`.
        tokens_in: that its models read, over all passes.
        tokens_out: that are sampled.
        time: seconds, from its start to its artifact.
        devices: GPUs that compute; 0 for a stage without a model.
        memory: bytes of one GPU at the peak, or of a CPU's memory, which all processes share; 0 without a
            model.
        disk: bytes that stay.
        checkpoints: bytes that are on the disk only while it goes on, the token ids of its data among them.
        note: what is not in the figures.
        spent: whether its seconds are no plan: the run has spent them.
    """

    name: str
    tokens_in: float = 0
    tokens_out: float = 0
    time: Time = field(default_factory=Time)
    devices: int = 0
    memory: float = 0
    disk: float = 0
    checkpoints: float = 0
    note: str = ""
    spent: bool = False

    @property
    def label(self) -> str:
        """Its name without the iteration's: `generate`, `held_out/generate`."""
        first, _, rest = self.name.partition("/")
        return rest if first.startswith("iteration_") else self.name


class StageCosts:
    """The costs of a run's stages, each by its name.

    Raises:
        ConfigError: how large a model is cannot be told, or an engine wants more GPUs than there are.
    """

    def __init__(self, cfg: Config, machine: Machine, lengths: Lengths) -> None:
        self._cfg = cfg
        self._machine = machine
        self._lengths = lengths
        self._shapes: dict[str, Shape] = {}
        self._bytes_each: dict[str, int] = {}
        for key, (path, _) in models_of(cfg).items():
            self._shapes[key], self._bytes_each[key] = self._model(key, path)
        for section in ("generate", "score"):
            wanted = getattr(cfg, section).tensor_parallel_size
            if not machine.is_cpu and wanted > machine.num_devices:
                raise ConfigError(
                    f"{section}.tensor_parallel_size={wanted}, but the plan is for {machine.name}. Lower it, "
                    "or name more GPUs in hardware."
                )

    def _model(self, key: str, path: str) -> tuple[Shape, int]:
        """The shape of a model of the config, and the bytes of a number that it computes with."""
        is_policy = key == "model.path"
        dtype = self._cfg.model.dtype.value if is_policy else self._cfg.reward_model.dtype.value
        if path.startswith("@"):
            shape = WORLD_MODEL if is_policy else WORLD_JUDGE
            return shape, 2 if dtype == "bfloat16" else FP32
        one_logit = not is_policy and self._cfg.reward_model.kind is JudgeKind.scalar
        known = shape_of(path, key, one_logit)
        if known.assumed:
            self._lengths.assumed.append(known.assumed)
        folder = resolved(path, key)
        if has_weights(folder):
            dtype = saved_dtype(folder, dtype)
        # 16 bits where nothing tells, as published models have.
        return known.shape, FP32 if dtype == "float32" else 2

    def texts(self, prompts: float, responses: float) -> Texts:
        """So many prompts with so many responses each, of mean length."""
        return Texts(prompts, responses, self._lengths.prompt_tokens, self._lengths.response_tokens)

    def single(self, name: str, rows: float, note: str = "") -> StageForecast:
        """A stage of one process without a model, that goes through some rows."""
        time = costs.starting(self._machine, "single") + Time(rows * costs.ROW_SECONDS)
        return StageForecast(name, time=time, note=note)

    def by_rule(
        self, name: str, num_responses: float, note: str = "without the rule's time"
    ) -> StageForecast:
        """A `score` stage that asks no model here; how long a rule or a server takes is not known before."""
        time = costs.starting(self._machine, "single") + Time(num_responses * costs.CANDIDATE_SECONDS)
        return StageForecast(name, time=time, note=note)

    def export(self, name: str) -> StageForecast:
        """The best policy in the dtype that people serve."""
        size = self._shapes["model.path"].parameters * self._bytes_each["model.path"]
        time = costs.starting(self._machine, "single", 2 * size) + costs.writing(size)
        return StageForecast(name, time=time, disk=size)

    def pair(self, name: str, num_prompts: float, n: int) -> StageForecast:
        """Pairs of n scored responses to each prompt."""
        time = costs.starting(self._machine, "single") + Time(num_prompts * n * costs.CANDIDATE_SECONDS)
        return StageForecast(name, time=time, disk=self.texts(num_prompts, 2).tokens * costs.TOKEN_BYTES)

    def generate(self, name: str, num_prompts: float, n: int, shard_size: int) -> StageForecast:
        """Sampling n responses per prompt."""
        section = self._cfg.generate
        machine = self._machine
        shape, bytes_each = self._shapes["model.path"], self._bytes_each["model.path"]
        tensor_parallel = 1 if machine.is_cpu else section.tensor_parallel_size
        workers = self._workers(tensor_parallel, num_prompts / shard_size)
        weights = shape.parameters * bytes_each
        if machine.is_cpu:
            memory = weights + self._cfg.compute.kv_cache_gib * 2**30
        else:
            # vLLM takes all that it may; where not even the weights fit, the need is shown.
            memory = max(weights, tensor_parallel * section.gpu_memory_utilization * machine.memory)
        most = section.vllm_args.get("max_num_seqs")
        if not isinstance(most, int) or most < 1:
            most = costs.most_sequences(machine)
        engines = Engines(workers, tensor_parallel, memory, section.max_new_tokens, bytes_each, most)
        texts = self.texts(num_prompts, n)
        time = costs.starting(machine, "sampling", weights) + costs.sampling(machine, shape, texts, engines)
        return StageForecast(
            name,
            tokens_in=num_prompts * texts.prompt_tokens,
            tokens_out=texts.of_responses,
            time=time,
            devices=self._on(workers * tensor_parallel),
            memory=self._held(memory / tensor_parallel, workers),
            disk=costs.TOKEN_BYTES * texts.of_responses,
        )

    def score(self, name: str, key: str, texts: Texts, in_pairs: bool = False) -> StageForecast:
        """What the judge of a config key reads; `in_pairs` is a pairwise one, which vLLM does not have."""
        engine = self._cfg.score.engine
        by_transformers = self._scored(name, key, texts, by_vllm=False)
        if engine is Engine.transformers or in_pairs:
            return by_transformers
        by_vllm = self._scored(name, key, texts, by_vllm=True)
        # On a CPU `auto` leaves little work to transformers, which start faster.
        is_open = engine is Engine.auto and self._machine.is_cpu
        if is_open and by_transformers.time.planned < by_vllm.time.planned:
            return by_transformers
        return by_vllm

    def _scored(self, name: str, key: str, texts: Texts, by_vllm: bool) -> StageForecast:
        section = self._cfg.score
        machine = self._machine
        shape, bytes_each = self._shapes[key], self._bytes_each[key]
        # vLLM keeps a prompt for its n responses; transformers reads it n times.
        texts = replace(texts, shared=by_vllm)
        tensor_parallel = section.tensor_parallel_size if by_vllm and not machine.is_cpu else 1
        workers = self._workers(tensor_parallel, texts.prompts / SMALLEST_SHARD)
        devices = self._on(workers * tensor_parallel)
        weights = shape.parameters * bytes_each
        time = costs.starting(machine, "sampling" if by_vllm else "reading", weights)
        # A head of one logit costs nothing.
        time += self._reading(costs.forward_flops(shape, texts, 0), devices, bytes_each)
        tokens = forward_tokens(section.batch_tokens, on_gpu=not machine.is_cpu)
        memory = reference_memory(shape, self._how(bytes_each, tokens, section.max_tokens)).peak
        if by_vllm and not machine.is_cpu:
            memory = max(weights / tensor_parallel, section.gpu_memory_utilization * machine.memory)
        return StageForecast(
            name, texts.tokens, time=time, devices=devices, memory=self._held(memory, workers)
        )

    def reference(self, name: str, texts: Texts) -> StageForecast:
        """Log-probabilities of responses under a policy."""
        shape, bytes_each = self._shapes["model.path"], self._bytes_each["model.path"]
        how = self._how(bytes_each, 0, self._cfg.dpo.max_length)
        if self._cfg.compute.zero_stage == 3:
            processes = self._ranks()
        else:
            processes = self._workers(1, texts.prompts / SMALLEST_SHARD)
            how = replace(how, ranks=1)
        how = self._with_budget(reference_memory, shape, how, self._cfg.reference.batch_tokens, processes)
        devices = self._on(processes)
        time = costs.starting(self._machine, "reading", shape.parameters * bytes_each)
        flops = costs.forward_flops(shape, texts, texts.of_responses)
        time += self._reading(flops, devices, bytes_each)
        memory = self._held(reference_memory(shape, how).peak, processes)
        return StageForecast(name, texts.tokens, time=time, devices=devices, memory=memory)

    def world(self, name: str) -> StageForecast:
        """Pre-training of the quickstart's base, which is what its world takes."""
        steps = self._cfg.world.base_steps
        texts = self.texts(steps * _WORLD_BATCH, 1)
        forward = costs.forward_flops(WORLD_MODEL, texts, texts.tokens)
        flops = costs.training_flops(forward, gradient_checkpointing=False)
        time = costs.starting(self._machine, "world") + Time(steps * costs.WORLD_STEP_SECONDS)
        time += costs.computing(self._machine, flops, costs.TRAINING_SHARE, 1, fp32=True)
        return StageForecast(name, texts.tokens, time=time, devices=1)

    def sft(self, name: str) -> StageForecast:
        """Fine-tuning on conversations, packed or not."""
        section = self._cfg.sft
        rows = self._lengths.rows["sft.data"] * (1 - section.held_out_share)
        row_tokens = min(self._lengths.row_tokens["sft.data"], section.max_length)
        texts = Texts(rows, 1, 0, row_tokens)
        items, item_tokens = rows, row_tokens
        if section.packing:
            items, item_tokens = texts.tokens / section.max_length, section.max_length
        how = self._how(
            self._bytes_each["model.path"], int(section.micro_batch_size * item_tokens), section.max_length
        )
        training = self._training(name, "model.path", section, texts, items, texts.tokens, how)
        return _with_token_files(training, _columns_of_sft(section.packing) * texts.tokens)

    def reward_model(self, name: str, num_pairs: float) -> StageForecast:
        """Training of a judge on pairs: at most, since what both sides begin with is read once."""
        section = self._cfg.reward_model
        side_tokens = min(self._lengths.row_tokens["reward_model.data"] / 2, section.max_length)
        texts = Texts(num_pairs * (1 - section.held_out_share), 2, 0, side_tokens)
        how = self._how(
            self._bytes_each["reward_model.path"],
            int(2 * section.micro_batch_size * side_tokens),
            2 * section.max_length,
        )
        training = self._training(name, "reward_model.path", section, texts, texts.prompts, 0, how)
        return _with_token_files(training, texts.tokens)

    def dpo(self, name: str, pairs: Texts) -> StageForecast:
        """DPO on pairs, whose prompt is read once."""
        section = self._cfg.dpo
        bytes_each = self._bytes_each["model.path"]
        how = self._how(bytes_each, 0, longest_pair(self._cfg))
        how = replace(how, lora_rank=section.lora.rank, gradient_checkpointing=section.gradient_checkpointing)
        shape = self._shapes["model.path"]
        how = self._with_budget(dpo_memory, shape, how, section.batch_tokens, how.ranks)
        head_tokens = pairs.of_responses
        training = self._training(name, "model.path", section, pairs, pairs.prompts, head_tokens, how)
        return _with_token_files(training, pairs.tokens)

    def raft(self, name: str, texts: Texts) -> StageForecast:
        """Fine-tuning on one response to each prompt, packed or not."""
        section = self._cfg.raft
        items = texts.prompts
        item_tokens = min(texts.tokens / max(1, texts.prompts), section.max_length)
        if section.packing:
            items, item_tokens = texts.tokens / section.max_length, section.max_length
        bytes_each = self._bytes_each["model.path"]
        how = self._how(bytes_each, int(section.micro_batch_size * item_tokens), section.max_length)
        training = self._training(name, "model.path", section, texts, items, texts.tokens, how)
        return _with_token_files(training, _columns_of_sft(section.packing) * texts.tokens)

    def _training(
        self,
        name: str,
        key: str,
        section: Any,
        texts: Texts,
        items: float,
        head_tokens: float,
        how: HowTrained,
    ) -> StageForecast:
        """A training over all ranks.

        Args:
            name: of the stage.
            key: of its model in the config.
            section: its settings.
            texts: what an epoch reads.
            items: of which `section.batch_size` make a step.
            head_tokens: for which the head over the vocabulary is computed.
            how: it is held in memory.
        """
        machine = self._machine
        shape, bytes_each = self._shapes[key], self._bytes_each[key]
        how = replace(how, gradient_checkpointing=section.gradient_checkpointing)
        is_lora = how.lora_rank > 0
        forward = section.num_epochs * costs.forward_flops(shape, texts, head_tokens)
        flops = costs.training_flops(forward, section.gradient_checkpointing, is_lora)
        devices = self._on(how.ranks)
        steps = costs.num_steps(items, section.batch_size, section.num_epochs)
        weights = FP32 * shape.parameters
        checkpoint = 0.0 if is_lora else costs.checkpoint_bytes(shape, bytes_each, how.zero_stage)
        time = costs.starting(machine, "training", weights)
        time += costs.computing(machine, flops, costs.TRAINING_SHARE, devices, bytes_each == FP32)
        time += Time(steps * costs.TRAINING_STEP_SECONDS)
        num_checkpoints = math.ceil(steps / section.save_steps)
        # The ranks hash a checkpoint together, and one process the model that is left.
        time += costs.writing(num_checkpoints * checkpoint, how.ranks) + costs.writing(weights)
        return StageForecast(
            name,
            tokens_in=section.num_epochs * texts.tokens,
            time=time,
            devices=devices,
            memory=self._held(dpo_memory(shape, how).peak, how.ranks),
            disk=weights,
            checkpoints=self._cfg.compute.num_checkpoints * checkpoint,
        )

    def _reading(self, flops: float, devices: int, bytes_each: int) -> Time:
        return costs.computing(self._machine, flops, costs.READING_SHARE, devices, bytes_each == FP32)

    def _with_budget(
        self,
        formula: Callable[[Shape, HowTrained], Memory],
        shape: Shape,
        how: HowTrained,
        said: int | None,
        processes: int,
    ) -> HowTrained:
        """The same with the budget of tokens that is said, or that the stage would begin with here."""
        if said is None:
            room = self._machine.memory
            if self._machine.is_cpu:
                room /= processes
            said = first_tokens(formula, shape, how, room)
        return replace(how, batch_tokens=said)

    def _how(self, bytes_each: int, batch_tokens: int, longest: int) -> HowTrained:
        compute = self._cfg.compute
        return HowTrained(
            bytes_per_weight=bytes_each,
            batch_tokens=batch_tokens,
            longest_pair=longest,
            ranks=self._ranks(),
            zero_stage=compute.zero_stage,
            offload_optimizer=compute.offload_optimizer,
            on_gpu=not self._machine.is_cpu,
        )

    def _workers(self, tensor_parallel: int, num_shards: float) -> int:
        """Engines or judges side by side."""
        wanted = self._cfg.compute.num_inference_workers
        room = max(1, self._machine.num_devices // tensor_parallel)
        if self._machine.is_cpu:
            workers = wanted or 1
        else:
            workers = min(wanted or room, room)
        return max(1, min(workers, math.ceil(num_shards)))

    def _ranks(self) -> int:
        wanted = self._cfg.compute.num_training_ranks
        if self._machine.is_cpu:
            return wanted or 1
        return min(wanted or self._machine.num_devices, self._machine.num_devices)

    def _on(self, processes: int) -> int:
        """Devices that so many processes compute on."""
        return 1 if self._machine.is_cpu else processes

    def _held(self, of_one: float, processes: int) -> float:
        """Bytes of one GPU, or of a CPU's memory, which all processes share."""
        return of_one * processes if self._machine.is_cpu else of_one


def _columns_of_sft(packing: bool) -> int:
    """Ids on the disk of each token: itself and its label, and both once more where rows are packed."""
    return 4 if packing else 2


def _with_token_files(training: StageForecast, num_ids: float) -> StageForecast:
    """A training with the file of its data, which is on the disk beside its checkpoints."""
    return replace(training, checkpoints=training.checkpoints + costs.TOKEN_ID_BYTES * num_ids)
