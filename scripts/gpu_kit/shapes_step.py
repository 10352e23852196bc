"""DPO at the shapes of Llama 8B and 1B: speed, MFU and memory, TRL beside it, the forecast beside that."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_kit.figures import Kit
from gpu_kit.flops import MFU_FORMULA, needed_flops, published_peak
from gpu_kit.models import LLAMA_8B, TOY_OF_8B, Shape, on_gpu, one_billion, random_pairs, save_header
from gpu_kit.own_process import OUT_OF_MEMORY, PieceError, in_a_process
from gpu_kit.step import missing
from gpu_kit.trainers import Tokens, Trained, ours, plain, trl, with_layers

PACKAGES = ("torch", "transformers", "pyarrow")

BAR_OF_MFU = 0.45
BAR_OF_TRL = 1.3
_LEAST_SECONDS = 12.0
"""Under which no piece is begun: its imports alone take most of them."""
_BYTES_PER_WEIGHT = 24
"""In training: 2 to compute with in bf16, 4 each for the fp32 gradient, the fp32 weight and Adam's moments,
and what DeepSpeed's step and torch's AdamW hold of the gradients meanwhile."""
_BESIDE_WEIGHTS = 12e9
"""Bytes for activations, logits and DeepSpeed's buckets."""
_FORECAST = re.compile(r"memory for dpo[^:\n]*: ([\d.e+]+) GB of")


def measure(kit: Kit) -> None:
    """The 8B shape first, which has the bars."""
    kit.add("MFU is", MFU_FORMULA)
    vocabulary = (TOY_OF_8B if kit.is_toy else LLAMA_8B).vocabulary
    # As a real step has 128: with few of them the optimizer would weigh too much.
    pairs_8b = random_pairs(kit, vocabulary, 4 if kit.is_toy else 32)
    deepest = TOY_OF_8B if kit.is_toy else with_layers(LLAMA_8B, layers_that_fit(LLAMA_8B))
    tokens = sum(len(ids) for pair in pairs_8b for ids in pair)
    kit.add("tokens of a step", float(tokens), f"in {len(pairs_8b)} pairs, a prompt counted once")
    shape, trained = deepest_that_runs(kit, deepest, pairs_8b)
    if trained is not None:
        say_training(kit, "8B shape", shape, pairs_8b, trained, bar=BAR_OF_MFU)
        beside_trl(kit, "8B shape", shape, pairs_8b, trained)
        figures_per_layer(kit, shape, pairs_8b, trained)
        beside_forecast(kit, "8B shape", shape, pairs_8b, trained)
    if kit.is_toy:
        kit.add("1B shape", "as above", detail="left out at toy size: it takes the same way")
        return
    one = one_billion(kit)
    trained = train(kit, "1B shape", one, pairs_8b)
    if trained is not None:
        say_training(kit, "1B shape", one, pairs_8b, trained)
        beside_trl(kit, "1B shape", one, pairs_8b, trained)
        beside_forecast(kit, "1B shape", one, pairs_8b, trained)


def layers_that_fit(shape: Shape) -> int:
    """Layers that can be trained in the memory of this GPU, by estimate; at least 2."""
    from rlhf.launch.machine import memory, visible_gpus

    # By the driver's words: asking torch here would hold memory for as long as the step runs.
    available = memory(visible_gpus()) or 24e9
    tables = 2 * shape.weights_of_head * _BYTES_PER_WEIGHT
    room = 0.92 * available - tables - _BESIDE_WEIGHTS
    layers = math.floor(room / (shape.weights_of_layer * _BYTES_PER_WEIGHT))
    return min(shape.layers, max(2, layers))


