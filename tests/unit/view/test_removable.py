"""What of a run could go to make room: what is named, what is removed, what stays, and what a run is then."""

from __future__ import annotations

import os
import shutil

import pytest

from rlhf import chat
from rlhf.config.choices import Action, KeptPolicies, Loss, Method, Reference
from rlhf.config.schema import Config
from rlhf.data.digest import sealed
from rlhf.errors import DiskFull, FilesRemoved, RunChanged, StorageError
from rlhf.loop.figures import best
from rlhf.loop.retention import drop_policies
from rlhf.run import removal
from rlhf.run.artifact import open_artifact
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run
from rlhf.run.removal import size_text, sizes_of
from rlhf.run.reuse import reusable_stages
from rlhf.view.removable import removable, telling_of_room
from rlhf.view.run_folder import open_run
from rlhf.view.standing import standing_of
from scripts.synthetic_run import make_run
from tests.unit.old_run import contents
from tests.unit.refusals import run_here

WEIGHTS = "model/model.safetensors"
KEEP = KeptPolicies.best_and_last


def leaving(run, keep=KEEP):
    """Names of what could go."""
    return [each.name for each in removable(open_run(str(run)), keep).leaving]


def staying(run):
    return "\n".join(removable(open_run(str(run)), KEEP).staying)


def gc(run, monkeypatch, more=""):
    return run_here(monkeypatch, f"gc run_dir={run}{more}")


def test_a_dry_run_names_what_could_go_and_touches_nothing(made_up, monkeypatch, capsys):
    before = contents(made_up)
    assert gc(made_up, monkeypatch) == 0
    said = capsys.readouterr().out
    size = size_text((made_up / "iteration_001" / "dpo" / WEIGHTS).stat().st_size)
    assert f"iteration_001/dpo: the weights of π1, {size}" in said and "2 things could go" in said
    assert "redo iteration_001/held_out/generate, and generate, reference and dpo of iteration 2" in said
    assert "reuse trains iteration_002/dpo itself" in said and "dry_run=false" in said
    assert "iteration_003/dpo: π3, the last one" in said and contents(made_up) == before


def test_what_was_removed_is_told_and_the_run_stays_finished(made_up, monkeypatch, capsys):
    before = contents(made_up)
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    after = contents(made_up)
    gone = {f"iteration_00{t}/dpo/{WEIGHTS}" for t in (1, 2)}
    assert before.keys() - after.keys() == gone
    new = {f"iteration_00{t}/dpo/removed.json" for t in (1, 2)} | {".driver.lock", ".workers.lock"}
    assert after.keys() - before.keys() == new
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    run = open_run(str(made_up))
    assert not run.damaged and list(run.removed) == ["iteration_001/dpo", "iteration_002/dpo"]
    standing = standing_of(run)
    assert "finished" in standing.lines[0]
    assert any(
        "iteration_001/dpo is finished" in note and "removed to make room" in note for note in standing.notes
    )
    assert leaving(made_up) == [] and "the weights of π1 are gone already" in staying(made_up)
    capsys.readouterr()
    for command in (f"compare {made_up}", f"report run_dir={made_up} output={made_up}/r.html"):
        assert run_here(monkeypatch, command) == 0
    assert "iteration_001/dpo is finished, and its figures stand" in capsys.readouterr().out
    assert "removed to make room" in (made_up / "r.html").read_text(encoding="utf-8")
    assert list(chat._iterates(run)) == [3]
    assert "would train it again" in chat._not_there(run)[1]


def test_who_must_read_it_is_refused_until_it_is_brought_back(made_up, monkeypatch, tmp_path):
    weights = made_up / "iteration_001" / "dpo" / WEIGHTS
    copy = shutil.copyfile(weights, tmp_path / "copy")
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    artifact = open_artifact(made_up / "iteration_001" / "dpo")
    run = Run(made_up, Config())
    run.verify(artifact.part("metrics.jsonl"))
    with pytest.raises(FilesRemoved, match=r"rm -r .*iteration_001/dpo"):
        run.verify(artifact.part("model"))
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    shutil.copyfile(copy, weights)
    Run(made_up, Config()).verify(open_artifact(artifact.path).part("model"))
    assert leaving(made_up) == ["iteration_001/dpo"]
    weights.write_bytes(b"x" * weights.stat().st_size)
    with pytest.raises(RunChanged, match="SHA-256"):
        Run(made_up, Config()).verify(open_artifact(artifact.path).part("model"))


