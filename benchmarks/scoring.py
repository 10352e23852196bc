"""Scoring beside the published snippet: a pipeline over templated conversations, the raw logit, batch 1.

The judges are Llamas of 1 M and 20 M parameters with random weights in fp32; conversations are sampled from
this project's own documentation, 4 or 8 answers to a prompt, of lengths as real ones have. No time counts
unless every score is the snippet's.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import (
    Cost,
    Row,
    Stopwatch,
    cost_in_a_process,
    cost_of_command,
    in_turn,
    median,
    times_faster,
)

DOCUMENTS = Path(__file__).parents[1] / "docs"
JUDGES: dict[str, dict[str, int]] = {
    "1M": {"num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4},
    "20M": {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8},
}
BARS = {"1M": 2.2, "20M": 1.7}
NUM_RESPONSES = {"1M": 480, "20M": 160}
"""So many that a stage with as much to do is worth vLLM's start (`rlhf.scoring.auto_engine`)."""
NUM_ROWS_OF_COMMAND = 400
MAX_TOKENS = 2048
TOLERANCE = 1e-4
_VOCABULARY = 4096
_SNIPPET = Path(__file__).with_name("scoring_snippet.py")
Talk = tuple[list[dict[str, str]], str]
"""A prompt, and an answer to it."""


def make_judge(folder: Path, shape: dict[str, int]) -> None:
    """A judge whose tokenizer is a byte-level BPE of the documents."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from rlhf.world.tokenizer import build_tokenizer

    lines = [line for text in documents() for line in text.splitlines() if line.strip()]
    tokenizer = build_tokenizer(lines, _VOCABULARY)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=MAX_TOKENS,
        num_labels=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def documents() -> list[str]:
    """The texts of the documentation, in order."""
    return [path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("*.md"))]


def texts(seed: int, responses_per_prompt: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Prompts, each with its answers: stretches of the documents, about 375 tokens a conversation."""
    rng = random.Random(seed)
    # Without what spells a special token: the snippet reads it as that token, ours as the text that it is.
    words = [word for word in " ".join(documents()).split() if "<|" not in word]

    def stretch() -> str:
        # Log-normal, as the lengths of real prompts and answers are; a word is about two tokens.
        length = max(5, min(400, round(rng.lognormvariate(4.38, 0.75))))
        start = rng.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    while True:
        prompt = stretch()
        number = rng.choice(responses_per_prompt)
        yield prompt, [stretch() for _ in range(number)]


def conversations(number: int) -> list[Talk]:
    """So many, those of one prompt side by side."""
    talks: list[Talk] = []
    for prompt, answers in texts(seed=0, responses_per_prompt=(4, 8)):
        for answer in answers:
            talks.append(([{"role": "user", "content": prompt}], answer))
        if len(talks) >= number:
            return talks[:number]
    raise AssertionError("there is no end of texts")


def quiet() -> None:
    """No engine processes of its own, no messages, no GPU: what the launcher tells a worker on a CPU."""
    os.environ.update(
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_LOGGING_LEVEL="ERROR",
    )


def score_as_published(folder: str, talks: list[Talk]) -> Cost:
    """The snippet, from the loaded model to the last score."""
    quiet()
    from benchmarks.scoring_snippet import load, scores

    pipe = load(folder)
    watch = Stopwatch()
    return watch.cost(scores(pipe, talks))


def score_by_default(folder: str, talks: list[Talk]) -> Cost:
    """The judge that stage `score` loads at its defaults; `proof` is its scores, and the engine's note."""
    quiet()
    from rlhf.config.stage_configs import ScoreStage
    from rlhf.scoring.choose_judge import load_judge

    lengths = [len(messages[0]["content"]) + len(answer) for messages, answer in talks]
    judge: Any = load_judge(ScoreStage(max_tokens=MAX_TOKENS), {"judge": folder}, lengths)
    watch = Stopwatch()
    scores = judge.score(talks).scores
    return watch.cost((scores, judge.note))


