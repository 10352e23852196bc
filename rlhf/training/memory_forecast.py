"""What one process of `dpo` or `reference` holds at its peak, in bytes: formulas without torch.

docs/checks.md has what they forecast beside what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.models.shape import Shape

FP32 = 4
"""Bytes of a number in fp32."""
KEPT_LOGITS = 2**28
"""Bytes of logits that are kept from the forward pass to the backward pass; where they would take more, the
head is computed again in the backward pass, in chunks (`rlhf.training.target_head`)."""
CPU_TOKENS = 1536
"""Budget of a pass on a CPU. Measured with 20 M parameters: 2048 take no less time, and more memory."""
GPU_TOKENS = 16384
_USED = 0.85
"""Share of the free memory that a forecast may fill: it may be wrong by as much as is left."""
_CHUNK = 2**24
"""Logits in work at a time. On a CPU smaller pieces leave holes in the memory (measured)."""
_ROWS_ON_A_GPU = 2048
"""For every chunk the head's gradient, fp32, is read and written once. Measured on an H200 at a vocabulary of
128,256: with 512 rows that took 8 % of a step."""
_COPIES_OF_CHANGED_LOGITS = 3
"""Capping divides, takes the tanh and multiplies; all three are kept for the backward pass."""
_RETURNED_AT_ONCE = 2**25
"""Bytes of an allocation from which on glibc asks the kernel for it alone (`DEFAULT_MMAP_THRESHOLD_MAX`)."""
LARGEST_BUCKET = 500_000_000
"""Numbers in a bucket of DeepSpeed's at most (`rlhf.training.deepspeed`)."""
LARGEST_GATHERED = 1_000_000_000
"""Weights that DeepSpeed keeps whole under ZeRO-3 at most (`stage3_max_live_parameters`)."""
BASE_ON_A_CPU = 0.7e9
"""Of a process with the heavy imports done and no model. Measured: 0.53 GB without vLLM's, 0.74 GB with."""
BASE_ON_A_GPU = 1.0e9
"""On the device: CUDA's context with the kernels of torch, cuBLAS and NCCL. An estimate."""


