"""`scripts/experiments/which_recipe.py` around its runs: which are needed, in which order, what a kill leaves,
and what the page says of them."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import recipe_page  # noqa: E402
import which_recipe  # noqa: E402
from recipe_rows import FIRST_RATES, LADDER, RECIPES, Done, best_rates, missing_rates  # noqa: E402
from seed_statistics import T_QUANTILES, interval, minus, verdict  # noqa: E402
from which_recipe import Table, Task, grid_tasks, read_done, table_tasks, woven  # noqa: E402

from tests.unit.config.test_experiments import composed  # noqa: E402

ALL = list(RECIPES)


def row(seed: int, recipe: str, rate: float = 6e-5, gold: float = 0.4, greedy: float = 0.8) -> dict[str, Any]:
    """A finished run of two iterations whose last policy has some gold."""
    policies = []
    for iteration, value in enumerate((0.2, (0.2 + gold) / 2, gold)):
        policies.append(
            {
                "iteration": iteration,
                "gold_accuracy": value,
                "kl": 0.5 * iteration,
                "mean_response_tokens": 6.0,
                "mean_score": value,
                "pairs": None if iteration == 0 or recipe == "raft" else 300,
                "steps": 40,
            }
        )
    figures = {"policies": policies, "greedy": {"0": 0.7, "2": greedy}, "processor_seconds": 30.0}
    return {
        "seed": seed,
        "recipe": recipe,
        "rate": rate,
        "told": Task(seed, recipe, rate).words([]),
        **figures,
    }


def test_an_interval_is_students_t():
    mean, half = interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, half) == (2.5, pytest.approx(3.182 * math.sqrt(5 / 3) / 2))
    assert interval([3.0, 3.0, 3.0]) == (3.0, 0.0)
    assert math.isnan(interval([1.0])[1]) and interval([1.0])[0] == 1.0


def test_quantiles_fall_to_that_of_the_normal_distribution_and_none_is_left_out():
    assert len(T_QUANTILES) == 30 and list(T_QUANTILES) == sorted(T_QUANTILES, reverse=True)
    assert T_QUANTILES[0] == 12.706 and T_QUANTILES[8] == 2.262 and T_QUANTILES[18] == 2.093
    assert all(quantile > 1.96 for quantile in T_QUANTILES)
    # More seeds than the table has degrees of freedom: a little too wide, and no error.
    values = [float(number % 2) for number in range(40)]
    assert interval(values)[1] == pytest.approx(2.042 * math.sqrt(10 / 39) / math.sqrt(40))


def test_a_verdict_needs_the_whole_interval():
    assert verdict(1.0, 0.9) == "**yes**"
    assert verdict(-1.0, 0.9) == "**no: the other way**"
    assert verdict(1.0, 1.0) == verdict(-1.0, 1.1) == verdict(1.0, math.nan) == "not shown"
    assert minus([1.0, 2.0], [0.5, 4.0]) == [0.5, -2.0]
    with pytest.raises(ValueError, match="shorter"):
        minus([1.0], [])


@pytest.mark.parametrize("recipe", ALL)
def test_every_recipe_composes_and_differs_from_dpo_in_what_it_is(recipe):
    plain, other = (composed(*Task(3, name, 6e-5).words([])) for name in ("dpo", recipe))
    assert other.seed == 3 and other.evaluate.n == 2 and other.generate.n == plain.generate.n
    assert other.prompts.num_per_iteration == plain.prompts.num_per_iteration == 320
    assert getattr(other, RECIPES[recipe].section).learning_rate == 6e-5
    told = [Task(3, name, 6e-5).words([]) for name in ALL]
    assert len(set(map(tuple, told))) == len(ALL), "two recipes are the same"


def test_steps_are_equal():
    # So many passes over the pairs of one iteration, in three iterations together.
    passes = {}
    for recipe in ALL:
        cfg = composed(*Task(1, recipe, 6e-5).words([]))
        section = cfg.raft if recipe == "raft" else cfg.dpo
        sets = sum(min(t, 1 + cfg.replay.iterations) for t in range(1, cfg.num_iterations + 1))
        passes[recipe] = section.num_epochs * sets / section.batch_size
    assert set(passes.values()) == {6 / 16}, passes


def test_the_grid_goes_one_rate_beyond_an_end_that_is_the_best():
    seeds = (101, 102)
    done = Done()
    assert missing_rates("dpo", seeds, done) == list(FIRST_RATES)
    gold = {6e-6: 0.1, 2e-5: 0.2, 6e-5: 0.3, 2e-4: 0.4, 6e-4: 0.35, 2e-3: 0.9}
    for seed in seeds:
        done.rows += [row(seed, "dpo", rate, gold[rate]) for rate in FIRST_RATES]
    assert missing_rates("dpo", seeds, done) == [6e-4]
    done.rows.append(row(101, "dpo", 6e-4, gold[6e-4]))
    assert missing_rates("dpo", seeds, done) == [6e-4], "half of the seeds decide nothing"
    done.rows.append(row(102, "dpo", 6e-4, gold[6e-4]))
    assert missing_rates("dpo", seeds, done) == [] and best_rates(["dpo"], seeds, done) == {"dpo": 2e-4}


def test_the_grid_ends_with_the_ladder_and_looks_at_both_kinds_of_gold():
    done = Done([row(101, "dpo", rate, gold=rate * 100) for rate in LADDER[1:]])
    assert missing_rates("dpo", [101], done) == [] and best_rates(["dpo"], [101], done) == {"dpo": LADDER[-1]}
    falling = Done([row(101, "dpo", rate, gold=0.4, greedy=1 - rate * 100) for rate in LADDER[1:]])
    assert missing_rates("dpo", [101], falling) == [LADDER[0]]
    falling.rows.append(row(101, "dpo", LADDER[0], gold=0.4, greedy=1.0))
    assert missing_rates("dpo", [101], falling) == [] and best_rates(["dpo"], [101], falling) == {
        "dpo": LADDER[0]
    }


def test_any_beginning_of_the_table_is_fair():
    rates = dict.fromkeys(ALL, 6e-5)
    tasks = table_tasks(ALL, 2, 4, rates)
    assert [task.seed for task in tasks] == [1] * 9 + [2] * 9 + [3, 3, 4, 4]
    assert [task.recipe for task in tasks[:9]] == ALL and {task.recipe for task in tasks[18:]} == {
        "dpo",
        "offline",
    }
    assert len(table_tasks(["dpo", "simpo"], 2, 4, rates)) == 4, "the main claim has two arms"
    grid = grid_tasks(["dpo", "raft"], [101, 102], Done())
    assert [(task.seed, task.recipe) for task in grid[:6]] == [(101, "dpo")] * 3 + [(101, "raft")] * 3


def test_what_a_seed_shares_is_begun_early():
    order = woven(table_tasks(ALL, 3, 3, dict.fromkeys(ALL, 6e-5)), jobs=2)
    assert sorted(order, key=lambda task: task.seed) == table_tasks(ALL, 3, 3, dict.fromkeys(ALL, 6e-5))
    firsts = [place for place, task in enumerate(order) if task.recipe == "dpo"]
    assert firsts == [0, 1, 16] and [task.seed for task in order if task.recipe == "dpo"] == [1, 2, 3]


class Fork:
    """Runs that give figures at once, and remember what they were told."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.told: list[list[str]] = []
        self.lock = threading.Lock()

    def __call__(self, words: list[str], log: Path) -> dict[str, Any]:
        with self.lock:
            self.told.append(words)
        run = next(word.partition("=")[2] for word in words if word.startswith("run_dir="))
        if self.failing and self.failing in run:
            raise RuntimeError(f"{self.failing} failed")
        Path(run).mkdir(parents=True, exist_ok=True)
        made = row(1, "dpo")
        return {key: made[key] for key in ("policies", "greedy", "processor_seconds")}

    def named(self, key: str) -> list[str]:
        return [word.partition("=")[2] for words in self.told for word in words if word.startswith(f"{key}=")]


