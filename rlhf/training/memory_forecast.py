"""What one process of `dpo` or `reference` holds at its peak, in bytes: formulas without torch.

docs/checks.md has what they forecast beside what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.models.shape import Shape

FP32 = 4
"""Bytes of a number in fp32."""
KEPT_LOGITS = 2**28
"""Bytes of logits that are kept from the forward pass to the backward pass; where they would take more, the
head is computed again in the backward pass, in chunks (`rlhf.training.target_head`)."""
CHUNK_OF_LOGITS = 2**26
"""Bytes of logits that are in fp32 at a time."""
LARGEST_BUCKET = 500_000_000
"""Numbers in a bucket of DeepSpeed's at most (`rlhf.training.deepspeed`)."""
LARGEST_GATHERED = 1_000_000_000
"""Weights that DeepSpeed keeps whole under ZeRO-3 at most (`stage3_max_live_parameters`)."""
BASE_ON_A_CPU = 0.55e9
"""Of a process with torch, transformers and DeepSpeed loaded and no model: measured, see docs/checks.md."""
BASE_ON_A_GPU = 1.0e9
"""On the device: CUDA's context with the kernels of torch, cuBLAS and NCCL. An estimate."""


@dataclass(frozen=True)
class HowTrained:
    """What decides, beside the model's shape, what a rank holds.

    `bytes_per_weight` are those of the dtype computed in, 2 or 4; `batch_tokens` the budget of a pass, which a
    pair of `longest_pair` tokens (prompt and both responses) may exceed by itself. `ranks` train together.
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

    `weights`, `gradients` and `adam` are held all the time. Of `activations` with `logits`, while a pass is under
    way, and `step`, the temporaries of the optimizer's step, there is only one at a time. `buffers` are those of
    communication between ranks.
    """

    base: float
    weights: float
    gradients: float
    adam: float
    buffers: float
    activations: float
    logits: float
    step: float

    @property
    def held(self) -> float:
        """What does not depend on the budget of tokens."""
        return self.base + self.weights + self.gradients + self.adam

    @property
    def peak(self) -> float:
        """The most that is held at once."""
        return self.held + max(self.buffers + self.activations + self.logits, self.step)


def dpo_memory(shape: Shape, how: HowTrained) -> Memory:
    """At the peak of one rank of stage `dpo`."""
    trained = trained_parameters(shape, how)
    share = trained / how.ranks  # ZeRO-2 and 3 share out what belongs to the optimizer
    gradients = FP32 * share
    adam = 3 * FP32 * share  # fp32 weights, and both of Adam's moments
    if how.offload_optimizer and how.on_gpu:
        gradients = 0
        adam = 0
    # Flattened gradients, and Adam's square roots: torch makes them twice on a CPU, where it has no kernel that
    # takes the whole list.
    num_roots = 1 if how.on_gpu else 2
    return Memory(
        base=BASE_ON_A_GPU if how.on_gpu else BASE_ON_A_CPU,
        weights=_bytes_of_weights(shape, how),
        gradients=gradients,
        adam=adam,
        buffers=_buffers(shape, how, trained),
        activations=how.tokens * _activations_of_a_token(shape, how),
        logits=_logits(shape, how),
        step=(1 + num_roots) * gradients,
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
        logits=3 * CHUNK_OF_LOGITS,
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
    attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    feed_forward = 3 * (shape.hidden + shape.intermediate)
    return rank * shape.layers * (attention + feed_forward)


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
    # What a pass adds to the sum of the passes before it.
    bucket += FP32 * trained / how.ranks
    if how.zero_stage == 3 and how.ranks > 1:
        bucket += _gathered(shape, how)
    return bucket


def _gathered(shape: Shape, how: HowTrained) -> float:
    """Weights that ZeRO-3 holds whole: DeepSpeed keeps what it will need again soon, up to a limit."""
    return how.bytes_per_weight * min(shape.parameters, LARGEST_GATHERED)


def _activations_of_a_token(shape: Shape, how: HowTrained) -> float:
    """What a forward pass keeps for the backward pass, and that one works with."""
    kept = shape.layers * _kept_in_a_layer(shape, how)
    if how.gradient_checkpointing:
        # The input of each layer, and one layer that is computed again.
        kept = how.bytes_per_weight * shape.layers * shape.hidden + _kept_in_a_layer(shape, how)
    return kept + _working(shape, how)


def _kept_in_a_layer(shape: Shape, how: HowTrained) -> float:
    """Bytes a token of a layer as Llama, Qwen, Mistral and Gemma have it."""
    each = how.bytes_per_weight
    # Two norms: each keeps its input in fp32, that over its length, and its output.
    norms = 2 * (FP32 + 2 * each) * shape.hidden
    # Queries, keys and values for each head, and the output as it comes and as the next layer takes it.
    attention = 5 * each * shape.heads * shape.head_size
    # Gate, its activation, the other branch, and their product.
    feed_forward = 4 * each * shape.intermediate
    return norms + attention + feed_forward


def _working(shape: Shape, how: HowTrained) -> float:
    """Bytes a token that a layer holds while it is computed, forward or backward."""
    return how.bytes_per_weight * (3 * shape.intermediate + 4 * shape.hidden)


def _logits(shape: Shape, how: HowTrained) -> float:
    """Of the head: logits that are kept, chunks in fp32, and the gradient of the head's weight."""
    kept = how.bytes_per_weight * how.tokens * shape.vocabulary
    chunks = 2 * CHUNK_OF_LOGITS
    head = 0.0
    if not how.lora_rank:
        head = how.bytes_per_weight * shape.vocabulary * shape.hidden
    if kept > KEPT_LOGITS:
        kept = 0.0
        chunks = 3 * CHUNK_OF_LOGITS
        head *= FP32 / how.bytes_per_weight  # the chunks' gradients add up in fp32
    return kept + chunks + head