@dataclass(frozen=True)
class HowTrained:
    """What decides, beside the model's shape, what a rank holds.

    `bytes_per_weight` are those of the dtype computed in, 2 or 4; `batch_tokens` the budget of a pass, which
    a pair of `longest_pair` tokens (prompt and both responses) may exceed by itself. `ranks` train together.
    """

    bytes_per_weight: int
    batch_tokens: int
    longest_pair: int
    ranks: int = 1
    zero_stage: int = 2
    offload_optimizer: bool = False
    gradient_checkpointing: bool = True
    lora_rank: int = 0
    on_gpu: bool = False

    @property
    def tokens(self) -> int:
        """Of the largest pass."""
        return max(self.batch_tokens, self.longest_pair)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process on its device, by what they are for.

    `weights`, `gradients` and `adam` are held all the time. Of the others there is either what a pass takes,
    `activations`, `logits` and the `buffers` of communication, or `step`, what the optimizer's step does,
    beside the `fragments` that a pass has left and that cannot be used for it.
    """

    base: float
    weights: float
    gradients: float
    adam: float
    buffers: float
    activations: float
    logits: float
    step: float
    fragments: float = 0.0

    @property
    def held(self) -> float:
        """What does not depend on the budget of tokens."""
        return self.base + self.weights + self.gradients + self.adam

    @property
    def peak(self) -> float:
        """The most that is held at once."""
        in_a_pass = self.buffers + self.activations + self.logits
        return self.held + max(in_a_pass, self.step + self.fragments)


def default_tokens(on_gpu: bool) -> int:
    """The budget of a pass that suits a device, where its memory allows it."""
    return GPU_TOKENS if on_gpu else CPU_TOKENS


def fitting(tokens: int, smallest: int, forecast: Callable[[int], Memory], free: float) -> int:
    """The most of `tokens`, half of them, a quarter, … that fit in so many free bytes.

    Not below `smallest`: a forecast refuses nothing, and what is left may still fit.
    """
    while tokens > smallest:
        memory = forecast(tokens)
        # What the process holds without a model is no longer free.
        if memory.peak - memory.base <= _USED * free:
            break
        tokens = max(tokens // 2, smallest)
    return tokens


def rows_of_chunk(vocabulary: int, on_gpu: bool) -> int:
    """Rows of logits that are in fp32 at a time: 64 MiB of them.

    On a GPU not fewer than it takes to keep it busy while it reads the head's weight.
    """
    least = _ROWS_ON_A_GPU if on_gpu else 1
    return max(least, _CHUNK // vocabulary)


def dpo_memory(shape: Shape, how: HowTrained) -> Memory:
    """At the peak of one rank of stage `dpo`."""
    trained = trained_parameters(shape, how)
    share = trained / how.ranks  # ZeRO-2 and 3 share out what belongs to the optimizer
    gradients = FP32 * share
    adam = 3 * FP32 * share  # fp32 weights, and both of Adam's moments
    if how.offload_optimizer and how.on_gpu:
        gradients = 0
        adam = 0
    return Memory(
        base=BASE_ON_A_GPU if how.on_gpu else BASE_ON_A_CPU,
        weights=_bytes_of_weights(shape, how),
        gradients=gradients,
        adam=adam,
        buffers=_buffers(shape, how, trained),
        activations=_activations(shape, how),
        logits=_logits(shape, how),
        step=gradients,  # flattened; the fused AdamW takes nothing of its own
        fragments=_fragments(shape, how),
    )


def reference_memory(shape: Shape, how: HowTrained) -> Memory:
    """At the peak of one process of stage `reference`, which keeps nothing for a backward pass."""
    buffers = 0.0
    if how.zero_stage == 3 and how.ranks > 1:
        buffers = _gathered(shape, how)
    return Memory(
        base=BASE_ON_A_GPU if how.on_gpu else BASE_ON_A_CPU,
        weights=_bytes_of_weights(shape, how),
        gradients=0,
        adam=0,
        buffers=buffers,
        activations=how.tokens * _working(shape, how),
        logits=_logits_without_gradient(shape, how),
        step=0,
    )


def trained_parameters(shape: Shape, how: HowTrained) -> float:
    """All of them, or those of adapters on every linear layer but the head."""
    rank = how.lora_rank
    if not rank:
        return shape.parameters
    queries = shape.heads * shape.head_size
    keys = shape.key_value_heads * shape.head_size
    # Of each layer's matrices: inputs plus outputs.
    of_attention = 4 * shape.hidden + 2 * queries + 2 * keys
    of_feed_forward = 3 * shape.hidden + 3 * shape.intermediate
    in_a_layer = of_attention + of_feed_forward
    return rank * shape.layers * in_a_layer


def _bytes_of_weights(shape: Shape, how: HowTrained) -> float:
    weights = how.bytes_per_weight * shape.parameters
    # ZeRO-3 alone shares out those that the model computes with.
    if how.zero_stage == 3:
        weights /= how.ranks
    return weights


def _buffers(shape: Shape, how: HowTrained, trained: float) -> float:
    """Of gradients on their way to the rank that keeps them, and under ZeRO-3 of weights that are whole."""
    bucket = how.bytes_per_weight * min(trained, LARGEST_BUCKET)
    if how.on_gpu:
        bucket *= 2  # one is filled while the other is sent
    if how.zero_stage == 3 and how.ranks > 1:
        bucket += _gathered(shape, how)
    return bucket


def _gathered(shape: Shape, how: HowTrained) -> float:
    """Weights that ZeRO-3 holds whole: DeepSpeed keeps what it will need again soon, up to a limit."""
    return how.bytes_per_weight * min(shape.parameters, LARGEST_GATHERED)


def _activations(shape: Shape, how: HowTrained) -> float:
    """What a forward pass keeps for the backward pass, and what that one works with."""
    working = how.tokens * _working(shape, how)
    in_a_layer = how.tokens * _kept_in_a_layer(shape, how).total()
    if not how.gradient_checkpointing:
        return shape.layers * in_a_layer + working
    # The input of each layer, and one layer that is computed again.
    inputs = shape.layers * how.tokens * shape.hidden
    inputs *= how.bytes_per_weight
    fragments = _fragments(shape, how)
    return inputs + in_a_layer + working + fragments


def _fragments(shape: Shape, how: HowTrained) -> float:
    """What the C library keeps of tensors that were given back; larger ones it returns at once.

    Measured: without checkpointing all that the layers have kept. With it three tensors of the feed-forward
    network's size in each layer: the next layer's input, which stays, is cut out of where they were, so that
    those of the next layer find no place there.
    """
    if how.on_gpu:
        return 0.0
    total = 0.0
    for width, bytes_of_a_token in _kept_in_a_layer(shape, how).items():
        if how.bytes_per_weight * how.tokens * width >= _RETURNED_AT_ONCE:
            continue
        if not how.gradient_checkpointing:
            total += how.tokens * shape.layers * bytes_of_a_token
        elif width == shape.intermediate:
            total += 3 * how.bytes_per_weight * how.tokens * shape.layers * width
    return total


def _kept_in_a_layer(shape: Shape, how: HowTrained) -> Counter[int]:
    """Bytes a token of a layer as Llama, Qwen, Mistral and Gemma have it, by the width of the tensors."""
    each = how.bytes_per_weight
    kept: Counter[int] = Counter()
    # Two norms: each keeps its input in fp32, that over its length, and its output.
    width = shape.hidden
    kept[width] += 2 * (FP32 + 2 * each) * width
    # Queries, keys and values for each head, and the output as it comes and as the next layer takes it.
    width = shape.heads * shape.head_size
    kept[width] += 5 * each * width
    # Gate, its activation, the other branch, and their product.
    width = shape.intermediate
    kept[width] += 4 * each * width
    return kept


def _working(shape: Shape, how: HowTrained) -> float:
    """Bytes a token that a layer holds while it is computed, forward or backward."""
    return how.bytes_per_weight * (3 * shape.intermediate + 4 * shape.hidden)


def _logits(shape: Shape, how: HowTrained) -> float:
    """Of the head: logits that are kept, chunks in fp32, and the gradient of the head's weight."""
    each = how.bytes_per_weight
    kept = _kept_logits(shape, how)
    if shape.changes_logits:
        kept *= _COPIES_OF_CHANGED_LOGITS
    chunks = _chunks(shape, how)
    head = 0.0
    if not how.lora_rank:
        head = each * shape.vocabulary * shape.hidden
        # Of logits that are not kept, the gradients of the chunks add up in fp32.
        if not kept and each < FP32:
            head += FP32 * shape.vocabulary * shape.hidden
    return kept + chunks + head


def _logits_without_gradient(shape: Shape, how: HowTrained) -> float:
    return _kept_logits(shape, how) + _chunks(shape, how)


def _kept_logits(shape: Shape, how: HowTrained) -> float:
    """Bytes of the logits that a model gives; 0 where its head gives log-probabilities in their place."""
    kept = float(how.bytes_per_weight * how.tokens * shape.vocabulary)
    if kept > KEPT_LOGITS and not shape.changes_logits:
        return 0.0
    return kept


def _chunks(shape: Shape, how: HowTrained) -> float:
    """Bytes of what is made of a chunk of logits."""
    rows = min(how.tokens, rows_of_chunk(shape.vocabulary, how.on_gpu))
    # Kept logits in fp32 are worked on where they lie; of others there is a wider copy too.
    in_place = _kept_logits(shape, how) > 0 and how.bytes_per_weight == FP32
    num_chunks = 1 if in_place else 2
    return float(num_chunks * FP32 * rows * shape.vocabulary)
