"""The same conversations scored by a judge's published snippet and by both engines, at batch 1 and 32, in two
dtypes.

    python scripts/experiments/judge_parity.py model=FOLDER input=FILE[,FILE…] [pairs=120]

Takes the first `pairs` pairs, evenly over the preference files, whose context has several turns and which the
model's context holds. Prints a Markdown table against the snippet in fp32 at batch 1: the largest difference
of a score, and how many pairs are ordered differently or tied. `FOLDER` is any one-logit classifier with a
pad token of its own.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BATCHES = (1, 32)
DTYPES = ("float32", "bfloat16")
Item = tuple[list[dict[str, str]], str]
"""A context, and the answer to it."""
Scores = list[float]


def read(files: list[Path], pairs: int, model: str, context: int) -> list[Item]:
    """Conversations with several turns: the chosen one of a pair, the rejected one, and so on."""
    from rlhf.data.preferences import read_preferences
    from rlhf.models.chat_template import load_tokenizer, render_conversation

    tokenizer = load_tokenizer(model)

    def usable(file: Path) -> Iterator[list[Item]]:
        for messages, *answers in read_preferences(file, Counter()):
            both = [[*messages, {"role": "assistant", "content": answer}] for answer in answers]
            if (
                len(messages) > 2
                and max(len(render_conversation(tokenizer, talk)) for talk in both) <= context
            ):
                yield [(messages, answer) for answer in answers]

    return [item for file in files for pair in islice(usable(file), pairs // len(files)) for item in pair]


def snippet(model: str, items: list[Item], dtype: str, batch: int, pad_is_eos: bool = False) -> Scores:
    """The published way: a pipeline over the templated text, whose BOS is left to the tokenizer."""
    from transformers import pipeline

    pipe = pipeline(
        "text-classification", model=model, function_to_apply="none", batch_size=batch, dtype=dtype
    )
    tokenizer: Any = pipe.tokenizer
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
        pipe.model.config.pad_token_id = tokenizer.eos_token_id
    talks = [[*messages, {"role": "assistant", "content": answer}] for messages, answer in items]
    texts = tokenizer.apply_chat_template(talks, tokenize=False, add_generation_prompt=False)
    return [
        result["score"] for result in pipe([text.removeprefix(tokenizer.bos_token or "") for text in texts])
    ]


def in_batches(judge: Any, items: list[Item], batch: int) -> Scores:
    """The scores of one of our judges, asked for so many conversations at a time."""
    return [
        s for start in range(0, len(items), batch) for s in judge.score(items[start : start + batch]).scores
    ]


def row(name: str, dtype: str, batch: int, scores: Scores, reference: Scores) -> str:
    """A line of the table."""
    largest = max(abs(a - b) for a, b in zip(scores, reference, strict=True))
    # Chosen and rejected follow each other.
    num_pairs = len(scores) // 2
    tied = 0
    turned = 0
    for first in range(0, len(scores), 2):
        margin = scores[first] - scores[first + 1]
        reference_margin = reference[first] - reference[first + 1]
        if margin == 0:
            tied += 1
        elif (margin > 0) != (reference_margin > 0):
            turned += 1
    share = f"{100 * turned / num_pairs:.1f} % | {100 * tied / num_pairs:.1f} %"
    return f"| {name} | {dtype} | {batch} | {largest:.1e} | {share} |"


def table(model: str, items: list[Item], context: int) -> Iterator[str]:
    """The lines of the table, as they are computed."""
    from rlhf.scoring.classifier_judge import ClassifierJudge
    from rlhf.scoring.vllm_judge import VllmJudge

    yield (
        "| engine | dtype | batch | largest difference | pairs turned | pairs tied "
        "|\n|---|---|---|---|---|---|"
    )
    reference = snippet(model, items, "float32", 1)
    engines: dict[str, Callable[[str, int], Scores]] = {
        "published snippet": lambda dtype, batch: snippet(model, items, dtype, batch),
        "published snippet, pad = eos": lambda dtype, batch: snippet(
            model, items, dtype, batch, pad_is_eos=True
        ),
    }
    for name, call in engines.items():
        for dtype in DTYPES if name == "published snippet" else DTYPES[:1]:
            for batch in BATCHES:
                yield row(name, dtype, batch, call(dtype, batch), reference)
    for name, judge in (("transformers", ClassifierJudge), ("vllm", VllmJudge)):
        for dtype in DTYPES:
            loaded: Any = judge(model, dtype=dtype, max_tokens=context, batch_tokens=max(BATCHES) * context)
            for batch in BATCHES:
                yield row(f"`score.engine={name}`", dtype, batch, in_batches(loaded, items, batch), reference)
    low, high = min(reference), max(reference)
    yield f"\n{len(items)} conversations, {len(items) // 2} pairs; scores from {low:.3f} to {high:.3f}."


def main(arguments: list[str]) -> int:
    """Read the conversations, print the table."""
    keys = dict(argument.partition("=")[::2] for argument in arguments)
    model, files = keys.pop("model", ""), [Path(file) for file in keys.pop("input", "").split(",") if file]
    pairs = int(keys.pop("pairs", "120"))
    if not model or not files or keys:
        print(__doc__, file=sys.stderr)
        return 2
    from rlhf.launch.machine import starting_environment

    os.environ.update(starting_environment("auto"))  # before torch is imported
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    from rlhf.models.context import context_length

    context = min(context_length(model) or 4096, 4096)
    items = read(files, pairs, model, context)
    for line in table(model, items, context):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