def deepest_that_runs(kit: Kit, shape: Shape, pairs: Tokens) -> tuple[Shape, Trained | None]:
    """The training of as many layers as the memory takes: a third fewer each time that it runs out."""
    while True:
        name = f"8B shape, {shape.layers} layers"
        try:
            return shape, train_in_a_process(kit, shape, pairs)
        except PieceError as error:
            if not str(error).startswith(OUT_OF_MEMORY) or shape.layers <= 2:
                kit.fail(name, str(error))
                return shape, None
            kit.add(name, OUT_OF_MEMORY, detail="again with a third fewer layers")
            shape = with_layers(shape, max(2, 2 * shape.layers // 3))


def train(kit: Kit, name: str, shape: Shape, pairs: Tokens) -> Trained | None:
    """A training; where it fails, a line that says why."""
    try:
        return train_in_a_process(kit, shape, pairs)
    except PieceError as error:
        kit.fail(name, str(error))
        return None


def train_in_a_process(kit: Kit, shape: Shape, pairs: Tokens) -> Trained:
    """Our training; without the packages that it is made of, a plain loop.

    Raises:
        PieceError: it failed, or no time is left for it.
    """
    absent = missing(("deepspeed", "trl", "datasets"))
    subject = plain if absent else ours
    trained: Trained = in_a_process(subject, shape, pairs, empty_folder(kit), seconds=time_for_a_piece(kit))
    return trained


def time_for_a_piece(kit: Kit) -> float:
    """Seconds that a piece may take.

    Raises:
        PieceError: too few to begin.
    """
    if kit.seconds_left < _LEAST_SECONDS:
        raise PieceError("no time was left")
    # The last seconds are the step's, to say that it was not done.
    return kit.seconds_left - 3


def empty_folder(kit: Kit) -> Path:
    """The folder that every piece works in, one after another."""
    work = kit.work / "shapes"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return work


def step_flops(shape: Shape, pairs: Tokens) -> float:
    """Needed for one step over the pairs."""
    lengths = []
    for prompt, *responses in pairs:
        lengths.append((len(prompt), [len(response) for response in responses]))
    return needed_flops(shape, lengths)


def peak_of_gpu() -> float | None:
    """Published FLOP/s of the first GPU."""
    from rlhf.launch.nvidia import listed_gpus

    gpus = listed_gpus()
    return published_peak(gpus[0]) if gpus else None


def say_training(
    kit: Kit, name: str, shape: Shape, pairs: Tokens, trained: Trained, bar: float | None = None
) -> None:
    """Speed, MFU, memory and first loss of a training."""
    tokens = sum(len(ids) for pair in pairs for ids in pair)
    seconds = trained.seconds_of_step
    laps = ", ".join(f"{lap:.2f}" for lap in trained.seconds)
    note = f"{shape.layers} layers, steps of {laps} s"
    if trained.note:
        note += f"; {trained.note}"
    kit.add(f"{name}, DPO", tokens / seconds, "tokens/s", detail=note)
    kit.add(f"{name}, reference", tokens / trained.reference_seconds, "tokens/s", detail="with its load")
    if not on_gpu():
        kit.needs_gpu(f"{name}, MFU")
    else:
        peak = peak_of_gpu()
        reached = step_flops(shape, pairs) / seconds
        share = None if peak is None else reached / peak
        detail = f"{reached / 1e12:.0f} TFLOP/s needed ones"
        kit.add(f"{name}, MFU", share, "of the published peak", bar, detail=detail)
    detail = f"V = {shape.vocabulary}, {trained.reserved_bytes / 1e9:.1f} GB reserved by torch"
    kit.add(f"{name}, peak memory of DPO", trained.peak_bytes / 1e9, "GB", detail=detail)
    off = abs(trained.first_loss - math.log(2))
    kit.add(f"{name}, first loss off ln 2", off, "", 2e-2, lower_is_better=True)


def beside_trl(kit: Kit, name: str, shape: Shape, pairs: Tokens, trained: Trained) -> None:
    """TRL's best micro-batch over the same pairs."""
    absent = missing(("trl", "datasets"))
    if absent:
        kit.add(f"{name}, times TRL's best", None, detail=f"not installed: {', '.join(absent)}")
        return
    micro_batches = (2,) if kit.is_toy else (2, 1, 4)
    try:
        seconds = time_for_a_piece(kit)
        taken = in_a_process(trl, shape, pairs, empty_folder(kit), micro_batches, seconds, seconds=seconds)
    except PieceError as error:
        kit.fail(f"{name}, times TRL's best", str(error))
        return
    best = math.inf
    said = []
    for micro_batch, theirs in taken.items():
        if isinstance(theirs, str):
            said.append(f"micro-batch {micro_batch}: {theirs}")
            continue
        best = min(best, theirs.seconds_of_step)
        said.append(
            f"micro-batch {micro_batch}: {theirs.seconds_of_step:.2f} s, {theirs.peak_bytes / 1e9:.1f} GB, "
            f"loss {theirs.first_loss:.4f}"
        )
    reached = None
    if math.isfinite(best):
        reached = best / trained.seconds_of_step
    # What a CPU takes for tiny shapes says nothing about speed.
    bar = BAR_OF_TRL if on_gpu() else None
    kit.add(f"{name}, times TRL's best", reached, "×", bar, detail="; ".join(said))


def figures_per_layer(kit: Kit, shape: Shape, pairs: Tokens, trained: Trained) -> None:
    """What one layer takes, by a second training of half the layers, and what all of them would."""
    half = with_layers(shape, max(1, shape.layers // 2))
    name = "8B shape, one layer"
    other = train(kit, name, half, pairs)
    if other is None:
        return
    layers = shape.layers - half.layers
    seconds = (trained.seconds_of_step - other.seconds_of_step) / layers
    detail = f"from {shape.layers} and {half.layers} layers"
    kit.add(f"{name}, seconds of a step", seconds, "s", detail=detail)
    if not on_gpu():
        kit.needs_gpu(f"{name}, memory", "8B shape, MFU at 32 layers")
        return
    kit.add(f"{name}, memory", (trained.peak_bytes - other.peak_bytes) / layers / 1e9, "GB")
    peak = peak_of_gpu()
    if peak is not None:
        whole = trained.seconds_of_step + (LLAMA_8B.layers - shape.layers) * seconds
        share = step_flops(LLAMA_8B, pairs) / whole / peak
        kit.add("8B shape, MFU at 32 layers", share, "of the published peak", detail=f"{whole:.2f} s a step")


def beside_forecast(kit: Kit, name: str, shape: Shape, pairs: Tokens, trained: Trained) -> None:
    """The memory that `rlhf.check` says DPO takes, beside what it took."""
    what = f"{name}, memory over forecast"
    absent = missing(("hydra", "deepspeed", "trl"))
    if absent:
        kit.add(what, None, detail=f"no forecast, not installed: {', '.join(absent)}")
        return
    longest = max(len(prompt) + max(map(len, responses)) for prompt, *responses in pairs)
    forecast = forecast_of_dpo(kit, shape, longest)
    if forecast is None:
        kit.fail(what, "rlhf.check said nothing of DPO's memory; see log.txt")
        return
    detail = f"forecast {forecast / 1e9:.1f} GB, taken {trained.peak_bytes / 1e9:.1f} GB"
    # On a CPU the libraries alone take more than tiny weights.
    bar = 1.0 if on_gpu() else None
    kit.add(what, trained.peak_bytes / forecast, "×", bar, lower_is_better=True, detail=detail)


def forecast_of_dpo(kit: Kit, shape: Shape, max_length: int) -> float | None:
    """Bytes, as the preflight prints them; None where it does not."""
    folder: Path = save_header(kit.work / f"header_{shape.layers}_{shape.hidden}", shape)
    from gpu_kit.models import write_prompts

    prompts = write_prompts(kit.work / "prompts_of_forecast.jsonl", 64)
    command = [
        sys.executable,
        "-m",
        "rlhf.check",
        f"run_dir={kit.work / 'forecast'}",
        f"model.path={folder}",
        f"reward_model.path={folder}",
        f"prompts.path={prompts}",
        "generate.engine=transformers",
        f"dpo.max_length={max_length}",
        "compute.num_training_ranks=1",
    ]
    seconds = max(5.0, kit.seconds_left)
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"no forecast within {seconds:.0f} s")
        return None
    print(done.stdout)
    found = _FORECAST.search(done.stdout)
    return float(found[1]) * 1e9 if found else None
