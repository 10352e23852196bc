"""The paper's claims in miniature: every arm of the comparison on the quickstart's world, one seed after
another.

    python scripts/experiments/paper_claims.py runs=runs/claims output=docs/results.md jobs=2

`jobs` seeds run side by side, each with one worker and one rank. Killed, it goes on where it was.
`arms=online,offline seeds=7` runs a part and prints the figures without a report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlhf.data.json_text import json_text

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package need not be installed
from biased_labels import LENGTH_SHARE, relabelled  # noqa: E402
from seed_statistics import interval, minus, verdict  # noqa: E402

PRIMARY_SEEDS = (1, 2, 3, 4, 5)
SECONDARY_SEEDS = (1, 2, 3)
PENALTY = 0.04
"""λ of the arm that stops the biased judge, per character."""
HIGH_RATE = 10
"""How many times the quickstart's learning rate is too much."""
READING = "## Reading"
WORLD = ["experiment=quickstart", "world.num_held_out=400", "prompts.num_held_out=400"]
ALONE = [f"compute.{key}=1" for key in ("num_inference_workers", "num_training_ranks", "num_threads")]
GREEDY = ["evaluate.temperature=0", "evaluate.n=1"]


@dataclass(frozen=True)
class Arm:
    """One run per seed: what it changes in the quickstart, and the arms whose finished stages it takes."""

    overrides: Callable[[Path, int], list[str]]
    reuse: tuple[str, ...] = ()


def _biased(runs: Path, seed: int) -> list[str]:
    """A judge trained on labels that favour length; its preferences are the world's, labelled anew."""
    data = runs / f"seed_{seed}" / "biased_preferences.jsonl"
    rows = (runs / f"seed_{seed}" / "online" / "world" / "preferences.jsonl").read_text().splitlines()
    data.write_text("".join(json_text(relabelled(json.loads(row)), ascii_only=False) + "\n" for row in rows))
    return [
        f"reward_model.data={data}",
        "reward_model.on_policy.rule=biased_labels:length_biased",
        "generate.max_new_tokens=48",  # the quickstart's 26 would cut long responses, which are never chosen
    ]


def _offline(runs: Path, seed: int) -> list[str]:
    """Every response from π0, on so many prompts that the pairs are as many as the online arm's.

    Online, policies that have grown sure give fewer pairs per prompt: π0's samples would otherwise make more.
    """
    prompts = round(fmean(row["pairs"] for row in figures(runs, seed, "online")[1:]))
    return ["generate.policy=initial", f"prompts.num_per_iteration={prompts}"]


def _rate(runs: Path, seed: int) -> list[str]:
    return [f"dpo.learning_rate={6.0e-5 * HIGH_RATE}"]


ARMS = {
    "online": Arm(lambda runs, seed: []),
    "offline": Arm(_offline, ("online",)),
    "online_greedy": Arm(lambda runs, seed: GREEDY, ("online",)),
    "offline_greedy": Arm(lambda runs, seed: [*_offline(runs, seed), *GREEDY], ("online", "offline")),
    "length_biased": Arm(_biased, ("online",)),
    "length_penalty": Arm(
        lambda runs, seed: [*_biased(runs, seed), f"pair.length_penalty={PENALTY}"],
        ("online", "length_biased"),
    ),
    "high_rate": Arm(_rate, ("online",)),
}
SECONDARY = ("length_biased", "length_penalty", "high_rate")
PRIMARY = ("online", "offline", "online_greedy", "offline_greedy")


def figures(runs: Path, seed: int, arm: str) -> list[dict]:
    """The rows of a finished run's summary, π0 first."""
    return json.loads((runs / f"seed_{seed}" / arm / "summary.json").read_text())["iterations"]


