"""RUN/best in a run, in copies that lost the link, and on a file system that has none."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.schema import Config
from rlhf.errors import ConfigError, RunChanged
from rlhf.loop import outcome
from rlhf.loop.best import best_policy, link_best
from rlhf.run import sources
from rlhf.run.artifact import open_artifact
from rlhf.run.commit import commit
from rlhf.run.job import Job
from rlhf.run.plan import Run
from tests.unit.loop.test_gates import row
from tests.unit.refusals import model, run_here

EXPORT = "iteration_001/export/model"


def finish(run, name, stage, files, inputs):
    """Commit a stage of some files."""
    folder = run / name
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    files(partial)
    identity = {"schema": 1, "stage": stage, "seed": 42, "config": {}, "inputs": inputs}
    commit(partial, folder, identity, Job(stage, name, {}, {}, "", 0), {}, {}, 0.5)


@pytest.fixture
def given(tmp_path):
    return model(tmp_path / "given")


@pytest.fixture
def run(tmp_path, given):
    """A finished run whose best policy is its own."""
    folder = tmp_path / "run"
    digest = sources.model(Run(tmp_path / "none", Config()), str(given), None, "model.path").digest
    finish(folder, "iteration_000/held_out/generate", "generate", lambda at: None, {"policy": digest})
    finish(folder, "iteration_001/export", "export", lambda at: model(at / "model"), {"model": "d"})
    (folder / "config.yaml").write_text(f"model: {{path: {given}}}\n")
    (folder / "summary.json").write_text('{"best_iteration": 1}')
    link_best(folder, Path(EXPORT), print)
    return folder


@pytest.fixture
def given_is_best(run, given):
    (run / "summary.json").write_text('{"best_iteration": 0}')
    link_best(run, given, print)
    return run


def without_links(run):
    """As `cp -rL` copies a run."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, symlinks=False)
    assert not (copy / "best").is_symlink()
    return copy


def test_the_link_is_followed(run):
    assert best_policy(run).path == run / EXPORT and best_policy(run).digest is None


def as_a_folder(run):
    shutil.copytree(run / "best", run / "copied")
    (run / "best").unlink()
    (run / "copied").rename(run / "best")


def as_a_text(run):
    (run / "best").unlink()
    (run / "best").write_text(EXPORT)


def not_at_all(run):
    (run / "best").unlink()


@pytest.mark.parametrize("copied", [as_a_folder, as_a_text, not_at_all])
def test_a_copy_without_links_knows_its_best_policy_and_goes_on(run, copied):
    copied(run)
    assert best_policy(run).path == run / EXPORT
    said = []
    link_best(run, Path(EXPORT), said.append)
    assert os.readlink(run / "best") == EXPORT and best_policy(run).path == run / EXPORT
    kept = [path.name for path in run.glob("best.copy*")]
    assert kept == (["best.copy1"] if copied is as_a_folder else [])
    assert ("best.copy1" in "".join(said)) == bool(kept)


def test_what_was_copied_twice_is_kept_twice(run):
    for _ in range(2):
        as_a_folder(run)
        link_best(run, Path(EXPORT), print)
    assert sorted(path.name for path in run.glob("best.copy*")) == ["best.copy1", "best.copy2"]


def test_a_copy_has_the_policy_that_was_given_in_the_links_place(given_is_best, given):
    assert best_policy(given_is_best).path == given
    copy = without_links(given_is_best)
    assert best_policy(copy).path == copy / "best"
    digest = sources.model(Run(copy / "none", Config()), str(copy / "best"), None, "k").digest
    assert best_policy(copy).digest == best_policy(given_is_best).digest == digest


def test_files_of_the_given_policy_that_have_changed_have_another_digest(given_is_best, given):
    (given / "config.json").write_text('{"model_type": "llama", "vocab_size": 1}')
    digest = sources.model(Run(given_is_best / "none", Config()), str(given), None, "k").digest
    assert best_policy(given_is_best).digest != digest


