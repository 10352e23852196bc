"""The peer of `benchmarks.pairing`: the script that a person would write, best against worst by reward.

    python -m benchmarks.plain_pairs stream|hold|candidates INPUT OUTPUT

`stream` reads line by line, `hold` all rows first, `candidates` rows with token ids, as the loop has
them.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any


def pairs_of(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """TRL's conversational preference pairs of rows with `prompt`, `responses` and `rewards`."""
    for row in rows:
        rewards = row["rewards"]
        best = max(range(len(rewards)), key=rewards.__getitem__)
        worst = min(range(len(rewards)), key=rewards.__getitem__)
        if rewards[best] == rewards[worst]:
            continue
        yield {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": row["responses"][best]}],
            "rejected": [{"role": "assistant", "content": row["responses"][worst]}],
        }


def pairs_with_ids(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The same of rows with `messages`, `candidates` and `scores`; with token ids, which training needs."""
    for row in rows:
        scores = row["scores"]
        best = max(range(len(scores)), key=scores.__getitem__)
        worst = min(range(len(scores)), key=scores.__getitem__)
        if scores[best] == scores[worst]:
            continue
        chosen = row["candidates"][best]
        rejected = row["candidates"][worst]
        yield {
            "prompt": row["messages"],
            "chosen": [{"role": "assistant", "content": chosen["text"]}],
            "rejected": [{"role": "assistant", "content": rejected["text"]}],
            "prompt_token_ids": row["prompt_token_ids"],
            "chosen_token_ids": chosen["token_ids"],
            "rejected_token_ids": rejected["token_ids"],
        }


def main(how: str, source: str, output: str) -> None:
    """Read, pair, write."""
    with open(source, encoding="utf-8") as lines, open(output, "w", encoding="utf-8") as file:
        rows: Iterable[dict[str, Any]] = map(json.loads, lines)
        if how == "candidates":
            pairs = pairs_with_ids(rows)
        elif how == "hold":
            rows = list(rows)
            pairs = list(pairs_of(rows))
        else:
            pairs = pairs_of(rows)
        for pair in pairs:
            file.write(json.dumps(pair) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
