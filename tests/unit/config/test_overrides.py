"""Commands that are printed mean, pasted into a shell and composed, what they are said to mean."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rlhf.command.line import CONFIGS
from rlhf.command.settings import to_config
from rlhf.config.overrides import iterate_command, literal, override, overrides_of, pasted
from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
LETTERS = "\\\"'${}a ,=[]()#~:\n1.&;|<>*?!`%@ä-"
NASTY = [
    "a b",
    "a,b",
    "it's",
    'say "so"',
    "[x]",
    "{x:y}",
    "dpo.beta=0.05",
    "a$HOME",
    "${seed}",
    "\\${seed}",
    "a\\",
    "a\\'",
    '\\"',
    "~/x",
    "a(b",
    "a#b",
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "-x",
    "1e5",
    "2.50",
    "007",
    "true",
    "null",
    "nan",
    "",
    " ",
    "ä",
    "@world/model",
    "*",
    "a\nb",
]


def through_a_shell(command, folder):
    """The words that a shell makes of a command."""
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, cwd=folder, check=True
    )
    assert not list(folder.iterdir()), "the command ran something"
    return done.stdout.split("\0")[:-1]


def composed(words):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return to_config(compose("iterate", words))


@pytest.mark.parametrize("text", NASTY)
def test_a_pasted_path_is_the_path(text, tmp_path):
    command = pasted(override("run_dir", text), override("reuse", [text, "b"]))
    cfg = composed(through_a_shell(command, tmp_path))
    assert (cfg.run_dir, cfg.reuse) == (text, [text, "b"])


def test_any_text_comes_through_hydra():
    chance = random.Random(0)
    parser = OverridesParser.create()
    for _ in range(1000):
        text = "".join(chance.choices(LETTERS, k=chance.randint(1, 9)))
        value = parser.parse_override(override("run_dir", text)).value()
        assert OmegaConf.to_container(OmegaConf.create({"key": value}), resolve=True) == {"key": text}


def test_plain_paths_need_no_quotes():
    assert iterate_command(Path("/runs/mine")) == "python -m rlhf.iterate run_dir=/runs/mine"
    assert iterate_command(Path("/my runs")) == "python -m rlhf.iterate 'run_dir=\"/my runs\"'"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_whole_config_can_be_typed(experiment, tmp_path):
    cfg = composed([f"experiment={experiment}", "run_dir=x"])
    assert composed(through_a_shell(pasted(*overrides_of(cfg)), tmp_path)) == cfg


def test_mappings_can_be_typed(tmp_path):
    cfg = Config(reuse=["a b", "c"])
    cfg.reward_model.others = {"words": OtherJudge(rule="my_rules:f", weight=-0.5)}
    cfg.reward_model.path = "/judges/it's one"
    cfg.evaluate.judges = {"second": "owner/name@main", "third": "/a b/c=d"}
    cfg.prompts.columns = {"question": "ask", "context": ["table", "a note"]}
    cfg.generate.vllm_args = {"max_num_seqs": 3}
    cfg.generate.stop_token_ids = [1, 2]
    cfg.dpo.learning_rate = 5e-7 / 3
    cfg.compute.num_gpus = 0
    assert composed(through_a_shell(pasted(*overrides_of(cfg)), tmp_path)) == cfg
    assert not [word for word in overrides_of(cfg, ("reuse",)) if word.startswith("reuse")]


@pytest.mark.parametrize("text", ["${a}", "\\${a}", "\\\\${a}", "${", "$", "a${b}c${d}", "plain\\"])
def test_a_literal_is_no_interpolation(text):
    config = OmegaConf.create(literal({"key": [text, {"inner": text}]}))
    assert OmegaConf.to_container(config, resolve=True) == {"key": [text, {"inner": text}]}
