"""One experiment with every kind of judge: SFT, then trained judges, RewardBench, and an iteration with each
of them.

    python scripts/experiments/every_judge.py out=runs/every_judge [rule=module:function] [key=value …]

On the quickstart's world: a Bradley-Terry judge and a pairwise judge are trained from the same SFT model, a
rule judges, and vLLM's own server judges with the Bradley-Terry judge's weights. The runs share what they can
(`reuse`): world, SFT and π0's samples are made once. RewardBench is `rlhf.rewardbench` on a right and a wrong
answer to each held-out prompt. Prints a Markdown table. Killed, it goes on where it was. Other keys go to
every run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from random import Random
from typing import Any

from rlhf.data.json_text import json_text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MAX_TOKENS = 256
"""The context of the world's models, for vLLM's server."""
NO_SAMPLES = [f"reward_model.on_policy.{key}=null" for key in ("prompts", "rule")]
WORLD = ["experiment=quickstart", "num_iterations=1", *NO_SAMPLES]
READY = ["reward_model.data=null"]


def iterate(run: Path, overrides: list[str]) -> None:
    """`python -m rlhf.iterate`, in this process, so that all runs share one process with the heavy imports
    done.
    """
    from hydra import compose, initialize_config_dir

    from rlhf.command.line import CONFIGS
    from rlhf.command.settings import to_config
    from rlhf.iterate import execute

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = to_config(compose("iterate", [*overrides, f"run_dir={run}"]))
    execute(cfg)


def rewardbench(judge: dict[str, str], rows: Path, output: Path) -> list[dict[str, Any]]:
    """`python -m rlhf.rewardbench`, likewise; both scores of every row."""
    from omegaconf import OmegaConf

    from rlhf.command.settings import to_config
    from rlhf.config.tools import RewardBenchTool
    from rlhf.rewardbench import rewardbench

    if not output.is_file():
        given = {
            "reward_model": judge,
            "input": str(rows),
            "output": str(output),
            "score": {"max_tokens": MAX_TOKENS},
        }
        rewardbench(to_config(OmegaConf.create(given), RewardBenchTool))
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["rows"]
    return found


def write_rows(world: Path, path: Path) -> None:
    """A right and a wrong answer to each of the world's held-out prompts, as preferences, task by task."""
    from rlhf.world.tasks import good_answer, near_miss, parse_prompt

    rng = Random("every judge")
    rows = []
    for text in (world / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        puzzle = parse_prompt(json.loads(text)["messages"][-1]["content"])
        sides = {"chosen": good_answer(rng, puzzle), "rejected": near_miss(rng, puzzle)}
        rows.append({"prompt": puzzle.prompt, **sides, "subset": puzzle.task.name})
    path.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")


def line(kind: str, run: Path, trained: Path, benchmark: list[dict[str, Any]]) -> str:
    """A row of the table, of a finished run, the run that trained its judge, and its scores on the
    benchmark.
    """
    made = trained / "reward_model" / "artifact.json"
    held_out = json.loads(made.read_text())["metrics"]["held_out_accuracy"] if made.is_file() else None
    first, last = json.loads((run / "summary.json").read_text())["iterations"][:2]
    score = json.loads((run / "iteration_001" / "score" / "artifact.json").read_text())["counts"]
    accuracy = sum(row["chosen"] > row["rejected"] for row in benchmark) / len(benchmark)
    gold = [row["gold_accuracy"] for row in (first, last)]
    cells = [
        kind,
        "–" if held_out is None else f"{held_out:.3f}",
        f"{accuracy:.3f}",
        str(score.get("judge_calls", score["responses"])),
        str(last["pairs"]),
        f"{last['win_rate']:.3f} [{last['win_rate_low']:.3f}, {last['win_rate_high']:.3f}]",
        f"{gold[0]:.3f} → {gold[1]:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def run_all(out: Path, rule: str, extra: list[str], server: Any) -> list[str]:
    """Run the four loops and the benchmark with each judge; the lines of the table."""
    first, model = out / "scalar", out / "scalar" / "reward_model" / "model"
    pairwise = ["reward_model.kind=pairwise", "reward_model.path=@sft/model"]
    shared = [*WORLD, f"reuse=[{first}]"]
    unscored = [
        *WORLD,
        f"reuse=[{out / 'rule'}]",
    ]  # scalar's scores are of the same weights: nobody would be asked
    remote = {"path": str(model), "url": server.url}
    kinds: dict[str, tuple[list[str], dict[str, str]]] = {
        "scalar": (WORLD, {"path": str(model)}),
        "pairwise": (
            [*shared, *pairwise],
            {"path": str(out / "pairwise" / "reward_model" / "model"), "kind": "pairwise"},
        ),
        "rule": ([*shared, *READY, f"reward_model.rule={rule}"], {"rule": rule}),
        "remote": (
            [*unscored, *READY, *(f"reward_model.{key}={value}" for key, value in remote.items())],
            remote,
        ),
    }
    table = ["| judge | held-out accuracy | RewardBench | calls | pairs | win rate vs π0 | gold of π0 → π1 |"]
    table.append("|---|---|---|---|---|---|---|")
    for kind, (overrides, judge) in kinds.items():
        iterate(out / kind, [*overrides, *extra])
        if kind == "scalar":
            write_rows(out / kind / "world", out / "rewardbench.jsonl")
            server.tell("start")  # it loads while the next runs go on; the judge that asks waits for it
        found = rewardbench(judge, out / "rewardbench.jsonl", out / f"rewardbench_{kind}.json")
        table.append(line(kind, out / kind, first if kind == "remote" else out / kind, found))
    return table


def main(arguments: list[str]) -> int:
    """Run it all, print the table."""
    keys = dict(argument.partition("=")[::2] for argument in arguments)
    if not keys.get("out"):
        print(__doc__, file=sys.stderr)
        return 2
    from rlhf.launch.machine import starting_environment
    from tests.serving import Server

    os.environ.update(starting_environment("auto"))
    out, rule = Path(keys.pop("out")).resolve(), keys.pop("rule", "rlhf.world.tasks:gold")
    out.mkdir(parents=True, exist_ok=True)
    server = Server(str(out / "scalar" / "reward_model" / "model"), out / "server.log", MAX_TOKENS)
    try:
        table = run_all(out, rule, [f"{key}={value}" for key, value in keys.items()], server)
    finally:
        server.stop()
    print("\n" + "\n".join(table))
    return 0


if __name__ == "__main__":
    from rlhf.command.line import guarded

    guarded(lambda: sys.exit(main(sys.argv[1:])))
