"""The command line: exit codes, messages, composition."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from rlhf.command.line import CONFIGS, to_config
from rlhf.command.settings import named_experiment
from rlhf.config.choices import Loss, Strategy
from rlhf.config.fields import CHECKED_WITH_OTHERS, numbers
from rlhf.config.limits import check_config, value_at
from rlhf.config.schema import Config
from rlhf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def run(*arguments, cwd):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
    )


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return to_config(compose("iterate", list(overrides)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_is_short(name):
    assert isinstance(composed(f"experiment={name}"), Config)
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert len(lines) <= 30


def test_without_overrides_the_defaults_are_the_papers():
    cfg = composed()
    assert cfg == Config()
    assert (cfg.dpo.beta, cfg.dpo.learning_rate, cfg.dpo.batch_size, cfg.generate.n) == (0.1, 5e-7, 128, 8)
    assert cfg.generate.temperatures == [1.0, 0.7] and cfg.num_iterations == 3


def test_a_rate_without_a_point_is_still_a_number():
    assert composed("dpo.learning_rate=5e-7").dpo.learning_rate == 5e-7


def test_keys_added_with_a_plus_are_refused():
    with pytest.raises(ConfigError, match="nonsense"):
        composed("+dpo.nonsense=1")


def test_engine_arguments_pass_through():
    assert composed("+generate.vllm_args.max_num_seqs=3").generate.vllm_args == {"max_num_seqs": 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense=1"], "nonsense"),
        (["+nonsense=1"], "nonsense"),
        (["dpo.nonsense=1"], "nonsense"),
        (["experiment=misspelt"], "misspelt"),
        (["dpo.learning_rate=fast"], "fast"),
        (["pair.strategy=best_wurst"], "best_wurst"),
        (["generate.n=3"], "generate.n=3"),
        (["num_iterations=0"], "num_iterations=0"),
        (["model.path=./nowhere"], "nowhere"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_what_is_wrong_with_the_request_ends_with_exit_code_2_and_no_traceback(tmp_path, arguments, said):
    done = run("rlhf.iterate", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "multirun").exists()


def test_debug_shows_the_traceback(tmp_path):
    done = run("rlhf.iterate", "generate.n=3", "debug=true", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr


@pytest.mark.parametrize("option", ["--help", "--cfg=job"])
@pytest.mark.parametrize("tool", ["rlhf.iterate", "rlhf.plan"])
def test_hydras_own_options_work(tmp_path, tool, option):
    done = run(tool, option, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_iterations" in done.stdout


@pytest.mark.parametrize(
    ("tool", "takes_experiments"), [("rlhf.iterate", True), ("rlhf.plan", True), ("rlhf.pair", False)]
)
def test_help_says_where_the_settings_are_described(tmp_path, tool, takes_experiments):
    done = run(tool, "--help", cwd=tmp_path)
    assert done.stdout.startswith("Settings are given as key=value; docs/configuration.md")
    assert ("lora_one_gpu" in done.stdout) is takes_experiments


def test_a_word_that_is_no_setting_is_told_the_form(tmp_path):
    done = run("rlhf.pair", "scored.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: scored.jsonl: no setting. Settings are given as key=value."


def test_the_driver_and_every_stage_module_load_no_torch(tmp_path):
    stages = sorted(path.stem for path in (ROOT / "rlhf" / "stages").glob("[a-z]*.py"))
    imports = "; ".join(f"import rlhf.stages.{stage}" for stage in stages)
    heavy = "print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    code = f"import sys, rlhf.iterate, rlhf.plan, rlhf.stage, rlhf.answer, rlhf.score, rlhf.pair; {imports}; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def outside():
    """Every number of the schema with values that it does not take: at its open ends, and beyond the closed
    ones."""
    for key, _, within in numbers(Config()):
        if within is CHECKED_WITH_OTHERS:
            continue
        yield key, math.nan
        yield key, within.least if within.least_is_open else within.least - 1
        if within.most < math.inf:
            yield key, within.most if within.most_is_open else within.most + 1


@pytest.mark.parametrize(("key", "value"), outside())
def test_what_is_outside_its_range(key, value):
    cfg = Config()
    section, _, name = key.rpartition(".")
    setattr(value_at(cfg, section) if section else cfg, name, value)
    with pytest.raises(ConfigError, match=rf"^{re.escape(f'{key}={value}: ')}"):
        check_config(cfg)


def test_most_numbers_have_a_range():
    ranges = {key: within for key, _, within in numbers(Config())}
    assert ranges["dpo.learning_rate"].least_is_open and not ranges["dpo.weight_decay"].least_is_open
    assert len(ranges) > 60 and ranges["generate.top_p"].most == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: setattr(c.generate, "temperatures", [0.0]), "all the same"),
        (lambda c: setattr(c.generate, "temperatures", []), "needs finite numbers"),
        (lambda c: setattr(c.generate, "top_p", 1.5), "top_p"),
        (lambda c: setattr(c.generate, "gpu_memory_utilization", 0), "gpu_memory_utilization"),
        (lambda c: setattr(c.dpo, "label_smoothing", 0.5), "label_smoothing"),
        (
            lambda c: (setattr(c.dpo, "loss", Loss.hinge), setattr(c.dpo, "label_smoothing", 0.1)),
            "no meaning.*hinge",
        ),
        (
            lambda c: (setattr(c.dpo, "loss", Loss.ipo), setattr(c.dpo, "label_smoothing", 0.1)),
            "no meaning.*ipo",
        ),
        (lambda c: setattr(c.dpo, "loss", Loss.exo_pair), "exo_pair needs it above 0.*0.001"),
        (lambda c: setattr(c.dpo.lora, "dropout", 1.0), "dpo.lora.dropout"),
        (lambda c: setattr(c.dpo.lora, "target_modules", []), "dpo.lora.target_modules"),
        (lambda c: setattr(c.dpo.lora, "target_modules", ["all-linear", "q_proj"]), "alone"),
        (lambda c: setattr(c.dpo, "learning_rate", float("nan")), "learning_rate"),
        (lambda c: setattr(c.dpo, "max_length", 1), "max_length"),
        (lambda c: setattr(c.compute, "zero_stage", 1), "zero_stage"),
        (lambda c: setattr(c.compute, "num_training_ranks", 1000), "num_training_ranks"),
        (lambda c: setattr(c.pair, "num_candidates", 9), "num_candidates"),
        (lambda c: setattr(c.reward_model, "held_out_share", 1.0), "reward_model.held_out_share"),
        (lambda c: setattr(c.sft, "held_out_share", -0.1), "sft.held_out_share"),
        (lambda c: setattr(c.reward_model.on_policy, "rule", "a:b"), "prompts and rule"),
        (lambda c: setattr(c.model, "path", "@world/model"), "world.enabled"),
        (
            lambda c: (
                setattr(c.pair, "strategy", Strategy.random),
                setattr(c.pair, "max_pairs_per_prompt", 2),
            ),
            "max_pairs_per_prompt",
        ),
    ],
)
def test_values_that_cannot_work_together(change, said):
    cfg = Config()
    change(cfg)
    with pytest.raises(ConfigError, match=said):
        check_config(cfg)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("experiment=quickstart", "quickstart"),
        ("experiment=[quickstart,inpo]", "quickstart+inpo"),
        ("experiment=[raft]", "raft"),
        ("dpo.beta=0.2", None),
    ],
)
def test_several_experiments_have_one_name(monkeypatch, word, name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("iterate", [word], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(composed)
    assert named_experiment() == name


def test_the_resolved_config_can_be_read_again(tmp_path):
    from rlhf.config.fields import plain

    cfg = composed("dpo.beta=0.2", "run_dir=somewhere")
    assert to_config(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(plain(cfg))))) == cfg


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_its_exit_code(tmp_path, number, code):
    body = (
        "import time\nfrom rlhf.command.line import guarded\nprint('up', "
        "flush=True)\nguarded(lambda: time.sleep(30))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", body], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == code
    assert "the same command goes on from here" in said


@pytest.mark.parametrize(("command", "code"), [("lambda: None", 0), ("refuse", 2)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_end_changes_nothing(command, code, number):
    body = f"""
import os
from rlhf.command.line import guarded
from rlhf.errors import UserError
def refuse():
    raise UserError("no")
class Last:  # goes when Python has taken its own handlers away
    def __del__(self, write=os.write, read=os.read):
        write(1, b"leaving\\n")
        read(0, 1)
last = Last()
guarded({command})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", body], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "leaving\n"
    process.send_signal(number)
    process.communicate("\n", timeout=10)
    assert process.returncode == code
