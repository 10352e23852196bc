"""A run on paper: what each stage costs, how that follows the settings, and what was measured of it."""

from dataclasses import replace

import pytest

from rlhf.config.choices import Engine, JudgeKind
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.preflight.devices import named_machine
from rlhf.preflight.forecast import forecast_of, spent_in, with_spent
from rlhf.preflight.forecast_table import forecast_text
from rlhf.run.stopwatch import duration
from tests.unit.refusals import model

H100S = named_machine("8xH100")


def config(**settings):
    """The article's, with some values by dotted key; whatever the default, transformers score."""
    cfg = Config()
    cfg.score.engine = Engine.transformers
    cfg.model.dtype = cfg.model.dtype.bfloat16
    cfg.reward_model.dtype = cfg.model.dtype
    for key, value in settings.items():
        section, _, name = key.replace("__", ".").rpartition(".")
        setattr(value_at(cfg, section) if section else cfg, name, value)
    return cfg


def stages(cfg, machine=H100S, **lengths):
    return {stage.name: stage for stage in forecast_of(cfg, machine, **lengths).stages}


def test_the_tokens_of_the_full_recipe():
    found = stages(config())
    # 20,000 prompts of 200 tokens, 8 responses of 550.
    assert found["iteration_001/generate"].tokens_in == 20_000 * 200
    assert found["iteration_001/generate"].tokens_out == 20_000 * 8 * 550
    # transformers reads the prompt for each response.
    assert found["iteration_001/score"].tokens_in == 20_000 * 8 * 750
    assert found["iteration_001/reference"].tokens_in == 20_000 * (200 + 2 * 550)
    assert found["iteration_001/dpo"].tokens_in == 2 * 20_000 * (200 + 2 * 550)
    assert found["iteration_001/held_out/reference"].tokens_in == 256 * (200 + 4 * 550)


def gpu_hours(found, name):
    return found[name].time.planned * 8 / 3600


def test_the_full_recipe_is_what_others_estimate():
    """H100-hours of an iteration at 550 tokens; docs/performance.md says where the differences come from."""
    found = stages(config())
    assert 1.6 < gpu_hours(found, "iteration_001/generate") < 2.6
    assert 1.0 < gpu_hours(found, "iteration_001/score") < 2.9
    assert 0.2 < gpu_hours(found, "iteration_001/reference") < 0.7
    assert 3.0 < gpu_hours(found, "iteration_001/dpo") < 5.0
    iteration = sum(stage.time.planned for name, stage in found.items() if name.startswith("iteration_001"))
    assert 50 < iteration / 60 < 80
    assert 45e9 < found["iteration_001/dpo"].memory < 60e9
    assert found["iteration_001/dpo"].disk == pytest.approx(32.1e9, rel=1e-3)
    assert found["iteration_001/dpo"].checkpoints == pytest.approx(2 * 112.4e9, rel=1e-3)


def test_the_token_ids_of_a_training_are_on_the_disk_meanwhile():
    for lora_rank in (0, 16):
        few, many = (
            stages(config(prompts__num_per_iteration=number, dpo__lora__rank=lora_rank))["iteration_001/dpo"]
            for number in (20_000, 1_000_000)
        )
        # 980,000 pairs more of 1,300 tokens each: beside checkpoints of whole weights little, of adapters all.
        more = many.checkpoints - few.checkpoints
        assert more == pytest.approx(980_000 * 1300 * 4, rel=1e-6)


def seconds(cfg, name, machine=H100S, **lengths):
    return stages(cfg, machine, **lengths)[name].time.planned


