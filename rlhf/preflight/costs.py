"""What stages cost on paper: every formula and constant of `rlhf.plan`, in tokens, FLOPs, bytes and seconds.

Each piece of work has two times. The *floor* is what the data sheet allows: FLOPs over peak FLOP/s, or bytes
over bandwidth where those take longer. The *planned* time takes the share of these peaks that is reached, and
adds what is no arithmetic: starts, the host's work between passes, files. docs/performance.md explains them.

P are the parameters, L the layers, A the numbers of all query heads together, T the tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf.models.shape import Shape
from rlhf.preflight.devices import Machine
from rlhf.preflight.shapes import layer_parameters

# Shares of the peak that are reached. On GPUs nobody has measured this package yet.
TRAINING_SHARE = 0.40
"""Of peak FLOP/s in training. Assumption; Llama 3 reached 0.38 to 0.43 on H100s (arXiv 2407.21783, table
4)."""
READING_SHARE = 0.45
"""Of peak FLOP/s where tokens are only read (prefill, scoring, reference). Assumption."""
BANDWIDTH_SHARE = 0.6
"""Of the memory's bandwidth while tokens are sampled one after another. Assumption."""
CPU_SHARE = 0.6
"""Of a CPU's peak, whatever it does: measured for matrix products of a 20 M model on two cores."""

# What the host does between passes, in seconds.
SAMPLING_STEP_SECONDS = 3e-3
"""Per step of an engine: its scheduler. Assumption; of the quickstart on two cores."""
SAMPLING_SEQUENCE_SECONDS = 1e-5
"""Per step and response that is being sampled, each with a random generator of its own. Assumption."""
SAMPLING_SEQUENCE_SECONDS_CPU = 3e-5
"""The same on a CPU: of the quickstart on two cores."""
TRAINING_STEP_SECONDS = 0.04
"""Per optimizer step, of Trainer and DeepSpeed: of the quickstart on two cores."""
WORLD_STEP_SECONDS = 0.013
"""Per step of the world's pre-training, where one process trains without DeepSpeed: of the quickstart on two
cores."""
CANDIDATE_SECONDS = 2.5e-6
"""Per response that is paired. Assumption: 1 M prompts × 8 in 20 s."""
ROW_SECONDS = 1e-4
"""Per row of a data set or prompt file that is read, rendered and written. Assumption."""

# Seconds until a stage's processes compute their first batch, without those that loading weights takes.
START_SECONDS = {"single": 0.5, "world": 5.0, "reading": 15.0, "sampling": 60.0, "training": 40.0}
"""On GPUs: imports, CUDA's context, an engine's profiling and graphs. Assumptions."""
START_SECONDS_CPU = {"single": 0.1, "world": 3.0, "reading": 0.5, "sampling": 1.5, "training": 1.0}
"""On CPUs: of the quickstart on two cores, where the imports are done before, but for those of `world`, the
first stage of a run."""

# Files.
READ_BYTES_PER_SECOND = 2e9
"""Of weights that are loaded, once for all processes. Assumption: one NVMe disk."""
WRITE_BYTES_PER_SECOND = 1e9
"""Of weights and checkpoints. Assumption: one NVMe disk, with fsync."""
HASH_BYTES_PER_SECOND = 1.9e9
"""SHA-256 of one core: measured."""
TOKEN_BYTES = 8
"""On disk, of a token of a response: its id and its text."""
TOKEN_ID_BYTES = 4
"""In the file of a training's data (`rlhf.training.tokens`)."""
ADAM_BYTES = 12
"""Of a parameter in a checkpoint: fp32 weights, and both of Adam's moments."""
FP32 = 4
"""Bytes of a number; weights between iterations have these."""

MAX_SEQUENCES_CPU = 512
"""Responses that an engine samples together: on a CPU `rlhf.generation.vllm_sampler` says so."""
MAX_SEQUENCES = 256
"""On a GPU: vLLM 0.32's own for A100s, and for GPUs with less than 70 GiB."""
MAX_SEQUENCES_LARGE = 1024
"""On other GPUs from 70 GiB on, likewise."""


@dataclass(frozen=True)
class Time:
    """Seconds as planned, and the least that the data sheet allows."""

    planned: float = 0.0
    floor: float = 0.0

    def __add__(self, other: Time) -> Time:
        """One after the other."""
        return Time(self.planned + other.planned, self.floor + other.floor)


