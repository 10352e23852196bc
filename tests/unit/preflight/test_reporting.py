"""Trackers are looked for before a run begins."""

from __future__ import annotations

import pytest

from rlhf.config.limits import problems
from rlhf.config.schema import Config
from rlhf.preflight import reporting as looked_at
from rlhf.preflight.findings import Level


def looks(names, installed, monkeypatch):
    monkeypatch.setattr(looked_at, "distributions", lambda name: ["one"] if name in installed else [])
    return list(looked_at.trackers(Config(report_to=names)))


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A person without a key or a mode."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # as wandb makes it where it is used; it is no package
    found = looks(["tensorboard", "wandb", "wandb"], {"tensorboard"}, monkeypatch)
    assert [item.level for item in found] == [Level.ok, Level.error]
    assert "pip install wandb" in found[1].way_out and "report_to" in found[1].way_out


@pytest.mark.parametrize(
    ("environment", "netrc", "level"),
    [
        ({}, "", Level.warning),
        ({"WANDB_API_KEY": "k"}, "", Level.ok),
        ({}, "machine api.wandb.ai login user password k", Level.ok),
        ({"WANDB_BASE_URL": "https://wandb.here:8080"}, "machine wandb.here login user password k", Level.ok),
        (
            {"WANDB_BASE_URL": "https://wandb.here"},
            "machine api.wandb.ai login user password k",
            Level.warning,
        ),
        ({}, "no netrc at all", Level.warning),
        ({"WANDB_MODE": "offline"}, "", None),
        ({"WANDB_MODE": "disabled"}, "", None),
    ],
)
def test_wandb_needs_a_key_only_where_it_sends(environment, netrc, level, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    installed, *about_key = looks(["wandb"], {"wandb"}, monkeypatch)
    assert installed.level is Level.ok
    assert [item.level for item in about_key] == ([] if level is None else [level])
    assert all("WANDB_MODE=offline" in item.way_out for item in about_key if item.level is Level.warning)


@pytest.mark.parametrize("name", ["wandbb", "mlflow", "all", "", "TensorBoard"])
def test_a_name_that_is_no_tracker_is_refused_with_the_list(name):
    [said] = problems(Config(report_to=["wandb", name]))
    assert repr(name) in said and "tensorboard, trackio, wandb" in said and "report_to=[]" in said
