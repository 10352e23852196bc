"""Names of models from outside: an @ in a folder's name, and revisions."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf.config.schema import Config
from rlhf.errors import ConfigError, ModelError
from rlhf.loop.judges import models_of
from rlhf.run import sources
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
