"""Responses of known quality for `python -m rlhf.bestofn`, of AlpacaEval annotation files, one per candidate.

    python scripts/experiments/alpacaeval_candidates.py output=candidates.jsonl FILE FILE …

File i holds the i-th response to every instruction (`output_2`) and how much a strong judge prefers it to a
reference answer (`preference` between 1 and 2; the quality is preference − 1; null where the judge gave
none).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlhf.data.json_text import json_text


def main(arguments: list[str]) -> int:
    """Join the files by instruction, in the first one's order."""
    output = next((a.removeprefix("output=") for a in arguments if a.startswith("output=")), None)
    files = [Path(a) for a in arguments if "=" not in a]
    if output is None or not files:
        print(__doc__, file=sys.stderr)
        return 2
    tables = [
        {row["instruction"]: row for row in json.loads(path.read_text(encoding="utf-8"))} for path in files
    ]
    with open(output, "w", encoding="utf-8", newline="\n") as file:
        for instruction in tables[0]:
            rows = [table[instruction] for table in tables if instruction in table]
            line = {
                "prompt": [{"role": "user", "content": instruction}],
                "responses": [row["output_2"] for row in rows],
                "qualities": [None if row["preference"] is None else row["preference"] - 1 for row in rows],
            }
            file.write(json_text(line, ascii_only=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
