"""Names of models from outside: an @ in a folder's name, and revisions."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.config.schema import Config
from rlhf.data.digest import sealed, unsealed
from rlhf.errors import ConfigError, ModelError, RunChanged
from rlhf.loop.judges import models_of
from rlhf.run import sources
from rlhf.run.commit import commit
from rlhf.run.job import Job
from rlhf.run.plan import Run
from tests.unit.refusals import model


def judge_of(path):
    cfg = Config()
    cfg.evaluate.judges = {"x": path}
    return models_of(cfg)["evaluate.judges.x"]


@pytest.mark.parametrize(
    "key", ["model.path", "reward_model.path", "reward_model.others.a.path", "evaluate.judges.a"]
)
@pytest.mark.parametrize("name", ["judge@v2", "models/judge@v2", "a@b/c@d"])
def test_an_at_in_a_folders_name_is_a_letter_like_any_other(tmp_path, monkeypatch, key, name):
    monkeypatch.chdir(tmp_path)
    model(tmp_path / name)
    assert sources.model(Run(tmp_path / "run", Config()), name, None, key).path == tmp_path / name
    for path in (name, f"./{name}", str(tmp_path / name)):
        assert judge_of(path) == (path, None)


def test_a_judge_of_the_hub_has_its_revision_in_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judge_of("owner/name@v2") == ("owner/name", "v2")
    assert judge_of("owner/name") == ("owner/name", None)
    assert judge_of("@world/judge") == ("@world/judge", None)
    assert judge_of("./nowhere@v2") == ("./nowhere@v2", None)
    model(tmp_path / "owner" / "name")
    run = Run(tmp_path / "run", Config())
    with pytest.raises(ConfigError, match=r"evaluate\.judges\.x=v2: owner/name is a folder of this machine"):
        sources.model(run, *judge_of("owner/name@v2"), "evaluate.judges.x")


@pytest.mark.parametrize("key", ["model", "reward_model", "reward_model.others.a"])
def test_a_revision_of_what_has_none_is_refused_by_name(tmp_path, key):
    folder = model(tmp_path / "policy")
    run = Run(tmp_path / "run", Config())
    for path in (str(folder), "@world/model"):
        with pytest.raises(
            ConfigError, match=rf"^{key}\.revision=v1: .*only models of the Hub.*Leave it out"
        ):
            sources.model(run, path, "v1", f"{key}.path")


def test_a_revision_in_a_path_says_where_it_belongs(tmp_path):
    run = Run(tmp_path / "run", Config())
    with pytest.raises(ModelError, match=r"model\.path=owner/name model\.revision=v1"):
        sources.model(run, "owner/name@v1", None, "model.path")


def test_a_second_copy_of_the_weights_changes_no_digest(tmp_path):
    folder = model(tmp_path / "policy")
    run = Run(tmp_path / "run", Config())
    before = sources.model(run, str(folder), None, "model.path").digest
    save_file({"v": np.zeros(8, dtype=np.float16)}, folder / "consolidated.safetensors")
    assert sources.model(run, str(folder), None, "model.path").digest == before
    (folder / "tokenizer.json").write_text("{}")
    assert sources.model(run, str(folder), None, "model.path").digest != before


@pytest.fixture
def stage(tmp_path):
    """A finished stage of another run, with a model and rows."""
    partial = tmp_path / "other" / ".dpo.partial"
    model(partial / "model")
    (partial / "model" / "vocab.bpe").write_text("a b")
    (partial / "rows.jsonl").write_text('{"prompt": "x"}\n')
    (partial / "more.jsonl").write_text('{"prompt": "y"}\n')
    identity = {"schema": 1, "stage": "dpo", "seed": 42, "config": {}, "inputs": {}}
    commit(partial, tmp_path / "other" / "dpo", identity, Job("dpo", "dpo", {}, {}, "", 0), {}, {}, 0.5)
    return tmp_path / "other" / "dpo"


def flip(path):
    """Damage that no size tells."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def read_model(tmp_path, stage):
    (tmp_path / "run").mkdir(exist_ok=True)
    return sources.model(Run(tmp_path / "run", Config()), str(stage / "model"), None, "model.path")


def read_rows(tmp_path, stage):
    (tmp_path / "run").mkdir(exist_ok=True)
    return sources.data_file(Run(tmp_path / "run", Config()), str(stage / "rows.jsonl"), "input")


@pytest.mark.parametrize("read", [read_model, read_rows])
def test_what_another_run_made_has_the_digest_it_always_had(tmp_path, stage, read):
    found = read(tmp_path, stage)
    (stage / "artifact.json").rename(tmp_path / "manifest")  # as if it were no stage's
    assert read(tmp_path, stage).digest == found.digest
    assert found.root is None, "the run that reads it does not take it for a stage of its own"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.bpe"])
@pytest.mark.parametrize("remembered", [True, False])
def test_damage_to_a_model_of_another_run_is_named(tmp_path, stage, name, remembered):
    if remembered:
        read_model(tmp_path, stage)
    flip(stage / "model" / name)
    with pytest.raises(RunChanged, match=rf"{name} is damaged \(its SHA-256[\s\S]*rm -r {stage}"):
        read_model(tmp_path, stage)


@pytest.mark.parametrize("remembered", [True, False])
def test_damage_to_rows_of_another_run_is_named_and_to_others_of_no_concern(tmp_path, stage, remembered):
    if remembered:
        read_rows(tmp_path, stage)
    flip(stage / "more.jsonl")
    read_rows(tmp_path, stage)
    flip(stage / "rows.jsonl")
    with pytest.raises(RunChanged, match=r"rows\.jsonl is damaged \(its SHA-256"):
        read_rows(tmp_path, stage)


@pytest.mark.parametrize("name", ["model/model-2.safetensors", "shard_00000.parquet"])
@pytest.mark.parametrize("read", [read_model, read_rows])
def test_a_file_of_another_run_that_no_manifest_names_is_refused(tmp_path, stage, name, read):
    (stage / name).write_text("x")
    with pytest.raises(RunChanged, match=rf"{name}: no part of this finished stage"):
        read(tmp_path, stage)


def test_damage_that_shows_without_hashing_is_found_by_the_look_before_a_run(tmp_path, stage):
    (stage / "rows.jsonl").write_text("")
    with pytest.raises(RunChanged, match=r"rows\.jsonl is damaged \(0 bytes"):
        sources.local_file(str(stage / "rows.jsonl"), "prompts.path")
    with pytest.raises(RunChanged, match=r"rows\.jsonl is damaged \(0 bytes"):
        sources.model_folder(str(stage / "model"), None, "model.path")


@pytest.mark.parametrize("remembered", [5, None, ["d"], {}])
def test_a_remembered_digest_of_another_type_is_found_out_again(tmp_path, remembered):
    folder = model(tmp_path / "policy")
    run = Run(tmp_path, Config())
    digest = sources.model(run, str(folder), None, "model.path").digest
    memory = tmp_path / ".digests.json"
    memory.write_bytes(sealed(dict.fromkeys(unsealed(memory.read_bytes()), remembered)))
    assert sources.model(run, str(folder), None, "model.path").digest == digest
