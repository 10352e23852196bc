"""The published way to read a Bradley-Terry judge, as a script of its own.

    python benchmarks/scoring_snippet.py MODEL responses.jsonl scored.jsonl

As the model card of sfairXC/FsfairX-LLaMA3-RM-v0.1 says it: transformers' pipeline over the templated
conversation without its BOS, which the tokenizer adds; the raw logit; one conversation at a time.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def load(model: str) -> Any:
    """The pipeline."""
    import torch
    from transformers import pipeline

    return pipeline("sentiment-analysis", model=model, dtype=torch.float32)


def scores(pipe: Any, talks: list[tuple[list[dict[str, str]], str]]) -> list[float]:
    """One score for each prompt and answer."""
    tokenizer = pipe.tokenizer
    texts = []
    for messages, answer in talks:
        talk = [*messages, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=False)
        texts.append(text.replace(tokenizer.bos_token, ""))
    outputs = pipe(texts, top_k=None, function_to_apply="none", batch_size=1)
    return [output[0]["score"] for output in outputs]


def main(model: str, given: str, output: str) -> None:
    """Score the only response of every row."""
    with open(given, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    talks = [([{"role": "user", "content": row["prompt"]}], row["responses"][0]) for row in rows]
    rewards = scores(load(model), talks)
    with open(output, "w", encoding="utf-8") as file:
        for row, reward in zip(rows, rewards, strict=True):
            file.write(json.dumps(row | {"rewards": [reward]}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
