"""The GPU kit at toy size on this machine: every step that a GPU would take, so that it works there at once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    # From a plain checkout, and from anywhere.
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", TMPDIR=str(folder))
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, SCRIPTS / "gpu_check.py", "size=toy", "out=out", "minutes=60"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=3600,
    )
    log = (folder / "out" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    result = json.loads((folder / "out" / "result.json").read_text())
    assert not list(folder.glob("gpu_check.*")), "models and runs are removed"
    return {step["name"]: step for step in result["steps"]}


def figures(step):
    return {figure["name"]: figure for figure in step["figures"]}


def test_every_step_is_done_and_what_only_a_gpu_can_is_said(toy):
    went = {name: step["status"] for name, step in toy.items()}
    assert went.pop("quickstart") == "skipped"
    assert "needs a GPU" in toy["quickstart"]["reason"]
    assert set(went.values()) == {"done"}, toy
    for step, name in (
        ("machine", "GPU"),
        ("preload", "forked child computes on CUDA"),
        ("shapes", "8B shape, MFU"),
        ("shapes", "8B shape, one layer, memory"),
    ):
        assert figures(toy[step])[name]["value"] == "needs a GPU"
    assert "needs a GPU" in figures(toy["tests"])["tests that did not run"]["value"]


def test_no_figure_failed_and_every_bar_is_met(toy):
    for step in toy.values():
        for figure in step["figures"]:
            assert figure["met"] is not False, figure
            assert figure["value"] != "failed", figure
    assert figures(toy["iteration"])["first loss off ln 2"]["value"] < 1e-6
    assert figures(toy["engine"])["same seeds in another order, equal"]["value"] == 1
    assert figures(toy["engine"])["log-probability per token, off transformers"]["value"] < 1e-5
    assert figures(toy["kill"])["steps of DPO, beside an undisturbed run"]["value"] == 1
    assert figures(toy["kill"])["largest change of a step's loss"]["value"] == 0
    assert figures(toy["shapes"])["8B shape, times TRL's best"]["value"] > 0
    assert figures(toy["scoring"])["largest difference of a score"]["value"] < 1e-3


def test_every_id_of_a_models_vocabulary_has_a_text_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_kit.models import TOY_VOCABULARY, tokenizer_of

    from rlhf.world.tokenizer import build_tokenizer

    base = build_tokenizer()
    tokenizer = tokenizer_of(TOY_VOCABULARY)
    assert len(tokenizer) == TOY_VOCABULARY
    assert len(set(tokenizer.convert_ids_to_tokens(range(TOY_VOCABULARY)))) == TOY_VOCABULARY
    asked = [{"role": "user", "content": "Say 3 in words"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    expected = base.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    # The special tokens stay the last ones.
    more = TOY_VOCABULARY - len(base)
    specials = base.added_tokens_decoder
    assert ids == [number + more if number in specials else number for number in expected]
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_without_deepspeed_and_trl_a_plain_loop_takes_the_same_steps(monkeypatch, tmp_path):
    """On a machine that has torch and transformers alone."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_kit.figures import Kit
    from gpu_kit.models import TOY, random_pairs
    from gpu_kit.own_process import PieceError, in_a_process
    from gpu_kit.trainers import STEPS, plain

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(SCRIPTS)]))
    kit = Kit("toy", tmp_path, tmp_path / "figures.jsonl", 100)
    pairs = random_pairs(kit, TOY.vocabulary, 4)
    trained = in_a_process(plain, TOY, pairs, tmp_path, seconds=100)
    assert trained.first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert len(trained.seconds) == STEPS
    with pytest.raises(PieceError, match="TypeError"):
        in_a_process(plain, TOY, seconds=100)