def table(out: Path, fork: Fork) -> Table:
    return Table(out, [], read_done(out, lambda seed, recipe, rate: Task(seed, recipe, rate).words([])), fork)


TASKS = [Task(seed, recipe, 6e-5) for seed in (1, 2) for recipe in ("dpo", "simpo", "offline")]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_each_run_is_a_line_at_once_and_a_second_call_runs_nothing(tmp_path, jobs):
    fork = Fork()
    table(tmp_path, fork).run_all(TASKS, jobs)
    rows = [
        json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {(line["seed"], line["recipe"]) for line in rows} == {(task.seed, task.recipe) for task in TASKS}
    again = Fork()
    table(tmp_path, again).run_all(TASKS, jobs)
    assert len(fork.told) == 6 and again.told == []


def test_what_runs_share_is_taken_from_those_of_the_same_seed(tmp_path):
    fork = Fork()
    table(tmp_path, fork).run_all([*TASKS, Task(1, "simpo", 2e-5)], 1)
    taken = dict(zip(fork.named("run_dir"), fork.named("reuse"), strict=True))
    seed_1, seed_2 = tmp_path / "seed_1", tmp_path / "seed_2"
    assert taken[str(seed_1 / "dpo@6e-05")] == "[]"
    assert taken[str(seed_2 / "simpo@6e-05")] == f"[{seed_2 / 'dpo@6e-05'}]"
    assert taken[str(seed_1 / "simpo@2e-05")] == f"[{seed_1 / 'dpo@6e-05'},{seed_1 / 'simpo@6e-05'}]"


def test_a_failed_run_ends_the_table_and_keeps_what_is_finished(tmp_path):
    fork = Fork(failing="seed_1/simpo")
    with pytest.raises(RuntimeError, match="simpo failed"):
        table(tmp_path, fork).run_all(TASKS, 1)
    assert len(fork.told) == 2
    again = Fork()
    table(tmp_path, again).run_all(TASKS, 1)
    assert len(again.told) == 5, "all but the finished one"


def test_a_failed_first_run_does_not_leave_others_waiting(tmp_path):
    with pytest.raises(RuntimeError, match="dpo@6e-05 failed"):
        table(tmp_path, Fork(failing="dpo@6e-05")).run_all(TASKS, 3)


def test_a_torn_line_is_one_run_and_no_more(tmp_path, capsys):
    lines = [json.dumps(row(1, recipe)) for recipe in ("dpo", "simpo", "raft")]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(lines)[:-20], encoding="utf-8")
    fork = Fork()
    table(tmp_path, fork).run_all([Task(1, "raft", 6e-5)], 1)
    assert "the last line is torn" in capsys.readouterr().out and len(fork.told) == 1
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["recipe"] for line in rows] == ["dpo", "simpo", "raft"]