def test_a_policy_of_the_hub_is_known_by_its_commit(given_is_best):
    (given_is_best / "config.yaml").write_text("model: {path: owner/name}\n")
    assert best_policy(given_is_best).digest is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_ends_no_run(run, monkeypatch, number):
    def refuse(self, target):
        raise OSError(number, os.strerror(number))

    as_a_text(run)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    said = []
    link_best(run, Path(EXPORT), said.append)
    assert "no link" in said[0] and not (run / "best").exists()
    assert best_policy(run).path == run / EXPORT


def test_a_full_disk_is_no_file_system_without_links(run, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(OSError, match="No space left"):
        link_best(run, Path(EXPORT), print)
    assert (run / "best").is_symlink()


def test_an_export_without_its_manifest_is_no_model_of_outside(run):
    (run / "iteration_001" / "export" / "artifact.json").unlink()
    with pytest.raises(RunChanged, match=r"export/artifact\.json is damaged"):
        best_policy(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "{}", "[" * 100_000])
def test_a_damaged_summary_is_named(run, content):
    (run / "best").unlink()
    (run / "summary.json").write_text(content)
    with pytest.raises(RunChanged, match=rf"summary\.json is damaged[\s\S]*rlhf\.iterate run_dir={run}"):
        best_policy(run)


@pytest.mark.parametrize("iteration", ["1", 1.0, True, None, -1, [1]])
def test_a_best_iteration_of_another_type_is_named(run, iteration):
    (run / "best").unlink()
    (run / "summary.json").write_text(json.dumps({"best_iteration": iteration}))
    with pytest.raises(RunChanged) as refusal:
        best_policy(run)
    assert f"its best_iteration is {json.dumps(iteration)}, " in str(refusal.value)


def test_what_is_not_there_is_said(run, given_is_best, given):
    shutil.rmtree(given)
    with pytest.raises(ConfigError, match=f"best leads to {given}, which does not exist"):
        best_policy(given_is_best)
    (run / "best").unlink()
    with pytest.raises(ConfigError, match="no best policy there"):
        best_policy(run)
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match="no best policy there"):
        best_policy(run)


def flip(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def ask(monkeypatch, capsys, folder, run):
    """`rlhf.answer` on a run, to its error."""
    (folder / "q.json").write_text('[{"instruction": "2+2?", "dataset": "x"}]')
    monkeypatch.chdir(folder)
    command = f"answer run_dir={run} benchmark=alpaca_eval input=q.json output=new/out.json"
    code = run_here(monkeypatch, command)
    assert not (folder / "new").exists(), "nothing is left of a refused command"
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_best_policy_answers_nothing(tmp_path, run, monkeypatch, capsys, name):
    flip(run / EXPORT / name)
    code, said = ask(monkeypatch, capsys, tmp_path, run)
    assert code == 2 and f"{run / EXPORT / name} is damaged (its SHA-256" in said
    assert f"rm -r {run / 'iteration_001/export'}" in said


def test_a_policy_that_was_given_and_has_changed_answers_nothing(
    tmp_path, given_is_best, given, monkeypatch, capsys
):
    flip(given / "model.safetensors")
    code, said = ask(monkeypatch, capsys, tmp_path, given_is_best)
    assert code == 2 and f"π0 as it was given, {given}, whose files are not those" in said
    assert f"model.path={given}" in said


def test_a_damaged_export_is_not_handed_out_by_a_run_that_is_finished(run, monkeypatch):
    exported = open_artifact(run / "iteration_001" / "export")
    monkeypatch.setattr(Run, "stage", lambda *of, **told: exported)
    monkeypatch.setattr(outcome, "verified_rows", lambda *of: [row(0, 0.0), row(1, 1.0)])
    monkeypatch.setattr(outcome.card, "facts", lambda *of: {})
    evaluations = [SimpleNamespace(iteration=t, policy=exported.part("model")) for t in range(2)]
    assert outcome.conclude(Run(run, Config()), evaluations, "float32").path == run / EXPORT
    flip(run / EXPORT / "model.safetensors")
    with pytest.raises(RunChanged, match=r"export/model/model\.safetensors is damaged"):
        outcome.conclude(Run(run, Config()), evaluations, "float32")