def run_arm(runs: Path, seed: int, name: str) -> None:
    """Run one arm with one seed; a finished one takes seconds."""
    arm, folder = ARMS[name], runs / f"seed_{seed}"
    reuse = ",".join(str(folder / other) for other in arm.reuse)
    command = [
        sys.executable,
        "-m",
        "rlhf.iterate",
        *WORLD,
        *ALONE,
        f"seed={seed}",
        f"run_dir={folder / name}",
    ]
    command += [f"reuse=[{reuse}]", *arm.overrides(runs, seed)]
    print(f"seed {seed} {name}", flush=True)
    log = folder / f"{name}.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    with open(log, "ab") as out:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out).returncode
    if code:
        raise SystemExit(
            f"{' '.join(command)}\nended with exit code {code}; the end of {log}:\n{log.read_text()[-2000:]}"
        )
    end = figures(runs, seed, name)[-1]
    print(
        f"seed {seed} {name} done: gold {end['gold_accuracy']:.3f}, {end['mean_response_tokens']:.1f} tokens",
        flush=True,
    )


def last(runs: Path, seeds: Sequence[int], arm: str, key: str, row: int = -1) -> list[float]:
    """One figure of one policy of an arm (the last iterate, or `row`), a value per seed."""
    return [figures(runs, seed, arm)[row][key] for seed in seeds]


@dataclass(frozen=True)
class Claim:
    """An expected sign of a difference, paired by seed."""

    text: str
    differences: Sequence[float]
    points: bool = True

    def line(self) -> str:
        """A row of the report: mean, interval, each seed, verdict."""
        scale, unit = (100, "%+.1f") if self.points else (1, "%+.2f")
        mean, half = interval(self.differences)
        each = ", ".join(unit % (scale * value) for value in self.differences)
        span = f"[{unit % (scale * (mean - half))}, {unit % (scale * (mean + half))}]"
        return f"| {self.text} | {unit % (scale * mean)} | {span} | {each} | {verdict(mean, half)} |"


def claims(runs: Path) -> tuple[list[Claim], list[Claim], list[Claim]]:
    """Online against offline and SFT; the biased judge; the too high rate."""
    main = []
    for suffix, how in (("", "sampled at T = 1"), ("_greedy", "greedy")):
        both = [last(runs, PRIMARY_SEEDS, f"{arm}{suffix}", "gold_accuracy") for arm in ("online", "offline")]
        sft = last(runs, PRIMARY_SEEDS, f"online{suffix}", "gold_accuracy", 0)
        main += [
            Claim(f"online > offline, {how}", minus(*both)),
            Claim(f"offline > SFT, {how}", minus(both[1], sft)),
            Claim(f"online > SFT, {how}", minus(both[0], sft)),
        ]
    seeds = SECONDARY_SEEDS
    tokens = {arm: [last(runs, seeds, arm, "mean_response_tokens", t) for t in range(4)] for arm in SECONDARY}
    unbiased = last(runs, seeds, "online", "mean_response_tokens")
    gold = {
        arm: [last(runs, seeds, arm, "gold_accuracy", t) for t in range(4)] for arm in (*SECONDARY, "online")
    }
    biased, penalised, fast = (tokens["length_biased"], tokens["length_penalty"], gold["high_rate"])
    length = [
        *[
            Claim(
                f"the biased judge lengthens responses: tokens, π{t} − π0", minus(biased[t], biased[0]), False
            )
            for t in (1, 2, 3)
        ],
        Claim("longer than with the unbiased judge: tokens of π3", minus(biased[3], unbiased), False),
        Claim("shorter with the penalty: tokens of π2", minus(biased[2], penalised[2]), False),
        Claim("with the penalty they do not grow: tokens, π0 − π3", minus(biased[0], penalised[3]), False),
        Claim(
            "gold of π3, with the penalty − without",
            minus(gold["length_penalty"][3], gold["length_biased"][3]),
        ),
    ]
    score = [last(runs, seeds, "high_rate", "mean_score", t) for t in range(4)]
    rate = [
        Claim("the judge's score rises: π3 − π0", minus(score[3], score[0]), False),
        Claim("the judge's score rises: π3 − π1", minus(score[3], score[1]), False),
        Claim("gold falls meanwhile: π1 − π3", minus(fast[1], fast[3])),
        Claim("gold falls below the start: π0 − π3", minus(fast[0], fast[3])),
        Claim("gold of π3, quickstart's rate − too high a rate", minus(gold["online"][3], fast[3])),
    ]
    return main, length, rate


