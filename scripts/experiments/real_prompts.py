"""Run one iteration of the real command on real prompts with a tiny random policy and judge of each model
family.

    python scripts/experiments/real_prompts.py prompts=FILE[,FILE…] [count=500] [families=llama3,qwen2,…]
        [out=DIR] [key=value …]

Takes `count` distinct prompts, evenly over the files (and a few more to evaluate on), and follows each by its
id: it is dropped for a counted reason or sampled once, and once sampled it gives a pair or is dropped for a
counted reason. Prints a line per family; exits with 1 when a prompt is lost or doubled or a run fails. Other
keys go to the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NUM_HELD_OUT = 8
SETTINGS = {
    "num_iterations": 1,
    "evaluate.n": 1,
    "generate.n": 4,
    "generate.max_new_tokens": 16,
    "pair.truncated": "allow",
    "dpo.batch_size": 32,
    "dpo.num_epochs": 1,
    "dpo.gradient_checkpointing": "false",
}


def choose(files: list[Path], count: int, out: Path) -> list[str]:
    """Write `count` distinct prompts to `out`, the files' first in turn, and the held-out ones; returns the
    ids.
    """
    from rlhf.data.prompts import load_prompts

    queues = [load_prompts(file)[0] for file in files]
    chosen: dict[str, Any] = {}
    for place in range(max(map(len, queues))):
        for queue in queues:
            if place < len(queue) and len(chosen) < count + NUM_HELD_OUT:
                chosen.setdefault(queue[place].id, queue[place].messages)
    if len(chosen) < count + NUM_HELD_OUT:
        sys.exit(
            f"{len(chosen)} distinct prompts in the files; count={count} needs {NUM_HELD_OUT} more: add files"
        )
    rows = [{"context_messages": messages} for messages in chosen.values()]
    (out / "prompts.json").write_text(json_text(rows[:count]))
    (out / "held_out.json").write_text(json_text(rows[count:]))
    return list(chosen)[:count]


def account(run: Path, given: list[str]) -> tuple[str, int]:
    """What became of every prompt, as text, and how many are lost or doubled."""
    from rlhf.data.shards import read_all_rows, read_rows

    first = run / "iteration_001"
    folders = {name: first / name for name in ("generate", "score", "pair")}
    counts = [
        json.loads((f / "artifact.json").read_text())["counts"] for f in (run / "prompts", *folders.values())
    ]
    dropped = {key[8:]: n for part in counts for key, n in part.items() if key.startswith("dropped/") and n}
    kept = [row["id"] for row in read_rows(run / "prompts" / "train.parquet", ["id"])]
    sampled, scored, paired = ([row["id"] for row in read_all_rows(f, ["id"])] for f in folders.values())
    strangers = (set(kept) - set(given)) | (set(sampled) - set(kept)) | (set(paired) - set(sampled))
    doubled = sum(len(ids) - len(set(ids)) for ids in (kept, sampled, scored, paired)) + len(strangers)
    lost = abs(len(given) - len(set(paired)) - sum(dropped.values())) + len(set(sampled) ^ set(scored))
    figures = {
        "rows": len(given),
        "kept": len(kept),
        "sampled": len(sampled),
        "responses": counts[1]["responses"],
    }
    figures |= {"pairs": len(paired), "dropped": dropped or 0, "lost": lost, "doubled": doubled}
    return " ".join(f"{name}={value}" for name, value in figures.items()), lost + doubled


def run_family(family: str, given: list[str], out: Path, extra: dict[str, str]) -> bool:
    """One run, one printed line; whether all went well."""
    from tests.families import tiny_judge, tiny_policy

    folder = out / family
    overrides = SETTINGS | {
        "run_dir": folder / "run",
        "model.path": tiny_policy(folder / "policy", family),
        "reward_model.path": tiny_judge(folder / "judge", family),
        "prompts.path": out / "prompts.json",
        "prompts.held_out_path": out / "held_out.json",
        "prompts.num_held_out": NUM_HELD_OUT,
        "prompts.num_per_iteration": len(given),
    }
    command = [sys.executable, "-m", "rlhf.iterate", *(f"{k}={v}" for k, v in (overrides | extra).items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    with open(folder / "output.txt", "wb") as log:
        code = subprocess.run(
            command, env=environment, cwd=out, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    text, faults = (
        account(folder / "run", given) if code == 0 else (f"failed, exit {code}: {folder}/output.txt", 1)
    )
    print(f"{family:8} {text} seconds={time.monotonic() - begun:.0f}", flush=True)
    return faults == 0


def main(arguments: list[str]) -> int:
    """Parse key=value, run the families one after another."""
    from tests.families import FAMILIES

    keys = dict(argument.partition("=")[::2] for argument in arguments)
    if not keys.get("prompts"):
        sys.exit(__doc__)
    files = [Path(file).resolve() for file in keys.pop("prompts").split(",")]
    count, families = int(keys.pop("count", "500")), keys.pop("families", ",".join(FAMILIES)).split(",")
    if unknown := sorted(set(families) - set(FAMILIES)):
        sys.exit(f"families={','.join(unknown)}: unknown; known are {', '.join(FAMILIES)}")
    out = Path(keys.pop("out") if "out" in keys else tempfile.mkdtemp(prefix="real_prompts_")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    given = choose(files, count, out)
    results = [run_family(family, given, out, keys) for family in families]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