def test_time_follows_the_settings():
    base = config()
    dpo = "iteration_001/dpo"
    assert seconds(config(dpo__gradient_checkpointing=False), dpo) < seconds(base, dpo)
    assert seconds(config(dpo__num_epochs=4), dpo) > 1.7 * seconds(base, dpo)
    assert seconds(config(pair__max_pairs_per_prompt=2), dpo) > 1.7 * seconds(base, dpo)
    assert seconds(config(dpo__save_steps=1000), dpo) < seconds(base, dpo)
    assert seconds(config(compute__num_training_ranks=2), dpo) > 2 * seconds(base, dpo)
    assert seconds(base, dpo, named_machine("8xA100")) > 1.9 * seconds(base, dpo)
    generate = "iteration_001/generate"
    assert seconds(config(generate__n=16), generate) > 1.7 * seconds(base, generate)
    assert seconds(base, generate, response_tokens=1100) > 1.9 * seconds(base, generate)
    assert seconds(config(compute__num_inference_workers=4), generate) > 1.7 * seconds(base, generate)
    assert seconds(config(generate__vllm_args={"max_num_seqs": 32}), generate) > 2 * seconds(base, generate)
    score = "iteration_001/score"
    assert seconds(config(score__engine=Engine.vllm), score, prompt_tokens=2000) < 0.6 * seconds(
        base, score, prompt_tokens=2000
    )
    assert seconds(config(score__engine=Engine.auto), score) == seconds(
        config(score__engine=Engine.vllm), score
    )
    cpu = named_machine("2xcpu")
    few = {"score__engine": Engine.auto, "prompts__num_per_iteration": 2, "model__path": "a/x-0.1B"}
    few |= {"reward_model__path": "a/x-0.001B", "prompts__num_held_out": 2}
    by_transformers = seconds(config(**few | {"score__engine": Engine.transformers}), score, cpu)
    assert seconds(config(**few), score, cpu) == by_transformers, "a start is more than so little work"
    many = few | {"prompts__num_per_iteration": 20_000}
    assert seconds(config(**many), score, cpu) < seconds(
        config(**many | {"score__engine": Engine.transformers}), score, cpu
    )
    pairwise = config(reward_model__kind=JudgeKind.pairwise, score__opponents=3)
    assert stages(pairwise)[score].tokens_in == 20_000 * 24 * (200 + 2 * 550)
    assert stages(pairwise)["iteration_001/held_out/score"].tokens_in == 256 * 2 * 4 * 4 * 1300
    assert seconds(config(model__dtype=base.model.dtype.float32), dpo) > 5 * seconds(base, dpo)


def test_memory_follows_the_settings():
    dpo = "iteration_001/dpo"
    base = stages(config())[dpo].memory
    assert stages(config(compute__zero_stage=3))[dpo].memory < base
    assert stages(config(compute__offload_optimizer=True))[dpo].memory < base
    assert stages(config(), named_machine("1xH100"))[dpo].memory > 80e9
    assert "! dpo: does not fit" in forecast_text(forecast_of(config(), named_machine("1xH100")), None, "x")
    assert "!" not in forecast_text(forecast_of(config(), H100S), None, "x")
    # The memory of one GPU; that of a CPU is shared by all processes.
    assert stages(config())["iteration_001/generate"].memory == 0.9 * 80e9
    two = config(compute__num_inference_workers=2)
    one = stages(config(), named_machine("8xcpu"))["iteration_001/generate"].memory
    assert stages(two, named_machine("8xcpu"))["iteration_001/generate"].memory == 2 * one


def test_memory_is_of_the_tokens_that_the_stages_take():
    dpo, score = "iteration_001/dpo", "iteration_001/score"
    # 16384 at a time as its workers do without a word; not DPO's budget, which is another one on a CPU.
    judge = stages(config())[score].memory
    assert stages(config(score__batch_tokens=16384))[score].memory == judge
    on_cpu = named_machine("8xcpu")
    assert (
        stages(config(score__batch_tokens=2048), on_cpu)[score].memory
        == stages(config(), on_cpu)[score].memory
    )
    # Where 16384 do not fit, DPO begins with fewer by itself, and so does its plan.
    tight = replace(H100S, memory=50e9)
    unbound = stages(config(dpo__batch_tokens=16384), tight)[dpo].memory
    assert stages(config(), tight)[dpo].memory < unbound
    assert stages(config())[dpo].memory == stages(config(dpo__batch_tokens=16384))[dpo].memory


def test_a_judge_elsewhere_and_a_rule_cost_next_to_nothing_here():
    served = stages(config(reward_model__url="http://127.0.0.1:1"))["iteration_001/score"]
    by_rule = stages(config(reward_model__rule="m:f"))["iteration_001/score"]
    assert served.note == "without the server's time" and by_rule.note == "without the rule's time"
    assert served.time.planned < 60 and served.devices == by_rule.devices == 0


def test_more_gpus_than_there_are_for_an_engine_are_refused():
    with pytest.raises(ConfigError, match=r"generate.tensor_parallel_size=4, but the plan is for 2 × H100"):
        forecast_of(config(generate__tensor_parallel_size=4), named_machine("2xH100"))
    assert forecast_of(config(generate__tensor_parallel_size=4), named_machine("2xcpu")).stages


