"""What a look finds in the files that are trained on, and in the rules that judge."""

import json
from pathlib import Path

import pytest

from rlhf.config.stage_configs import CallRuleStage
from rlhf.errors import WorkerFailed
from rlhf.preflight import inputs, rules
from rlhf.preflight.findings import Level, collect
from rlhf.preflight.look import look
from rlhf.preflight.training_data import step_counts, training_rows
from rlhf.run.job import Job, Outcome
from rlhf.run.stage_table import stage_function
from tests.stage_runner import FakeWorker
from tests.unit.preflight.test_look import changed, checked, quickstart, said

OK, WARNING, ERROR = Level.ok, Level.warning, Level.error
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
TIE = {"prompt": "q", "chosen": "a", "rejected": "a"}
TALK = {"prompt": "q", "response": "a"}
QUESTION = {"messages": [{"role": "user", "content": "q"}]}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found_in(tmp_path, key, *rows, **values):
    numbers = {}
    file = write(tmp_path / "rows.jsonl", *rows)
    found = collect("data", training_rows(changed(**values), {key: file}, numbers))
    return found, numbers


@pytest.mark.parametrize(
    ("key", "rows", "text", "level", "number"),
    [
        ("pair.data", [PAIR] * 9, "9 pairs in 9 comparisons, dropped: none", OK, 9),
        ("pair.data", [PAIR] * 9 + [TIE], "9 pairs in 10 comparisons, dropped: 1 equal", OK, 9),
        ("reward_model.data", [PAIR, TIE], "1 pairs in 2 comparisons, dropped: 1 equal", WARNING, 1),
        ("reward_model.data", [TIE], "no preference pair (1 comparisons, dropped: 1 equal)", ERROR, None),
        ("reward_model.data", [{"text": "a"}], "row 1: No preference found", ERROR, None),
        ("sft.data", [TALK] * 5, "5 conversations in 5 rows, dropped: none", OK, 5),
        ("sft.data", [TALK] * 3 + [QUESTION], "3 conversations in 4 rows, dropped: 1 no_answer", WARNING, 3),
        ("sft.data", [QUESTION], "0 conversations in 1 rows", ERROR, 0),
        ("sft.data", [{"numbers": [1]}], "row 1: No conversation found", ERROR, None),
        ("reward_model.on_policy.prompts", [{"prompt": "a"}], "1 prompts in 1 rows", OK, 1),
    ],
)
def test_rows_are_read_and_counted(tmp_path, key, rows, text, level, number):
    found, numbers = found_in(tmp_path, key, *rows)
    assert said(found, text) is level and numbers.get(key) == number


def test_a_column_that_is_not_read_and_a_contradicting_score_are_said(tmp_path):
    odd = PAIR | {"evidence": "x", "chosen_score": 1.0, "rejected_score": 2.0}
    found, _ = found_in(tmp_path, "pair.data", *[odd] * 3)
    assert said(found, "column `evidence` (3 of 3 rows) is not read; pair.columns=") is WARNING
    assert said(found, "in 3 pairs the rejected answer has the higher score") is WARNING
    found, _ = found_in(tmp_path, "pair.data", *[odd] * 3, pair__columns={"context": "evidence"})
    assert not [each for each in found if "not read" in each.text]


def test_of_a_large_file_the_first_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_ROWS", 5)
    found, numbers = found_in(tmp_path, "pair.data", *[PAIR] * 9)
    assert said(found, "6 pairs in the first 6 comparisons") is OK and numbers == {}


def test_a_wrong_file_hides_no_other(tmp_path):
    files = {"sft.data": write(tmp_path / "s", {"numbers": 1}), "pair.data": write(tmp_path / "p", PAIR)}
    files = {key: path.rename(path.with_suffix(".jsonl")) for key, path in files.items()}
    found = collect("data", training_rows(changed(), files, {}))
    assert said(found, "No conversation found") is ERROR and said(found, "pair.data: 1 pairs") is OK


@pytest.mark.parametrize(
    ("values", "numbers", "text", "level"),
    [
        ({}, {}, "dpo: at most 20000 pairs / batch 128 × 2 epochs = 314 steps, 10 of them warm-up", OK),
        ({"prompts__num_per_iteration": 500}, {}, "= 8 steps", WARNING),
        ({"prompts__num_per_iteration": 500, "pair__max_pairs_per_prompt": 4}, {}, "= 32 steps", OK),
        ({"dpo__warmup_ratio": 1.0}, {}, "313 of them warm-up", WARNING),
        ({"pair__data": "p"}, {"pair.data": 100}, "dpo: at most 100 pairs", WARNING),
        ({"pair__data": "p"}, {"pair.data": 10_000}, "= 158 steps", OK),
        ({}, {"sft.data": 1000}, "sft: at most 980 conversations / batch 32 = 31 steps", OK),
        ({}, {"reward_model.data": 1000}, "reward_model: at most 950 pairs / batch 512 = 2 steps", WARNING),
    ],
)
def test_steps_are_counted_before_the_run(values, numbers, text, level):
    assert said(list(step_counts(changed(**values), numbers)), text) is level