@dataclass(frozen=True)
class Texts:
    """Prompts with responses: so many `prompts`, each with `responses`; lengths are means, in tokens.

    With `shared`, a prompt is read once for its responses, else once for each.
    """

    prompts: float
    responses: float
    prompt_tokens: float
    response_tokens: float
    shared: bool = True

    @property
    def tokens(self) -> float:
        """That are read."""
        reads = 1 if self.shared else self.responses
        return self.prompts * (reads * self.prompt_tokens + self.responses * self.response_tokens)

    @property
    def of_responses(self) -> float:
        """Tokens of the responses alone."""
        return self.prompts * self.responses * self.response_tokens

    @property
    def attended(self) -> float:
        """Over the tokens that are read, the sum of how many each looks at: itself and what is before it."""
        reads = 1 if self.shared else self.responses
        in_a_prompt = self.prompt_tokens**2 / 2
        in_a_response = self.response_tokens * self.mean_context
        return self.prompts * (reads * in_a_prompt + self.responses * in_a_response)

    @property
    def mean_context(self) -> float:
        """Tokens that a response's token looks at, on average."""
        return self.prompt_tokens + self.response_tokens / 2


def forward_flops(shape: Shape, texts: Texts, head_tokens: float) -> float:
    """2·P·T in the layers, 4·L·A for each token that a token looks at, and the head where it is needed.

    Embeddings are looked up, and cost nothing.

    Args:
        shape: of the model.
        texts: what it reads.
        head_tokens: for how many tokens the head over the vocabulary is computed; 0 for a scalar judge.
    """
    of_a_layer = 2 * layer_parameters(shape) * texts.tokens
    width = shape.heads * shape.head_size
    attention = 4 * width * texts.attended
    head = 2 * shape.vocabulary * shape.hidden
    return shape.layers * (of_a_layer + attention) + head * head_tokens


def training_flops(forward: float, gradient_checkpointing: bool, lora: bool = False) -> float:
    """Of forward and backward pass: 6·P·T, with gradient checkpointing 8·P·T, with adapters 2·P·T less.

    The backward pass costs twice the forward pass: gradients of the activations, and of the weights, which
    adapters do not need. With checkpointing the forward pass is done again.

    Args:
        forward: FLOPs of the forward pass, 2·P·T with its attention.
        gradient_checkpointing: whether activations are computed again.
        lora: whether adapters are trained.
    """
    passes = 2 if lora else 3
    if gradient_checkpointing:
        passes += 1
    return passes * forward


def computing(machine: Machine, flops: float, share: float, devices: int, fp32: bool) -> Time:
    """Seconds of so many FLOPs, evenly on so many devices."""
    peak = devices * (machine.fp32_flops if fp32 else machine.flops)
    return Time(flops / (peak * (CPU_SHARE if machine.is_cpu else share)), flops / peak)


def most_sequences(machine: Machine) -> int:
    """Responses that one engine samples together at most, if its memory has room for them."""
    if machine.is_cpu:
        return MAX_SEQUENCES_CPU
    if machine.memory >= 70 * 2**30 and "A100" not in machine.name:
        return MAX_SEQUENCES_LARGE
    return MAX_SEQUENCES


@dataclass(frozen=True)
class Engines:
    """How responses are sampled: `workers` engines side by side, each of `tensor_parallel` devices.

    Attributes:
        workers: how many.
        tensor_parallel: devices of one; on a CPU all share one device.
        memory: bytes of weights and cache that one engine may hold.
        max_new_tokens: of the longest response.
        bytes_each: of a number, 2 or 4.
        most: responses that one samples together at most.
    """

    workers: int
    tensor_parallel: int
    memory: float
    max_new_tokens: int
    bytes_each: int
    most: int


def cache_bytes(shape: Shape, bytes_each: int) -> float:
    """Keys and values of one token in all layers."""
    return 2.0 * shape.layers * shape.key_value_heads * shape.head_size * bytes_each