def test_a_model_of_one_number_has_a_plan(tmp_path):
    folder = str(model(tmp_path / "m"))
    assert forecast_of(config(model__path=folder, reward_model__path=folder), H100S).seconds > 0


def test_what_was_spent_takes_the_place_of_what_was_planned(tmp_path):
    plan = forecast_of(config(num_iterations=2), H100S)
    spent = {"iteration_001/generate": 100.0, "iteration_001/dpo": 7.0, "iteration_000/held_out/score": 3.0}
    known = {stage.name: stage for stage in with_spent(plan, spent).stages}
    assert (known["iteration_001/generate"].time.planned, known["iteration_001/generate"].spent) == (
        100,
        True,
    )
    assert (known["iteration_002/generate"].time.planned, known["iteration_002/generate"].spent) == (
        100,
        False,
    )
    assert known["iteration_002/held_out/score"].time.planned == 3
    before = {stage.name: stage for stage in plan.stages}
    assert known["iteration_002/score"] == before["iteration_002/score"]
    assert known["iteration_001/dpo"].time.floor == before["iteration_001/dpo"].time.floor
    text = forecast_text(with_spent(plan, {"prompts": 4.0}), 2.0, "x")
    assert "4.0 s spent" in text and "money" in text
    assert "measured: time of finished stages" in text
    left = sum(stage.time.planned for stage in plan.stages if stage.name != "prompts")
    (line,) = [line for line in text.splitlines() if line.startswith("= of it left to do")]
    assert duration(left) in line
    assert "left" not in forecast_text(with_spent(plan, {}), None, "x")


def test_seconds_of_a_run_folder(tmp_path):
    for name, content in {
        "world": '{"seconds": 5}',
        "iteration_001/dpo": '{"seconds": 2.5}',
        "iteration_001/pair": '{"seconds": "many"}',
        "iteration_001/score": "[]",
        "iteration_001/reference": "{",
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "artifact.json").write_text(content)
    assert spent_in(tmp_path) == {"world": 5.0, "iteration_001/dpo": 2.5}
    assert spent_in(tmp_path / "nothing") == {}


def test_money_is_for_all_gpus_while_a_stage_runs():
    plan = forecast_of(config(), H100S)
    hours = plan.seconds * 8 / 3600
    text = forecast_text(plan, 2.5, "a run")
    (line,) = [line for line in text.splitlines() if line.startswith("= the whole run")]
    assert line.split()[-1] == f"{hours * 2.5:.2f}" and f"{hours:.2f}" in line
    assert text.startswith("a run on 8 × H100 (each 989 TFLOP/s in bf16, 80 GB, 3.35 TB/s: NVIDIA H100 data")
    assert "money" not in forecast_text(plan, None, "a run")
    idle = replace(plan, machine=replace(plan.machine, num_devices=16))
    (line,) = [line for line in forecast_text(idle, 1, "").splitlines() if line.startswith("= the whole")]
    assert line.split()[-1] == f"{2 * hours:.2f}", "GPUs that a stage does not use are paid for"


def test_a_run_that_takes_weeks_without_a_gpu_is_told_of_others():
    assert "hardware=8xH100 plans for" in forecast_text(
        forecast_of(config(), named_machine("2xcpu")), None, "x"
    )
    assert "hardware=8xH100 plans for" not in forecast_text(forecast_of(config(), H100S), None, "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (99.9, "99.9 s"),
        (120, "2.0 min"),
        (600, "10 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (359_999, "100.0 h"),
        (86_400_000, "1,000 days"),
    ],
)
def test_durations_read_well(value, text):
    assert duration(value) == text


def test_the_quickstarts_world_is_planned_as_it_was_measured():
    """37 s on two cores, where one process trains 1,000 steps without DeepSpeed."""
    cfg = config(world__enabled=True, model__path="@world/model", reward_model__path="@world/judge")
    cfg.prompts.path = "@world/prompts.jsonl"
    cfg.prompts.held_out_path = "@world/held_out.jsonl"
    two_cores = replace(
        H100S, name="2 cores", num_devices=1, is_cpu=True, flops=160e9, fp32_flops=160e9, bandwidth=20e9
    )
    assert 30 < stages(cfg, two_cores)["world"].time.planned < 45