def require_equal(theirs: list[float], ours: list[float]) -> float:
    """The largest difference of a score.

    Raises:
        AssertionError: it is more than rounding, or all scores are the same.
    """
    assert len(theirs) == len(ours), (len(theirs), len(ours))
    assert max(theirs) - min(theirs) > 100 * TOLERANCE, "a judge that says one thing of all proves nothing"
    largest = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    assert largest <= TOLERANCE, f"scores differ by {largest}"
    return largest


def rows_of_judge(name: str, folder: Path, runs: int) -> list[Row]:
    """The judge's rows: processor and wall seconds of scoring, without loading."""
    talks = conversations(NUM_RESPONSES[name])
    subjects: dict[str, Callable[[], Cost]] = {
        "snippet": partial(cost_in_a_process, score_as_published, str(folder), talks),
        "ours": partial(cost_in_a_process, score_by_default, str(folder), talks),
    }
    taken = in_turn(subjects, runs)
    note = ""
    largest = 0.0
    for theirs, ours in zip(taken["snippet"], taken["ours"], strict=True):
        scores, note = ours.proof
        largest = max(largest, require_equal(theirs.proof, scores))
    rows = []
    for figure in ("processor", "wall"):
        key = f"{figure}_seconds"
        seconds = f"{median(taken['snippet'], key):.2f} / {median(taken['ours'], key):.2f} s"
        rows.append(
            Row(
                f"scoring/{name}/{figure}",
                reached=times_faster(taken["snippet"], taken["ours"], key),
                bar=BARS[name],
                unit="× the published snippet, batch 1",
                detail=f"{seconds}; {note}; scores differ by ≤ {largest:.0e}",
            )
        )
    return rows


def row_of_command(folder: Path, work: Path, runs: int) -> Row:
    """The whole command, from a file to a file, beside the snippet as a script."""
    given = work / "responses.jsonl"
    lines = []
    for prompt, answers in texts(seed=1, responses_per_prompt=(1,)):
        lines.append(json.dumps({"prompt": prompt, "responses": answers}) + "\n")
        if len(lines) == NUM_ROWS_OF_COMMAND:
            break
    given.write_text("".join(lines), encoding="utf-8")
    environment = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    theirs = work / "snippet.jsonl"
    ours = work / "ours.jsonl"

    def with_the_script() -> Cost:
        theirs.unlink(missing_ok=True)
        return cost_of_command(
            [sys.executable, str(_SNIPPET), str(folder), str(given), str(theirs)], environment
        )

    def with_the_command() -> Cost:
        ours.unlink(missing_ok=True)
        words = [
            f"reward_model.path={folder}",
            f"input={given}",
            f"output={ours}",
            f"score.max_tokens={MAX_TOKENS}",
        ]
        return cost_of_command([sys.executable, "-m", "rlhf.score", *words], environment)

    taken = in_turn({"snippet": with_the_script, "ours": with_the_command}, runs)
    require_equal(rewards(theirs), rewards(ours))
    seconds = [median(taken[name], "wall_seconds") for name in ("snippet", "ours")]
    processor = [median(taken[name], "processor_seconds") for name in ("snippet", "ours")]
    return Row(
        "scoring/command",
        reached=times_faster(taken["snippet"], taken["ours"], "wall_seconds"),
        bar=1.0,
        unit="× the published snippet as a script",
        detail=f"{NUM_ROWS_OF_COMMAND} rows, 20M judge: wall {seconds[0]:.1f} / {seconds[1]:.1f} s, "
        f"processor {processor[0]:.1f} / {processor[1]:.1f} s",
    )


def rewards(file: Path) -> list[float]:
    """Of a file of scored rows, one answer each."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        found.append(float(json.loads(line)["rewards"][0]))
    return found


def rows(runs: int) -> list[Row]:
    """Every claim about scoring; the 20 M judge is measured three times at most, for each takes long."""
    quiet()
    made = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for judge, shape in JUDGES.items():
            make_judge(work / judge, shape)
            # vLLM looks at an architecture once per machine, for seconds; that is no part of scoring.
            few = runs if judge == "1M" else min(runs, 3)
            made += rows_of_judge(judge, work / judge, few)
        made.append(row_of_command(work / "20M", work, min(runs, 2)))
    return made
