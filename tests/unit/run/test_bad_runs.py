"""Model folders and run folders that are damaged, foreign or dangerous, as far as the driver sees them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.data.digest import sealed, unsealed
from tests.unit.refusals import Case, cases, jsonl, model, refuse, run_here

BASE = (
    "iterate reward_model.rule=rlhf.world.tasks:gold compute.device=cpu run_dir=run "
    "prompts.path=p.jsonl model.path="
)
LOOP = BASE + "m prompts.num_held_out=1 prompts.num_per_iteration=2 num_iterations=1"
PROMPTS = jsonl([{"prompt": f"question {i}"} for i in range(9)])


def folder(name, said, make, path="m"):
    """A model folder that `make` damages."""

    def both(here):
        (here / "p.jsonl").write_bytes(PROMPTS)
        model(here / "m")
        make(here / "m")

    return Case(f"model {name}", BASE + path, said, make=both)


def run(name, said, make, more=""):
    """A run whose prompts are split already, then damaged by `make`."""

    def both(here):
        (here / "p.jsonl").write_bytes(PROMPTS)
        model(here / "m")
        split(here)
        make(here / "run")

    return Case(f"run {name}", LOOP + more, said, make=both)


def split(here):
    """What stage `prompts` leaves behind, made by its own code."""
    from rlhf.config.schema import Config
    from rlhf.loop.step import stage_config
    from rlhf.run.plan import Run
    from rlhf.run.sources import data_file
    from tests.unit.run.test_plan import InProcess

    cfg = Config()
    cfg.prompts.num_held_out = 1
    made = Run(here / "run", cfg, InProcess())
    made.stage(
        "prompts",
        "prompts",
        stage_config(cfg, "prompts"),
        {"prompts": data_file(made, str(here / "p.jsonl"), "k")},
    )


def change(**changes):
    """Change keys of the manifest of `prompts`."""

    def make(here):
        path = here / "prompts" / "artifact.json"
        path.write_bytes(sealed(unsealed(path.read_bytes()) | changes))

    return make


def text(name, content):
    return lambda here: (here / name).write_bytes(content)


def cut(here):
    path = here / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def pickled(here):
    (here / "model.safetensors").unlink()
    (here / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")


def shard_of_nothing(here):
    index = {"weight_map": {"w": "model.safetensors", "v": "../../secret.safetensors"}}
    (here / "model.safetensors.index.json").write_text(json.dumps(index))


def whole_numbers(here):
    save_file({"w": np.zeros(8, dtype=np.int64)}, here / "model.safetensors")


def nothing(here):
    pass


def dangling(here):
    (here / "model.safetensors").unlink()
    os.symlink("model.safetensors", here / "model.safetensors")


@cases(
    folder("missing", ["model.path=./none", "no such folder", "a Hub id"], nothing, "./none"),
    folder("that is a file", ["model.path=", "p.jsonl", "no config.json"], nothing, "p.jsonl"),
    folder("of the Hub without a network", ["model.path=a/b", "hf download a/b"], nothing, "a/b"),
    folder("of no Hub name", ["model.path=a..b/c", "no such folder", "no Hub id either"], nothing, "a..b/c"),
    folder("without config", ["model.path=", "no config.json"], lambda here: (here / "config.json").unlink()),
    folder("with a broken config", ["config.json: cannot be read", "anew"], text("config.json", b"{")),
    folder("with a list as config", ["config.json: cannot be read", "anew"], text("config.json", b"[1]")),
    folder("of pickles alone", ["no *.safetensors", "can run code", "save_pretrained"], pickled),
    folder("cut short", ["model.safetensors: ", "cut short", "Download it anew"], cut),
    folder(
        "of an LFS pointer",
        ["no safetensors file", "anew"],
        text("model.safetensors", b"version https://git-lfs\n"),
    ),
    folder("of an empty file", ["no safetensors file", "anew"], text("model.safetensors", b"")),
    folder("behind a broken link", ["no safetensors file", "anew"], dangling),
    folder("without a shard", ["../../secret.safetensors", "index.json", "not there"], shard_of_nothing),
    folder("with a broken index", ["has no weight_map", "anew"], text("model.safetensors.index.json", b"{}")),
    folder("of whole numbers", ["no floating-point weights", "Set the model's dtype"], whole_numbers),
    folder(
        "that is an adapter", ["adapter_config.json", "merge_and_unload"], text("adapter_config.json", b"{}")
    ),
    run(
        "with another seed", ["seed: 42 there, 7 now", "put the old values back", "rm -r"], nothing, " seed=7"
    ),
    run(
        "with changed prompts",
        ["inputs.prompts", "Ways out"],
        lambda run: text("p.jsonl", PROMPTS * 2)(run.parent),
    ),
    run("with a broken manifest", ["artifact.json is damaged", "rm -r"], text("prompts/artifact.json", b"{")),
    run(
        "with a list as manifest",
        ["artifact.json is damaged", "rm -r"],
        text("prompts/artifact.json", b"[1]"),
    ),
    run(
        "with an empty manifest", ["artifact.json is damaged", "rm -r"], text("prompts/artifact.json", b"{}")
    ),
    run("of another schema", ["schema: 99 there", "rm -r"], lambda run: schema(run, 99)),
    run(
        "with a missing shard",
        ["train.parquet is damaged (missing", "delete"],
        lambda run: (run / "prompts/train.parquet").unlink(),
    ),
    run(
        "with a longer shard",
        ["train.parquet is damaged (4 bytes", "Restore"],
        text("prompts/train.parquet", b"PAR1"),
    ),
    run(
        "that leads outside",
        ["../../etc/passwd", "rm -r"],
        change(files={"../../etc/passwd": {"bytes": 1, "sha256": ""}}),
    ),
    run(
        "with a file without checksum",
        ["artifact.json is damaged (it has no size or checksum of ['train.parquet']", "rm -r"],
        change(files={"train.parquet": {"bytes": 1}}),
    ),
    run("without files", ["artifact.json is damaged (it has no files", "rm -r"], change(files=None)),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)
    assert not (tmp_path / "executed").exists()


def schema(run, number):
    identity = json.loads((run / "prompts" / "artifact.json").read_text())["identity"]
    change(identity=identity | {"schema": number})(run)


NEW = LOOP.replace("run_dir=run", "run_dir=runs/new/run")


@pytest.mark.parametrize(
    "more",
    [
        " prompts.num_held_out=99",  # found by the look before a run
        " prompts.path=none.jsonl",  # found by the plan
        " evaluate.gold=nowhere:rule",
        " model.path=none",
        " reuse=[nowhere] dpo.beta=-1",
    ],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch, more, is_there):
    (tmp_path / "p.jsonl").write_bytes(PROMPTS)
    model(tmp_path / "m")
    if is_there:
        (tmp_path / "runs" / "new" / "run").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, NEW + more) == 2
    assert set(tmp_path.rglob("*")) == before


def test_a_refused_tool_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_text('{"prompt": 5}\n')
    model(tmp_path / "m")
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "generate model.path=./m input=bad.jsonl output=deep/new/out.jsonl") == 2
    assert set(tmp_path.rglob("*")) == before