def test_a_plan_names_all_that_would_have_to_be_made_again(made_up, monkeypatch):
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    first = open_artifact(made_up / "iteration_001" / "dpo")
    second = open_artifact(made_up / "iteration_002" / "dpo")
    second.record["identity"]["inputs"] = {"policy": first.part("model").digest}
    run = Run(
        made_up, Config(), planning=True, made={"iteration_001/dpo": first, "iteration_002/dpo": second}
    )
    with pytest.raises(FilesRemoved) as refused:
        run.stage("dpo", "iteration_004/dpo", Config().dpo, {"policy": second.part("model")})
    assert f"rm -r {second.path} {first.path}" in str(refused.value)


@pytest.mark.parametrize("strikes_at", ["record", "unlink"])
def test_killed_in_the_middle_a_stage_is_what_it_was_or_known(made_up, monkeypatch, strikes_at):
    def killed(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if strikes_at == "record":
            patch.setattr(removal, "record_removal", killed)
        else:
            patch.setattr(removal.Path, "unlink", killed)
        found = removable(open_run(str(made_up)), KEEP)
        with pytest.raises(KeyboardInterrupt):
            removal.remove(found.leaving[0], "test")
    run = open_run(str(made_up))
    assert not run.damaged and not run.removed and (made_up / "iteration_001" / "dpo" / WEIGHTS).is_file()
    assert leaving(made_up) == ["iteration_001/dpo", "iteration_002/dpo"]
    assert gc(made_up, monkeypatch, " dry_run=false") == 0 and leaving(made_up) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "seal"),
        (sealed({"files": [1]}), "no files"),
        (sealed({"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}), "manifest does not"),
        (sealed({"files": {WEIGHTS: {"bytes": 1, "sha256": "0" * 64}}}), "manifest does not"),
    ],
)
def test_a_record_excuses_only_what_the_manifest_vouches_for(made_up, monkeypatch, capsys, content, said):
    (made_up / "iteration_001" / "dpo" / "removed.json").write_bytes(content)
    assert said in open_run(str(made_up)).damaged["iteration_001/dpo"]
    assert gc(made_up, monkeypatch, " dry_run=false") == 2
    assert "nothing of it was removed" in capsys.readouterr().err


def test_a_run_at_work_or_damaged_is_refused(made_up, monkeypatch, capsys):
    before = contents(made_up)
    with hold_run(made_up, print):
        assert gc(made_up, monkeypatch, " dry_run=false") == 2
        assert "in use by process" in capsys.readouterr().err
        assert gc(made_up, monkeypatch) == 0
        assert "works on this run" in capsys.readouterr().out
    scores = made_up / "iteration_002" / "held_out" / "score" / "shard_00000.parquet"
    scores.write_bytes(bytes(scores.stat().st_size))  # by its content alone
    assert gc(made_up, monkeypatch, " dry_run=false") == 2
    assert "SHA-256" in capsys.readouterr().err
    assert contents(made_up).keys() - before.keys() == {".driver.lock", ".workers.lock"}


def test_what_is_not_yet_read_stays(made_up):
    for name, reader in (("generate", "generate"), ("reference", "reference"), ("dpo", "")):
        stage = made_up / "iteration_002" / name
        stage.rename(made_up / "aside")
        told = staying(made_up)
        if reader:
            assert f"iteration_001/dpo: π1, iteration_002/{reader} has yet to read it" in told, told
        assert "iteration_001/dpo" not in leaving(made_up)
        (made_up / "aside").rename(stage)
    shutil.rmtree(made_up / "iteration_002" / "held_out" / "score")
    assert "iteration_002/dpo: π2, not evaluated" in staying(made_up)


def test_bytes_are_free_when_the_last_name_goes(made_up, tmp_path):
    weights = made_up / "iteration_001" / "dpo" / WEIGHTS
    os.link(weights, tmp_path / "other")
    found = removable(open_run(str(made_up)), KEEP)
    held = weights.stat().st_size
    assert found.sizes[0].held == held and found.sizes[0].freed == 0 and found.sizes[0].others == [weights]
    assert found.freed == found.sizes[1].held
    # Names that go together count as one.
    both = removal.Leaving("x", "", (weights,)), removal.Leaving("y", "", (tmp_path / "other",))
    assert [size.freed for size in sizes_of(both)] == [held, 0]


def test_nothing_behind_a_link_goes(made_up, monkeypatch, tmp_path):
    outside = tmp_path / "outside"
    (made_up / "iteration_001" / "dpo" / "model").rename(outside)
    (made_up / "iteration_001" / "dpo" / "model").symlink_to(outside)
    (made_up / ".x.gone").symlink_to(outside)
    (made_up / ".y.taken").mkdir()
    (made_up / ".y.taken" / "link").symlink_to(outside)
    before = contents(outside)
    assert "lies behind, a link" in staying(made_up)
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    assert contents(outside) == before and not (made_up / ".y.taken").exists()
    assert (made_up / ".x.gone").is_symlink()


def test_what_may_not_be_removed_is_said(made_up, monkeypatch, capsys):
    def refuse(path, missing_ok=False):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(removal.os, "access", lambda path, mode: "iteration_001" not in str(path))
    assert "iteration_001/dpo/model may not be written by you" in staying(made_up)
    monkeypatch.setattr(removal.Path, "unlink", refuse)
    (found,) = removable(open_run(str(made_up)), KEEP).leaving
    with pytest.raises(StorageError, match=r"model\.safetensors cannot be removed: Operation not permitted"):
        removal.remove(found, "test")
    assert not open_run(str(made_up)).damaged


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "model: {path: made_up/iteration_002/dpo/model}",
            "other reads it: model.path=made_up/iteration_002/dpo/model",
        ),
        ("reward_model: {others: {a: {path: ../{tmp}/made_up/iteration_002/dpo}}}", None),
        ("reuse: [made_up]\nnum_iterations: 2", "other is not finished, and has this run in its reuse"),
        ("reuse: [elsewhere]\nnum_iterations: 2", None),
        (": [", None),
    ],
)
def test_what_a_run_beside_it_needs_stays(made_up, settings, said):
    other = made_up.parent / "other"
    other.mkdir()
    (other / "config.yaml").write_text(settings)
    told = staying(made_up)
    assert ("iteration_002/dpo" in leaving(made_up)) is (said is None), told
    assert said is None or f"iteration_002/dpo: π2, {said}" in told
    if said and "reuse" in said:
        shutil.copytree(made_up / "iteration_002", other / "iteration_002")
        assert "iteration_002/dpo" in leaving(made_up), "it has one of its own"


