"""Scoring at the shape of an 8B judge on both engines: tokens per second, and whether they agree."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from gpu_kit.figures import Kit
from gpu_kit.models import LLAMA_8B, TOY_OF_8B, Shape, on_gpu, save_model
from gpu_kit.own_process import PieceError, in_a_process
from gpu_kit.step import missing
from gpu_kit.trainers import with_layers

PACKAGES = ("torch", "transformers", "pyarrow")

_LAYERS = 4
"""Of the 8B shape's 32: its file is written, and all of them would take half a minute to read."""
_ENGINES = ("transformers", "vllm")


def measure(kit: Kit) -> None:
    """Each engine in a process of its own, over the same responses."""
    shape = TOY_OF_8B if kit.is_toy else with_layers(LLAMA_8B, _LAYERS)
    folder = kit.work / "models" / "judge_8b"
    prompts, words = (4, 10) if kit.is_toy else (48, 250)
    scores_of = {}
    for engine in _ENGINES:
        if engine == "vllm" and missing(("vllm",)):
            kit.add(engine, None, detail="not installed: vllm")
            continue
        try:
            scores, tokens, seconds = in_a_process(
                score, engine, folder, shape, prompts, words, seconds=kit.seconds_left
            )
        except PieceError as error:
            kit.fail(engine, str(error))
            continue
        scores_of[engine] = scores
        needed = 2 * shape.layers * shape.weights_of_layer * tokens / seconds / 1e12
        detail = f"{shape.layers} layers, {len(scores)} responses, {needed:.3g} TFLOP/s"
        kit.add(engine, tokens / seconds, "tokens/s", detail=detail)
        if engine == "transformers":
            whole = LLAMA_8B.layers / shape.layers
            kit.add("at 32 layers, about", tokens / seconds / whole, "tokens/s")
    if len(scores_of) == len(_ENGINES):
        pairs = zip(*scores_of.values(), strict=True)
        largest = max(abs(one - other) for one, other in pairs)
        spread = max(scores_of["transformers"]) - min(scores_of["transformers"])
        detail = f"scores spread over {spread:.3g}"
        kit.add("largest difference of a score", largest / spread, "of the spread", 0.1, True, detail)
    shutil.rmtree(folder, ignore_errors=True)


def score(
    engine: str, folder: Path, shape: Shape, num_prompts: int, num_words: int
) -> tuple[list[float], int, float]:
    """Scores of four responses each to so many prompts, their tokens, and the seconds of a second pass."""
    save_model(folder, shape, classifier=True)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not on_gpu():
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from rlhf.config.choices import Engine
    from rlhf.config.stage_configs import ScoreStage
    from rlhf.models.chat_template import load_tokenizer
    from rlhf.scoring.choose_judge import load_judge

    rng = random.Random(0)
    told = ScoreStage(engine=Engine(engine), gpu_memory_utilization=0.7)
    # A judge of texts one by one, as the engines are.
    judge: Any = load_judge(told, {"judge": str(folder)})
    tokenizer = load_tokenizer(str(folder), False)

    def items() -> list[tuple[list[dict[str, str]], str]]:
        made = []
        for _ in range(num_prompts):
            prompt = [{"role": "user", "content": f"Say {rng.randrange(10**6)} in words"}]
            for _ in range(4):
                words = [f"{rng.randrange(10**4)}" for _ in range(rng.randint(num_words // 2, num_words))]
                made.append((prompt, " ".join(words)))
        return made

    # What warms up are other texts: equal ones would be found in a cache.
    warm_up = items()[: max(8, num_prompts)]
    judge.score(warm_up)
    measured = items()
    began = time.perf_counter()
    scored = judge.score(measured)
    seconds = time.perf_counter() - began
    tokens = 0
    for prompt, answer in measured:
        tokens += len(tokenizer(prompt[0]["content"] + answer)["input_ids"])
    return list(scored.scores), tokens, seconds
