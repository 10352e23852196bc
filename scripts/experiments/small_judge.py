r"""A Bradley-Terry judge of about 1 million parameters, from nothing, on preference files.

    python scripts/experiments/small_judge.py out=runs/small_judge \
        data=helpful:FILE,harmless:FILE,ultrafeedback:FILE[,…] [share=0.15] [seed=1] [key=value …]

Files that share a name before the colon are one source. Prompts whose first user turn is the same are held
out together, so that neither the tokenizer nor the stage `reward_model` sees anything of a held-out prompt.
Prints accuracy by source with Wilson's 95 % interval, beside that of taking the longer answer. Killed, it
goes on where it was. Other keys go to the stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
SETTINGS = {
    "num_iterations": 1,
    "generate.engine": "transformers",
    "prompts.num_held_out": 64,
    "reward_model.learning_rate": 5.0e-4,
    "reward_model.batch_size": 16,
    "reward_model.micro_batch_size": 16,
    "reward_model.max_length": 128,
    "reward_model.held_out_share": 0.0,
    "reward_model.gradient_checkpointing": "false",
    "compute.num_training_ranks": 1,
    "compute.num_threads": 1,
}


def is_held_out(messages: list[dict[str, str]], share: float, seed: int) -> bool:
    """Whether a conversation is held out, as a hash of its first user turn says."""
    first = next(message["content"] for message in messages if message["role"] == "user")
    digest = hashlib.sha256(f"{seed}/held out/{' '.join(first.lower().split())}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def write_split(files: list[tuple[str, Path]], share: float, seed: int, out: Path) -> None:
    """Write the preferences as `train.jsonl` and `held_out.jsonl`, and the prompts of the first as
    `prompts.jsonl`.
    """
    from rlhf.data.preferences import read_preferences

    rows: dict[str, list[Any]] = {"train": [], "held_out": [], "prompts": []}
    for source, file in files:
        counts: Counter[str] = Counter()
        for messages, chosen, rejected in read_preferences(file, counts):
            answers = {"chosen": chosen, "rejected": rejected}
            if is_held_out(messages, share, seed):
                rows["held_out"].append({"prompt": messages, **answers, "subset": source})
                continue
            both = {
                side: [*messages, {"role": "assistant", "content": text}] for side, text in answers.items()
            }
            rows["train"].append({**both, "source": source})
            rows["prompts"].append({"messages": messages})
        print(f"{source}: {file.name}: {dict(counts)}", flush=True)
    for name, lines in rows.items():
        text = "".join(json_text(line, ascii_only=False) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_base(train: Path, folder: Path, seed: int) -> None:
    """A random model and a tokenizer whose merges are learnt from the training conversations."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf.world.tokenizer import build_tokenizer

    turns = (turn["content"] for row in lines(train) for side in ("chosen", "rejected") for turn in row[side])
    tokenizer = build_tokenizer(turns, VOCABULARY)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def call(*arguments: object, stdout: Any = None) -> None:
    """One command of the package, shown as it is typed; ends this one too when it fails."""
    command = ["python", "-m", *map(str, arguments)]
    print(shlex.join(command), flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    code = subprocess.run([sys.executable, *command[1:]], env=environment, stdout=stdout).returncode
    if code:
        sys.exit(code)


def table(rows: Iterable[dict[str, Any]], held_out: Iterable[dict[str, Any]]) -> str:
    """Accuracy of the judge and of length by source, as Markdown; a tie is wrong.

    Args:
        rows: both scores and the subset of every held-out pair, in order, as `rlhf.rewardbench` writes them.
        held_out: the pairs themselves.
    """
    from rlhf.evaluation.judge_quality import wilson

    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for scored, pair in zip(rows, held_out, strict=True):
        assert scored["subset"] == pair["subset"], "scores and pairs are out of step"
        right = scored["chosen"] > scored["rejected"], len(pair["chosen"]) > len(pair["rejected"])
        found[pair["subset"]].append(right)
        found["all"].append(right)
    text = [
        "| source | held-out pairs | judge, 95 % interval | longer answer, 95 % interval |",
        "|---|---|---|---|",
    ]
    for source in [*sorted(set(found) - {"all"}), "all"]:
        n = len(found[source])
        cells = []
        for column in (0, 1):
            number = sum(right[column] for right in found[source])
            low, high = wilson(number, n)
            cells.append(f"{number / n:.3f} [{low:.3f}, {high:.3f}]")
        text.append(f"| {source} | {n} | {' | '.join(cells)} |")
    return "\n".join(text)


def facts(run: Path) -> str:
    """What was trained, on how much, and how long it took."""
    from rlhf.models.weight_files import num_parameters

    made = json.loads((run / "reward_model" / "artifact.json").read_text())
    figures = {
        "parameters": num_parameters(run / "reward_model" / "model"),
        "training pairs": made["counts"]["pairs"],
        "of which cut on the left": made["counts"]["cut_left"],
        "seconds": round(made["seconds"]),
        "loss": f"{made['metrics']['first_loss']:.3f} to {made['metrics']['last_loss']:.3f}",
    }
    return ", ".join(f"{name}: {value}" for name, value in figures.items())


def main(arguments: list[str]) -> int:
    """Split, make the base, train it, score the held-out pairs."""
    keys = dict(argument.partition("=")[::2] for argument in arguments)
    if not keys.get("data") or not keys.get("out"):
        print(__doc__, file=sys.stderr)
        return 2
    files = [
        (name, Path(file)) for name, _, file in (item.partition(":") for item in keys.pop("data").split(","))
    ]
    out, share, seed = (
        Path(keys.pop("out")).resolve(),
        float(keys.pop("share", "0.15")),
        int(keys.pop("seed", "1")),
    )
    run, base = out / "run", out / "base"
    run.mkdir(parents=True, exist_ok=True)
    if not (base / "tokenizer.json").is_file():
        write_split(files, share, seed, out)
        write_base(out / "train.jsonl", base, seed)
    given = {"run_dir": run, "seed": seed, "model.path": base, "prompts.path": out / "prompts.jsonl"}
    given |= {"reward_model.path": base, "reward_model.data": out / "train.jsonl"}
    with open(run / "config.yaml", "w") as config:
        call(
            "rlhf.iterate",
            "--cfg",
            "job",
            *(f"{k}={v}" for k, v in (SETTINGS | given | keys).items()),
            stdout=config,
        )
    call("rlhf.stage", "reward_model", f"run_dir={run}")
    report = out / "held_out.json"
    report.unlink(missing_ok=True)
    judge = f"reward_model.path={run / 'reward_model' / 'model'}"
    call(
        "rlhf.rewardbench",
        judge,
        f"input={out / 'held_out.jsonl'}",
        f"output={report}",
        "compute.num_threads=1",
    )
    found = json.loads(report.read_text(encoding="utf-8"))
    print(f"\n{facts(run)}\n\n{table(found['rows'], lines(out / 'held_out.jsonl'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
