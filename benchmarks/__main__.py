"""Every claim about speed, measured on this machine: a table, and `benchmarks/results/latest.json`.

    python -m benchmarks [only=dpo_step,pairing] [runs=5]

Each topic is a module of this folder with a function `rows(runs)`. It proves equality before it takes a
time, and runs in a process of its own, so that one that fails takes no other with it: its row says why.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.run.processes import end_children

TOPICS: tuple[str, ...] = ("dpo_step", "reward_model", "scoring", "generation", "pairing", "scale", "startup")
RESULTS = Path(__file__).parent / "results" / "latest.json"
_LIMIT_SECONDS = 1200
"""Of one topic: far beyond what it takes."""


def measure_topic(topic: str, runs: int, pipe: Any) -> None:
    """Send the topic's rows as `latest.json` has them, or why there are none."""
    try:
        module = importlib.import_module(f"benchmarks.{topic}")
        pipe.send([row.as_json() for row in module.rows(runs)])
    except BaseException:
        pipe.send(traceback.format_exc())


def rows_of(topic: str, runs: int) -> list[dict[str, Any]]:
    """The rows of a topic; one that is not met and says why, where it failed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    # By the module's own name: a process that is spawned has another `__main__`.
    target = importlib.import_module("benchmarks.__main__").measure_topic
    process = context.Process(target=target, args=(topic, runs, theirs))
    process.start()
    theirs.close()
    answer: Any = f"nothing after {_LIMIT_SECONDS} s"
    try:
        if ours.poll(_LIMIT_SECONDS):
            answer = ours.recv()
    except EOFError:
        answer = "its process died"
    if isinstance(answer, str):
        end_children()
        print(answer)
        row = {"name": topic, "reached": None, "bar": None, "met": False, "unit": "", "detail": answer}
        answer = [row]
    # Libraries may have threads that hang at exit; what matters is said.
    process.join(10)
    end_children()
    return [{"topic": topic} | row for row in answer]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
    }


def line_of(row: dict[str, Any]) -> str:
    """A row as the table prints it."""
    mark = "✓" if row["met"] else "✗"
    if row["reached"] is None:
        return f"{mark} {row['name']}: failed"
    sign = "≤" if row.get("lower_is_better") else "≥"
    bar = f"({sign} {row['bar']:g})"
    return (
        f"{mark} {row['name']:<34} {row['reached']:>8.2f} {bar:<10} {row['unit']}   {row['detail']}".rstrip()
    )


def main(words: list[str]) -> int:
    """Measure the topics, print each row once it is known, write all down; 1 where a bar is missed."""
    topics = TOPICS
    runs = 5
    for word in words:
        key, _, value = word.partition("=")
        if key == "only":
            topics = tuple(value.split(","))
        elif key == "runs":
            runs = int(value)
        else:
            sys.exit(f"error: {word}: there is no {key!r}; say only= or runs=.")
    unknown = sorted(set(topics) - set(TOPICS))
    if unknown:
        sys.exit(f"error: only={','.join(unknown)}: no such topic; there are {', '.join(TOPICS)}.")
    rows_by_topic: dict[str, list[dict[str, Any]]] = {}
    if RESULTS.is_file() and topics != TOPICS:
        # A part of the topics takes the place of their own rows alone.
        for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]:
            rows_by_topic.setdefault(row["topic"], []).append(row)
    missed = 0
    for topic in topics:
        taken = {"date": time.strftime("%Y-%m-%d"), "runs": runs, "load": round(os.getloadavg()[0], 2)}
        began = time.perf_counter()
        rows = rows_of(topic, runs)
        taken["seconds"] = round(time.perf_counter() - began)
        for row in rows:
            print(line_of(row), flush=True)
            missed += not row["met"]
        rows_by_topic[topic] = [row | taken for row in rows]
        # After every topic, so that Ctrl-C costs one at most.
        write_results(rows_by_topic)
    print(f"{missed} bars missed; {RESULTS}")
    return 1 if missed else 0


def write_results(rows_by_topic: dict[str, list[dict[str, Any]]]) -> None:
    """All rows, in the order of the topics, and the machine that they were taken on."""
    rows = [row for topic in TOPICS for row in rows_by_topic.get(topic, [])]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json_text({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