def test_a_reuse_makes_itself_what_was_removed(made_up, monkeypatch):
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    said = []
    stages = reusable_stages([str(made_up)], said.append)
    assert made_up / "iteration_003" / "dpo" in stages.values()
    assert made_up / "iteration_001" / "dpo" not in stages.values()
    assert len(said) == 2 and "was removed to make room (python -m rlhf.gc); it is made here" in said[0]


def test_leftovers_go_and_work_that_a_resume_needs_stays(made_up, monkeypatch):
    for name in (
        ".a.gone",
        "iteration_001/.b.taken",
        "iteration_001/held_out/.c.gone",
        "iteration_003/dpo/checkpoint-8",
    ):
        (made_up / name).mkdir()
        (made_up / name / "optimizer.pt").write_text("x")
    (made_up / ".summary.json.tmp").write_text("half")
    for name in ("iteration_003/.score.partial", "iteration_004/.dpo.partial"):
        (made_up / name / "checkpoint-4").mkdir(parents=True)
    assert leaving(made_up, KeptPolicies.all) == [
        ".a.gone",
        ".summary.json.tmp",
        "iteration_001/.b.taken",
        "iteration_001/held_out/.c.gone",
        "iteration_003/dpo/checkpoint-8",
        "iteration_004/dpo",
    ]
    assert gc(made_up, monkeypatch, " keep=all dry_run=false") == 0
    assert leaving(made_up, KeptPolicies.all) == [] and not open_run(str(made_up)).removed
    assert (made_up / "iteration_003" / ".score.partial" / "checkpoint-4").is_dir()
    assert (made_up / ".digests.json").is_file()


def test_an_export_goes_when_best_leads_to_another(made_up, monkeypatch):
    shutil.copytree(made_up / "iteration_003" / "export", made_up / "iteration_002" / "export")
    (made_up / "best").unlink(missing_ok=True)
    (made_up / "best").symlink_to("iteration_002/export/model")
    assert leaving(made_up) == ["iteration_001/dpo", "iteration_002/dpo"], (
        "the link may lag behind the figures"
    )
    (made_up / "best").unlink()
    (made_up / "best").symlink_to("iteration_003/export/model")
    assert "iteration_002/export" in leaving(made_up)
    assert gc(made_up, monkeypatch, " dry_run=false") == 0
    assert not (made_up / "iteration_002" / "export").exists() and (made_up / "best").resolve().is_dir()


class Telling(Run):
    """Keeps what it says."""

    def say(self, text):
        self.told = [*getattr(self, "told", []), text]