def test_runs_that_were_told_other_settings_do_not_count(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text(json.dumps(row(1, "dpo")) + "\n", encoding="utf-8")
    extra = ["generate.n=4"]
    done = read_done(tmp_path, lambda seed, recipe, rate: Task(seed, recipe, rate).words(extra))
    assert done.rows == [] and "1 of 1 finished runs were told other settings" in capsys.readouterr().out


def finished(seeds: dict[str, int]) -> Done:
    """Runs of some recipes on so many seeds each; simpo is better by about 10 points, raft is as good."""
    better = {"simpo": 0.1, "offline": -0.05}
    rows = []
    for recipe, count in seeds.items():
        for seed in range(1, count + 1):
            gold = 0.4 + better.get(recipe, 0.0) + 0.01 * (seed % 2) * (recipe != "dpo")
            rows.append(row(seed, recipe, gold=gold, greedy=gold + 0.3 * (recipe != "simpo")))
    return Done(rows)


def test_only_seeds_that_all_recipes_have_are_compared():
    done = finished({"dpo": 5, "simpo": 4, "raft": 3})
    recipes = ["dpo", "simpo", "raft"]
    assert {name: len(rows) for name, rows in recipe_page.compared(done, recipes).items()} == dict.fromkeys(
        recipes, 3
    )
    assert recipe_page.compared(done, [*recipes, "inpo"]) == {}
    assert recipe_page.compared(Done([row(101, "dpo")]), ["dpo"]) == {}, (
        "seeds of the grid choose, and no more"
    )


def test_the_page_says_how_many_seeds_and_what_is_shown():
    done = finished({"dpo": 4, "simpo": 4, "raft": 4, "offline": 6})
    done.rows += [row(seed, "dpo", gold=0.4) for seed in (5, 6)]
    text = recipe_page.tables(done, ["dpo", "simpo", "raft", "offline"])
    assert "intervals over 4 seeds" in text and "over what both have (6 seeds)" in text
    lines = {
        line.split(" | ")[0]: line for line in text.split("\n") if line.startswith("| ") and "±" not in line
    }
    assert "20.0 [20.0, 20.0]" in lines["| π0"]
    differences = [line for line in text.split("\n") if line.startswith("| SimPO")][1]
    assert "+10.5 [+9.6, +11.4] | **better**" in differences and "**worse**" in differences
    raft = [line for line in text.split("\n") if line.startswith("| RAFT")]
    assert "| – | 80 |" in raft[0] and "no difference shown" in raft[1]
    main = lines["| online > offline, sampled at T = 1"]
    assert main.count("+4.0") == 3 and main.endswith("| **yes** |")


def test_one_seed_decides_nothing():
    text = recipe_page.tables(finished({"dpo": 1, "simpo": 1}), ["dpo", "simpo"])
    assert text.startswith("**One seed so far**") and recipe_page.ONE_SEED in text
    assert "**better**" not in text and recipe_page.UNDECIDED not in text
    assert "over 1 seed (" in recipe_page.advice(finished({"dpo": 1, "simpo": 1}), ["dpo", "simpo"])


def test_the_page_shows_rates_and_which_was_chosen():
    rows = [row(101, "dpo", rate, gold=gold) for rate, gold in zip(LADDER[1:4], (0.1, 0.3, 0.2), strict=True)]
    text = recipe_page.tables(Done(rows), ["dpo", "simpo"])
    assert "on 1 seed that no other table has;" in text and "intervals" not in text
    assert text.startswith("No seed is finished by all recipes yet.")
    assert "| DPO, reference π0 | 45.0 | **55.0** | 50.0 |" in text and "| SimPO | – | – | – |" in text


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nby hand\n", encoding="utf-8")
    done = finished({"dpo": 2, "simpo": 2})
    recipe_page.write_page(page, done, ["dpo", "simpo"])
    page.write_text(page.read_text(encoding="utf-8") + "\n## Reading\n", encoding="utf-8")
    before = page.read_text(encoding="utf-8")
    recipe_page.write_page(page, done, ["dpo", "simpo"])
    assert page.read_text(encoding="utf-8") == before
    assert before.startswith("# Results\n\nby hand\n\n<!-- recipes") and before.endswith("## Reading\n")
    svg = (tmp_path / recipe_page.PICTURE).read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "SimPO" in svg and "KL to π0" in svg


def test_advice_names_the_best_and_what_may_be_as_good():
    done = finished({"dpo": 4, "simpo": 4, "raft": 4})
    for found in done.rows:
        if found["recipe"] == "raft":
            found["policies"][-1]["kl"] = 0.25
    text = recipe_page.advice(done, ["dpo", "simpo", "raft"])
    assert "over 4 seeds" in text
    assert "| the best samples at T = 1 | SimPO: 50.5 | – |" in text
    assert "| the best greedy answers | RAFT: 70.5 | DPO, reference π0 (-0.5) |" in text
    # Plain DPO has as much KL as SimPO and less gold.
    assert "| much gold close to π0 | RAFT, SimPO | – |" in text
    assert recipe_page.advice(Done(), ["dpo"]) == recipe_page.NOTHING


def test_of_two_equal_recipes_neither_is_lost_from_the_front():
    done = finished({"dpo": 2, "raft": 2})
    both = recipe_page.compared(done, ["dpo", "raft"])
    both["raft"] = both["dpo"]
    assert recipe_page.front(both) == ["dpo", "raft"]


def test_the_picture_has_every_policy_of_every_recipe():
    spec = recipe_page.picture(recipe_page.compared(finished({"dpo": 3, "simpo": 3}), ["dpo", "simpo"]))
    points = spec["data"]["values"]
    assert len(points) == 6 and [point["kl"] for point in points[:3]] == [0.0, 0.5, 1.0]
    last = points[-1]
    mean = 100 * fmean([0.51, 0.5, 0.51])
    assert (
        last["gold"] == pytest.approx(mean) and last["low"] < mean < last["high"] and "low" not in points[0]
    )


@pytest.mark.parametrize(
    "words", [[], ["out=x", "recipes=nope"], ["out=x", "sedes=3"], ["out=x", "recipes=simpo"]]
)
def test_what_is_not_understood_is_said_with_the_help(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["which_recipe.py", *words])
    assert which_recipe.main() == 2
    assert "out=runs/recipes" in capsys.readouterr().err
