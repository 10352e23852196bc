"""Which recipe? All of `docs/recipes.md` that can be had in the quickstart's world, at equal samples and
steps, over seeds, each with a learning rate that was chosen on other seeds.

    python scripts/experiments/which_recipe.py out=runs/recipes output=docs/results.md advice=docs/recipes.md

First the rates: every recipe with 2e-5, 6e-5 and 2e-4 (and the next one beyond, where the best lies at an
end) on `grid_seeds` seeds from 101 on. Then every recipe on the seeds 1 to `seeds`, one seed after the other;
then online and offline DPO alone up to `main_seeds`. `jobs` runs go side by side, each in one process with
one thread. Each run is a line of OUT/results.jsonl as soon as it is finished. Killed, it goes on: a finished
run is not looked at again, a begun one goes on where it was.

    seeds=10 main_seeds=20 grid_seeds=2 jobs=2   how much of it
    recipes=dpo,simpo                            some of them
    rate=6e-5                                    the same for all, without a grid
    page=only                                    run nothing: write what there is to `output` and `advice`
    num_iterations=5 world.base_steps=100        any setting of the loop, of every run
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package need not be installed
from one_process import Forked  # noqa: E402
from recipe_page import advice, put, write_page  # noqa: E402
from recipe_rows import BASE, RECIPES, Done, best_rates, missing_rates  # noqa: E402

from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.data.shards import write_atomic  # noqa: E402

FIRST_GRID_SEED = 101
MAIN_CLAIM = (BASE, "offline")
COMMON = (
    "world.num_held_out=400",
    "prompts.num_held_out=400",
    "evaluate.n=2",
    # What is sampled together: batches are of prompts of one length, and so many prompts fill them.
    "generate.shard_size=400",
    "generate.engine=transformers",
    "score.engine=transformers",
    *("compute.device=cpu", "compute.num_inference_workers=1"),
    *("compute.num_training_ranks=1", "compute.num_threads=1"),
    # A run of a minute needs no checkpoints; what is finished of it is kept all the same.
    *(f"{section}.save_steps=1000" for section in ("world", "sft", "reward_model", "dpo", "raft")),
)
"""What all runs are told, beside the quickstart."""
COUNTS = {"seeds": 10, "main_seeds": 20, "grid_seeds": 2, "jobs": 2}
OTHERS = ("out", "output", "advice", "recipes", "rate", "page")


@dataclass(frozen=True)
class Task:
    """One run: a recipe with a rate, on a seed."""

    seed: int
    recipe: str
    rate: float

    @property
    def name(self) -> str:
        """Of its folder in that of its seed."""
        return f"{self.recipe}@{self.rate:g}"

    def words(self, extra: Sequence[str]) -> list[str]:
        """Its settings, but for those that say where it lies."""
        recipe = RECIPES[self.recipe]
        experiment = f"experiment=[{','.join(('quickstart', *recipe.experiments))}]"
        rate = f"{recipe.section}.learning_rate={self.rate:g}"
        return [experiment, *COMMON, f"seed={self.seed}", *recipe.settings, rate, *extra]


@dataclass
class Table:
    """What is asked for, and what of it is finished."""

    out: Path
    extra: list[str]
    done: Done
    fork: Callable[[list[str], Path], dict[str, Any]]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run_all(self, tasks: Sequence[Task], jobs: int) -> None:
        """Run what is missing of some tasks, `jobs` side by side, in their order.

        The first task of a seed makes what all its runs share, which wait for it.
        """
        pending = [task for task in tasks if not self.done.has(task.seed, task.recipe, task.rate)]
        say(f"{len(tasks)} runs, {len(tasks) - len(pending)} of them finished")
        firsts: dict[int, threading.Event] = {}
        for task in pending:
            firsts.setdefault(task.seed, threading.Event())
        owners: set[int] = set()
        failed = threading.Event()

        def take(task: Task) -> None:
            with self._lock:
                is_first = task.seed not in owners
                owners.add(task.seed)
            try:
                if not is_first:
                    firsts[task.seed].wait()
                if not failed.is_set():
                    self._run(task)
            except BaseException:
                failed.set()  # what has not begun is left for the next call
                raise
            finally:
                if is_first:
                    firsts[task.seed].set()

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(take, woven(pending, jobs)))

    def _run(self, task: Task) -> None:
        words = task.words(self.extra)
        folder = self.out / f"seed_{task.seed}"
        run = folder / task.name
        # What the seed's runs have in common lies in those of plain DPO, what rates have in the recipe's own.
        others = [*folder.glob(f"{BASE}@*"), *folder.glob(f"{task.recipe}@*")]
        reuse = sorted({str(other) for other in others if other.is_dir() and other != run})
        figures = self.fork(
            [*words, f"run_dir={run}", f"reuse=[{','.join(reuse)}]"],
            folder / f"{task.name}.log",
        )
        row = {"seed": task.seed, "recipe": task.recipe, "rate": task.rate, "told": words, **figures}
        with self._lock:
            self.done.rows.append(row)
            line = json_text(row, ascii_only=False) + "\n"
            with open(results_file(self.out), "a", encoding="utf-8") as file:
                file.write(line)
        last = figures["policies"][-1]
        say(
            f"seed {task.seed} {task.name}: gold {last['gold_accuracy']:.3f}, KL {last['kl']:.2f}, "
            f"{figures['processor_seconds']} s of processor"
        )


def woven(tasks: Sequence[Task], jobs: int) -> list[Task]:
    """The tasks in their order, but that the first one of each seed comes `jobs` runs earlier.

    All others of a seed wait for its first run: begun early, it keeps nobody waiting. Of the first `jobs`
    seeds it comes before everything, since there is nothing else to do meanwhile.
    """
    order: list[Task] = []
    seen: set[int] = set()
    for task in tasks:
        place = len(order)
        if task.seed not in seen:
            place = len(seen) if len(seen) < jobs else len(order) - jobs
            seen.add(task.seed)
        order.insert(place, task)
    return order


def results_file(out: Path) -> Path:
    """A line for each finished run."""
    return out / "results.jsonl"


def read_done(out: Path, words_of: Callable[[int, str, float], list[str]]) -> Done:
    """The finished runs that were told what they would be told today.

    A last line that a kill has torn is taken out of the file: that run is asked for its figures again.
    """
    file = results_file(out)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole, end, torn = text.rpartition("\n")
    if torn:
        say(f"{file}: the last line is torn, and is left out")
        write_atomic(file, (whole + end).encode())
    rows = [json.loads(line) for line in whole.split("\n") if line]
    today = [row for row in rows if row["told"] == words_of(row["seed"], row["recipe"], row["rate"])]
    if len(today) < len(rows):
        others = len(rows) - len(today)
        say(f"{others} of {len(rows)} finished runs were told other settings, and do not count")
    return Done(today)


def grid_tasks(recipes: Sequence[str], seeds: Sequence[int], done: Done) -> list[Task]:
    """The runs that the choice of rates still needs, one seed after the other."""
    return [
        Task(seed, recipe, rate)
        for seed in seeds
        for recipe in recipes
        for rate in missing_rates(recipe, seeds, done)
    ]


def table_tasks(recipes: Sequence[str], seeds: int, main_seeds: int, rates: dict[str, float]) -> list[Task]:
    """All recipes of a seed together, so that any beginning of it is a fair table; then the main claim."""
    tasks = [Task(seed, recipe, rates[recipe]) for seed in range(1, seeds + 1) for recipe in recipes]
    both = [recipe for recipe in recipes if recipe in MAIN_CLAIM]
    if len(both) == len(MAIN_CLAIM):
        tasks += [
            Task(seed, recipe, rates[recipe]) for seed in range(seeds + 1, main_seeds + 1) for recipe in both
        ]
    return tasks


def told(words: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """What a command line gives of ours, settings of the loop, and what is neither."""
    given = {}
    extra = []
    unknown = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in {*COUNTS, *OTHERS}:
            given[key] = value
        elif equals and ("." in key or key == "num_iterations"):
            extra.append(word)
        else:
            unknown.append(word)
    return given, extra, unknown


def say(text: str) -> None:
    """Tell the person who watches."""
    print(text, flush=True)


def main() -> int:
    """Run what is missing, and write the page."""
    given, extra, unknown = told(sys.argv[1:])
    recipes = given.get("recipes", ",".join(RECIPES)).split(",")
    unknown += [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown or "out" not in given or recipes[0] != BASE:
        why = ", ".join(unknown) or "out=FOLDER is missing, or recipes=… does not begin with dpo"
        print(f"{__doc__}\nnot understood: {why}", file=sys.stderr)
        return 2
    counts = {key: int(given.get(key, value)) for key, value in COUNTS.items()}
    out = Path(given["out"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    done = read_done(out, lambda seed, recipe, rate: Task(seed, recipe, rate).words(extra))
    grid_seeds = range(FIRST_GRID_SEED, FIRST_GRID_SEED + counts["grid_seeds"])
    if given.get("page") != "only":
        table = Table(out, extra, done, Forked().run)
        rates = {recipe: float(given["rate"]) for recipe in recipes} if "rate" in given else {}
        while not rates:
            tasks = grid_tasks(recipes, grid_seeds, done)
            table.run_all(tasks, counts["jobs"])
            if not tasks:
                rates = best_rates(recipes, grid_seeds, done)
        table.run_all(table_tasks(recipes, counts["seeds"], counts["main_seeds"], rates), counts["jobs"])
    if "output" in given:
        write_page(Path(given["output"]), done, recipes)
    if "advice" in given:
        put(Path(given["advice"]), advice(done, recipes))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