def sequences_at_once(shape: Shape, texts: Texts, engines: Engines) -> float:
    """Responses that one engine samples together, on average: as many as there are, fit, and are allowed."""
    there_are = texts.prompts * texts.responses / engines.workers
    room = engines.memory - shape.parameters * engines.bytes_each
    of_one = texts.mean_context * cache_bytes(shape, engines.bytes_each)
    fit = room / of_one
    return max(1.0, min(there_are, fit, engines.most))


def sampling(machine: Machine, shape: Shape, texts: Texts, engines: Engines) -> Time:
    """Seconds to sample all responses: the prompts in one go, then token after token.

    In a step an engine reads all its weights and the keys and values of every response under way, and
    computes one token for each. Few of them, and the weights' bytes take the time; many, and the FLOPs do. At
    the end the longest response is waited for.
    """
    devices = engines.workers * engines.tensor_parallel
    if machine.is_cpu:
        devices = 1
    fp32 = engines.bytes_each == FP32
    of_prompts = Texts(texts.prompts, 0, texts.prompt_tokens, 0)
    prefill = computing(machine, forward_flops(shape, of_prompts, 0), READING_SHARE, devices, fp32)
    at_once = sequences_at_once(shape, texts, engines)
    num_steps = texts.of_responses / engines.workers / at_once
    num_last_steps = max(0.0, engines.max_new_tokens - texts.response_tokens)
    steps = _step(machine, shape, texts, engines, at_once)
    last = _step(machine, shape, texts, engines, 1.0)
    planned = num_steps * steps.planned + num_last_steps * last.planned
    # Nothing forces the longest response to be the last one, so that the floor has no such tail.
    return prefill + Time(planned, num_steps * steps.floor)


def _step(machine: Machine, shape: Shape, texts: Texts, engines: Engines, at_once: float) -> Time:
    """One token for each of `at_once` responses, on one engine."""
    peak = machine.fp32_flops if engines.bytes_each == FP32 else machine.flops
    bandwidth = machine.bandwidth
    if machine.is_cpu:
        # Engines on a CPU share its cores and its memory.
        peak /= engines.workers
        bandwidth /= engines.workers
    else:
        peak *= engines.tensor_parallel
        bandwidth *= engines.tensor_parallel
    # Attention's FLOPs are few beside the bytes of its cache.
    per_token = 2 * (shape.layers * layer_parameters(shape) + shape.vocabulary * shape.hidden)
    flops = at_once * per_token
    weights = shape.parameters * engines.bytes_each
    cache = at_once * texts.mean_context * cache_bytes(shape, engines.bytes_each)
    floor = max(weights / bandwidth, flops / peak) + cache / bandwidth
    reached = CPU_SHARE if machine.is_cpu else READING_SHARE
    share = CPU_SHARE if machine.is_cpu else BANDWIDTH_SHARE
    busy = max(weights / (bandwidth * share), flops / (peak * reached)) + cache / (bandwidth * share)
    each = SAMPLING_SEQUENCE_SECONDS_CPU if machine.is_cpu else SAMPLING_SEQUENCE_SECONDS
    return Time(busy + SAMPLING_STEP_SECONDS + at_once * each, floor)


def starting(machine: Machine, kind: str, weight_bytes: float = 0) -> Time:
    """Seconds until the processes of a stage compute: a key of `START_SECONDS`, and the weights they load.

    They are hashed once per run, and read once for all processes of a stage.
    """
    seconds = START_SECONDS_CPU if machine.is_cpu else START_SECONDS
    return Time(seconds[kind] + weight_bytes / READ_BYTES_PER_SECOND)


def writing(num_bytes: float, cores: int = 1) -> Time:
    """Seconds to write so many bytes to one disk, and to hash them with so many cores."""
    return Time(num_bytes / WRITE_BYTES_PER_SECOND + num_bytes / (cores * HASH_BYTES_PER_SECOND))


def checkpoint_bytes(shape: Shape, bytes_each: int, zero_stage: int) -> float:
    """Of one checkpoint: the optimizer's state, and under ZeRO-2 the weights that are computed with."""
    weights = 0 if zero_stage == 3 else bytes_each
    return shape.parameters * (ADAM_BYTES + weights)


def num_steps(num_items: float, batch_size: int, num_epochs: int) -> int:
    """Optimizer steps; an epoch's last one may be smaller."""
    return math.ceil(num_items / batch_size) * num_epochs