def test_a_run_drops_policies_by_itself_where_it_is_told_to(made_up):
    folder = open_run(str(made_up))
    for cfg, planning, gone in (
        (Config(), False, []),
        (Config(keep_policies=KEEP), True, []),
        (Config(keep_policies=KEEP), False, ["iteration_001/dpo", "iteration_002/dpo"]),
    ):
        run = Telling(made_up, cfg, planning=planning, made=dict(folder.artifacts))
        drop_policies(run, folder.rows)
        assert list(open_run(str(made_up)).removed) == gone
    assert run.made["iteration_001/dpo"].lacks == [WEIGHTS] and "the weights of π1 removed" in run.told[0]
    drop_policies(run, folder.rows)
    assert len(run.told) == 2, "what is gone is not said again"


def test_a_full_disk_says_what_could_go(made_up):
    with pytest.raises(DiskFull) as full, telling_of_room(made_up):
        raise OSError(28, "No space left on device", str(made_up / "x"))
    size = removable(open_run(str(made_up)), KEEP).freed
    assert f"Of this run {size_text(size)} could go: python -m rlhf.gc run_dir=" in str(full.value)
    assert "on the file system of" in str(full.value) and full.value.exit_code == 2
    with pytest.raises(DiskFull, match="not known"), telling_of_room(made_up / "nowhere"):
        raise OSError(122, "Disk quota exceeded", str(made_up / "x"))


def simpo(cfg):
    cfg.dpo.loss = Loss.simpo


def raft(cfg):
    cfg.method = Method.raft


def inpo_with_replay(cfg):
    cfg.dpo.loss = Loss.inpo
    cfg.gates.first_loss = Action.ignore  # what is made up begins at ln 2
    cfg.replay.iterations = 2


def replay_and_previous(cfg):
    cfg.dpo.reference = Reference.previous
    cfg.replay.iterations = 2


def replay(cfg):
    cfg.replay.iterations = 2


@pytest.fixture
def run_of(tmp_path):
    """Makes a finished run of four iterations by a recipe."""

    def make(recipe):
        folder = tmp_path / "recipe"
        make_run(folder, prompts=6, n=4, held_out=4, iterations=4, change=recipe)
        return folder

    return make


@pytest.mark.parametrize(
    ("recipe", "stage", "read_by"),
    [
        (lambda cfg: None, "dpo", "generate, reference and dpo"),
        (simpo, "dpo", "generate and dpo"),
        (raft, "raft", "generate and raft"),
        (replay, "dpo", "generate, reference and dpo"),
        (replay_and_previous, "dpo", "generate, reference, reference_of_iteration_001 and dpo"),
        (
            inpo_with_replay,
            "dpo",
            "generate, reference, reference_previous, reference_previous_of_iteration_001 and dpo",
        ),
    ],
    ids=["dpo", "simpo", "raft", "replay", "replay of previous", "inpo with replay"],
)
def test_policies_of_every_recipe_go(run_of, monkeypatch, capsys, recipe, stage, read_by):
    made = run_of(recipe)
    run = open_run(str(made))
    going = [f"iteration_00{t}/{stage}" for t in range(1, 4) if t != best(run.rows)]
    assert len(going) >= 2 and leaving(made) == going
    first = removable(run, KEEP).leaving[0]
    assert first.name == f"iteration_001/{stage}"
    assert f"redo iteration_001/held_out/generate, and {read_by} of iteration 2" in first.then[1]
    told = Telling(made, Config(keep_policies=KEEP), made=dict(run.artifacts))
    drop_policies(told, run.rows)
    assert list(open_run(str(made)).removed) == going and len(told.told) == len(going)
    assert gc(made, monkeypatch) == 0 and "0 things could go" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "missing"),
    [
        (simpo, "iteration_002/generate"),
        (raft, "iteration_002/generate"),
        (raft, "iteration_002/raft"),
        (replay_and_previous, "iteration_002/reference_of_iteration_001"),
        (inpo_with_replay, "iteration_002/reference_previous"),
        (inpo_with_replay, "iteration_002/reference_previous_of_iteration_001"),
    ],
)
def test_what_any_recipe_has_yet_to_read_stays(run_of, recipe, missing):
    made = run_of(recipe)
    shutil.rmtree(made / missing)
    stage = "raft" if recipe is raft else "dpo"
    assert f"iteration_001/{stage}: π1, {missing} has yet to read it" in staying(made)
    assert f"iteration_001/{stage}" not in leaving(made)