def test_what_is_not_known_is_not_counted():
    assert list(step_counts(changed(pair__data="owner/pairs"), {})) == []
    cfg = changed(reward_model__on_policy__prompts="p")
    (only,) = step_counts(cfg, {"reward_model.data": 3})
    assert only.text.startswith("dpo:")


def called(rule, messages=({"role": "user", "content": "2+2?"},)):
    config = CallRuleStage("evaluate.gold", rule, list(messages) if messages else None)
    job = Job("call_rule", "call_rule", config, {}, "", 1)
    return stage_function("call_rule")(job, FakeWorker()).metrics["findings"]


@pytest.mark.parametrize(
    ("body", "text", "level"),
    [
        ("return 0.5", "gives 0.5 for 'It is 4.' to '2+2?'", OK),
        ("return float('nan')", "gives nan", WARNING),
        ("return 'good'", "gave back 'good', which is no number", ERROR),
        ("return 1 / 0", "ZeroDivisionError: division by zero (", ERROR),
        ("raise SystemExit(3)", "SystemExit: 3 (", ERROR),
        ("raise KeyboardInterrupt", "KeyboardInterrupt (", ERROR),
        ("return messages[5]['content']", "IndexError: list index out of range (", ERROR),
        ("return json.loads(response)", "NameError: name 'json' is not defined (", ERROR),
    ],
)
def test_a_rule_is_called_once(tmp_path, monkeypatch, body, text, level):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"rule_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def rule(messages, response):\n    {body}\n")
    found = called(f"{name}:rule")
    assert said(found, text) is level
    assert " (" not in text or f"{name}.py, line 2)" in found[0].text


def test_a_rule_that_does_not_end_or_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rules, "TIME_LIMIT_SECONDS", 0.2)
    (tmp_path / "endless.py").write_text("def rule(messages, response):\n    while True:\n        pass\n")
    assert said(called("endless:rule"), "still at work after 0.2 s") is ERROR
    (tmp_path / "unimportable.py").write_text("import no_such_package\n")
    found = called("unimportable:rule", None)
    assert said(found, "No module named 'no_such_package'") is ERROR and "mend it" in found[0].way_out
    assert said(called("endless:rul"), "endless has no function 'rul'") is ERROR
    assert said(called("endless:rule", None), "imported; not called") is OK


class Calling:
    """A launcher that calls the rules here and finds nothing else."""

    def __init__(self):
        self.jobs = []

    def launch(self, job, kind, shards):
        self.jobs.append(job)
        if job.stage == "call_rule":
            return stage_function(job.stage)(job, FakeWorker())
        return Outcome(metrics={"findings": []})


def test_only_check_calls_rules_and_with_a_prompt_of_the_run(tmp_path):
    cfg = quickstart()
    cfg.evaluate.gold = "tests.unit.rules:length"
    launcher = Calling()
    look(cfg, launcher)
    assert launcher.jobs == [], "a run's own folder may name code of its maker"
    assert said(look(cfg, launcher, call_rules=True), "imported; not called") is OK
    cfg.prompts.path = str(write(tmp_path / "p.jsonl", *({"prompt": f"question {i}"} for i in range(9))))
    cfg.prompts.num_per_iteration, cfg.prompts.num_held_out, cfg.num_iterations = 2, 1, 1
    cfg.reward_model.data = str(write(tmp_path / "pairs.jsonl", PAIR))
    cfg.reward_model.on_policy.rule = "tests.unit.rules:broken"
    cfg.reward_model.on_policy.prompts = str(write(tmp_path / "q.jsonl", {"prompt": "asked on policy"}))
    found = look(cfg, launcher, call_rules=True)
    assert said(found, "gives 8 for 'It is 4.' to 'question 0'") is OK
    assert said(found, "a rule that divides by zero") is ERROR
    (broken,) = [each for each in found if "divides" in each.text]
    assert "'asked on policy'" in broken.way_out


def test_a_rule_that_ends_its_process_is_named():
    class Dying(Calling):
        def launch(self, job, kind, shards):
            raise WorkerFailed("call_rule: its worker was killed by signal 11")

    cfg = quickstart()
    cfg.reward_model.others = {}
    cfg.evaluate.gold = "tests.unit.rules:length"
    found = look(cfg, Dying(), call_rules=True)
    assert said(found, "evaluate.gold=tests.unit.rules:length: the process that called it") is ERROR


def test_check_calls_a_rule_in_a_process_of_its_own(tmp_path):
    write(tmp_path / "p.jsonl", *({"prompt": f"question {i}"} for i in range(9)))
    (tmp_path / "my_rule.py").write_text("import os\n\ndef rule(messages, response):\n    os._exit(7)\n")
    done = checked(
        tmp_path,
        "experiment=quickstart",
        "prompts.path=p.jsonl",
        "prompts.held_out_path=null",
        "prompts.num_held_out=2",
        "prompts.num_per_iteration=2",
        "evaluate.gold=my_rule:rule",
    )
    assert done.returncode == 2 and "✗ evaluate.gold=my_rule:rule: the process" in done.stdout, done.stdout
    assert "exit code 7" in done.stdout