def by_arm(runs: Path, arms: Sequence[str], seeds: Sequence[int]) -> str:
    """A table of every policy of some arms: gold, judge's score, tokens, KL, pairs; means over seeds."""
    lines = [
        "| arm | policy | gold | judge's score | tokens | KL to π0 | pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        for row in range(len(figures(runs, seeds[0], arm))):
            columns = ("gold_accuracy", "mean_score", "mean_response_tokens", "kl", "pairs")
            means = [last(runs, seeds, arm, key, row) for key in columns]
            shown = [f"{fmean(value):.{digits}f}" if value[0] is not None else "–"
                     for value, digits in zip(means, (3, 3, 1, 2, 0), strict=True)]  # fmt: skip
            lines.append(f"| {arm} | π{row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def report(runs: Path) -> str:
    """The text of `docs/results.md`."""
    head = "| claim | mean | 95 % interval | seeds | holds |\n|---|---|---|---|---|"
    tables = ["\n".join([head, *(claim.line() for claim in group)]) for group in claims(runs)]
    return f"""# The paper's claims in miniature

Written by `python scripts/experiments/paper_claims.py runs=runs/claims output=docs/results.md jobs=2`. Every
run is the quickstart's: a model of 0.86 million parameters, a judge trained on noisy preferences, 3 iterations, with
400 held-out prompts whose operands stand in no training data, the base model's included. Gold is exact match, checked
by a program that the loop never sees. Differences are paired by seed; intervals are Student's t over seeds; gold is in
points of 100. A claim holds when the whole interval is on its side of zero. No seed was chosen by its outcome: they are
{PRIMARY_SEEDS[0]} to {PRIMARY_SEEDS[-1]}; bias, penalty, response limit and high rate were set on another (7). What
stands under "Reading" is written by hand and kept.

## Online > offline > SFT

`offline` is the same loop with `generate.policy=initial`: every response is sampled from π0, everything else is equal,
and `prompts.num_per_iteration` is lowered to the mean number of pairs of the online arm, which makes fewer pairs per
prompt as it grows sure. `SFT` is π0. Means over {len(PRIMARY_SEEDS)} seeds:

{tables[0]}

{by_arm(runs, PRIMARY, PRIMARY_SEEDS)}

## A judge that likes length, and the penalty

For {100 * LENGTH_SHARE:.0f} % of the prompts the judge's labels go by length alone
(`scripts/experiments/biased_labels.py`), in the given preferences and in those of π0's samples; responses may have 48
tokens. `length_penalty` has the same judge and `pair.length_penalty={PENALTY}`. Over {len(SECONDARY_SEEDS)} seeds:

{tables[1]}

## Too high a learning rate

`high_rate` is the online arm with {HIGH_RATE} times the quickstart's learning rate. Over {len(SECONDARY_SEEDS)} seeds:

{tables[2]}

{by_arm(runs, SECONDARY, SECONDARY_SEEDS)}
"""


def main() -> int:
    """Run the arms, seed by seed, and write the report."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    unknown = [
        a for a in sys.argv[1:] if a.split("=", 1)[0] not in ("runs", "output", "arms", "seeds", "jobs")
    ]
    if unknown or "runs" not in given:
        print(f"{__doc__}\nnot understood: {' '.join(unknown) or 'runs=FOLDER is missing'}", file=sys.stderr)
        return 2
    runs = Path(given["runs"]).resolve()
    chosen = given.get("arms", ",".join(ARMS)).split(",")
    seeds = [int(seed) for seed in given.get("seeds", ",".join(map(str, PRIMARY_SEEDS))).split(",")]

    def run_seed(seed: int) -> None:
        for arm in chosen:
            if arm in PRIMARY or seed in SECONDARY_SEEDS or "seeds" in given:
                run_arm(runs, seed, arm)

    with ThreadPoolExecutor(int(given.get("jobs", "1"))) as pool:
        list(pool.map(run_seed, seeds))
    if "arms" not in given and "seeds" not in given and "output" in given:
        output = Path(given["output"])
        reading = output.read_text().partition(READING)[2] if output.is_file() else "\n"
        output.write_text(f"{report(runs)}\n{READING}{reading}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
