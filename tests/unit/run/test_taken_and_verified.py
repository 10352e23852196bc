"""Stages taken of other runs, inputs looked at before they are read, and code that is announced."""

from __future__ import annotations

import json
import os

import pytest

from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerateStage, ReadStage
from rlhf.errors import RunChanged, UserError
from rlhf.loop.step import stage_config
from rlhf.models.folder import read_object
from rlhf.run import commit, verified
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.job import Job
from rlhf.run.plan import Run
from rlhf.run.refusal import differences, refusal
from rlhf.run.unfinished import has_begun, has_work, prepared
from tests.unit.run.test_plan import InProcess

IDENTITY = {"schema": 1, "stage": "export", "seed": 1, "config": {}, "inputs": {}}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(9)))
    return Artifact(path, "d")


class Listening(Run):
    """Keeps what it says."""

    def say(self, text):
        self.said = [*getattr(self, "said", []), text]


def told(num_held_out):
    """What the stage `prompts` is told."""
    return stage_config(Config(), "prompts", num_held_out=num_held_out)


def made(folder, prompts, num_held_out=2, run_type=Run, **settings):
    """The prompts of a run, and the run."""
    run = run_type(folder, Config(**settings), InProcess())
    return run.stage("prompts", "prompts", told(num_held_out), {"prompts": prompts}), run


def test_a_stage_is_taken_from_the_first_run_that_has_it(tmp_path, prompts):
    for name in ("a", "b"):
        made(tmp_path / name, prompts)
    made(tmp_path / "c", prompts, num_held_out=3)
    reuse = [str(tmp_path / name) for name in ("c", "b", "a")]
    artifact, run = made(tmp_path / "new", prompts, run_type=Listening, reuse=reuse)
    assert run.launcher.ran == [] and run.said == [
        f"  = {'prompts':<32}          taken from {tmp_path / 'b' / 'prompts'}"
    ]
    assert artifact.path == tmp_path / "new" / "prompts" == open_artifact(artifact.path).root
    # Of what is here already nothing is taken.
    _, again = made(tmp_path / "new", prompts, run_type=Listening, reuse=reuse)
    assert not hasattr(again, "said") and again.launcher.ran == []


def test_a_plan_finds_what_would_be_taken_and_takes_nothing(tmp_path, prompts):
    first, _ = made(tmp_path / "a", prompts)
    run = Run(tmp_path / "new", Config(reuse=[str(tmp_path / "a")]), planning=True)
    found = run.stage("prompts", "prompts", told(2), {"prompts": prompts})
    assert found.path == first.path and run.pending == [] and not (tmp_path / "new").exists()
    unknown = run.stage("prompts", "later", told(2), {"prompts": Artifact(prompts.path, None)})
    assert unknown.digest is None and run.pending == ["later"]


def test_work_begun_goes_before_what_could_be_taken(tmp_path, prompts):
    made(tmp_path / "a", prompts)
    (tmp_path / "new" / ".prompts.partial").mkdir(parents=True)
    _, run = made(tmp_path / "new", prompts, reuse=[str(tmp_path / "a")])
    assert [name for name, _ in run.launcher.ran] == ["prompts"]


def test_inputs_are_held_against_their_checksums_once_and_only_what_is_read(tmp_path, prompts, monkeypatch):
    artifact, _ = made(tmp_path / "run", prompts)
    checked = []
    real = verified.check_all
    monkeypatch.setattr(
        verified, "check_all", lambda wanted: checked.extend(names for _, _, names in wanted) or real(wanted)
    )
    run = Run(tmp_path / "run", Config())
    run.verify(artifact.part("train.parquet"), None, prompts)
    assert checked == [["train.parquet"]]
    run.verify(artifact, artifact)
    assert checked[1:] == [["held_out.parquet"], []], "once, although it was asked for twice in one call"
    (artifact.path / "held_out.parquet").write_bytes(
        b"x" * (artifact.path / "held_out.parquet").stat().st_size
    )
    run.verify(artifact)
    with pytest.raises(RunChanged, match=r"held_out\.parquet is damaged"):
        Run(tmp_path / "run", Config()).verify(artifact)


def test_files_of_several_stages_are_hashed_side_by_side(tmp_path, prompts, monkeypatch):
    artifacts = [made(tmp_path / name, prompts)[0] for name in ("a", "b", "c")]
    calls = []
    real = commit.digest_files
    monkeypatch.setattr(
        commit, "digest_files", lambda folder, names: calls.append(names) or real(folder, names)
    )
    Run(tmp_path / "run", Config()).verify(*artifacts, None)
    assert len(calls) == 1 and len(calls[0]) == 6
    damaged = artifacts[1].path / "train.parquet"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    with pytest.raises(RunChanged) as error:
        Run(tmp_path / "run", Config()).verify(*artifacts)
    assert str(error.value).startswith(f"{damaged} is damaged (its SHA-256 is ")
    assert f"rm -r {artifacts[1].path}" in str(error.value)


def test_a_second_name_of_a_file_that_was_hashed_is_not_hashed_again(tmp_path, prompts, monkeypatch):
    """As an export's weights are where they have the dtype already."""
    artifact, run = made(tmp_path / "run", prompts)
    partial = tmp_path / "run" / ".export.partial"
    partial.mkdir()
    for name in ("train.parquet", "held_out.parquet"):
        os.link(artifact.path / name, partial / name)
    (partial / "own").write_text("own")
    os.link(partial / "own", tmp_path / "own")  # of two names too, and of nobody's manifest
    hashed = []
    real = commit.digest_files
    monkeypatch.setattr(
        commit, "digest_files", lambda folder, names: hashed.extend(names) or real(folder, names)
    )
    final = tmp_path / "run" / "export"
    job = Job("export", "export", {}, {}, str(partial), 0)
    commit.commit(partial, final, IDENTITY, job, {}, {}, 0.5, run._verified.by_inode)
    assert hashed == ["own"]
    # And what was not hashed is recorded as if it had been.
    Run(tmp_path / "run", Config()).verify(open_artifact(final))
    assert len(open_artifact(final).record["files"]) == 3


def test_a_second_name_of_a_file_that_has_grown_since_is_hashed(tmp_path, prompts):
    artifact, run = made(tmp_path / "run", prompts)
    partial = tmp_path / "run" / ".export.partial"
    partial.mkdir()
    os.link(artifact.path / "train.parquet", partial / "train.parquet")
    with open(partial / "train.parquet", "ab") as file:
        file.write(b"more")
    final = tmp_path / "run" / "export"
    job = Job("export", "export", {}, {}, str(partial), 0)
    commit.commit(partial, final, IDENTITY, job, {}, {}, 0.5, run._verified.by_inode)
    Run(tmp_path / "run", Config()).verify(open_artifact(final))


def test_what_this_process_made_needs_no_second_look(tmp_path, prompts, monkeypatch):
    artifact, run = made(tmp_path / "run", prompts)
    checked = []
    monkeypatch.setattr(verified, "check_all", lambda wanted: checked.extend(names for _, _, names in wanted))
    run.verify(artifact)
    assert checked == [[]]


def test_code_of_a_model_is_announced_once_before_it_runs(tmp_path):
    models = {}
    for name, auto_map in (("own", {"AutoModel": "modeling.Own"}), ("plain", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"auto_map": auto_map}))
        models[name] = str(tmp_path / name)
    run = Listening(tmp_path / "run", Config())
    run._announce_code(models.values())
    run._announce_code(models.values())
    assert run.said == [f"  ! runs the Python code of {models['own']} (trust_remote_code=true): modeling.Own"]
    assert read_object(tmp_path / "plain" / "config.json") == {"auto_map": {}}


class Refusing(InProcess):
    def launch(self, job, kind, shards):
        (job.out_path / "shard_00000.parquet").write_bytes(b"work") if self.works else None
        raise UserError("no")


@pytest.mark.parametrize(
    ("stage", "config", "works", "is_kept"),
    [
        ("prompts", told(1), True, False),
        ("generate", GenerateStage(slice=[0, 2], shard_size=1), False, False),
        ("generate", GenerateStage(slice=[0, 2], shard_size=1), True, True),
    ],
)
def test_a_refused_stage_keeps_only_work_that_took_long(tmp_path, prompts, stage, config, works, is_kept):
    train, _ = made(tmp_path / "other", prompts)
    run = Run(tmp_path / "run", Config(), Refusing())
    run.launcher.works = works
    with pytest.raises(UserError, match="no"):
        run.stage(stage, "it", config, {"prompts": train.part("train.parquet")})
    assert (tmp_path / "run" / ".it.partial").exists() == is_kept


@pytest.mark.parametrize(
    ("name", "counts"),
    [(".identity.json", True), ("shard_00001.parquet", True), ("checkpoint-3", True), ("other", False)],
)
def test_what_counts_as_work_begun(tmp_path, name, counts):
    assert not has_begun(tmp_path)
    (tmp_path / name).write_text("")
    assert has_begun(tmp_path) == counts
    assert has_work(tmp_path) == (counts and name != ".identity.json")


def test_leftovers_of_a_killed_attempt_are_gone_and_whole_shards_stay(tmp_path, prompts):
    run = Listening(tmp_path, Config())
    for leftover in (".it.gone", ".it.taken"):
        (tmp_path / leftover).mkdir()
    (tmp_path / ".it.partial").mkdir()
    (tmp_path / ".it.partial" / "shard_00000.parquet").write_bytes(b"nobody knows")
    partial = prepared(tmp_path / "it", {"stage": "mix"}, run.say)
    assert sorted(path.name for path in partial.iterdir()) == [".identity.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".it.partial", "prompts.jsonl"]
    assert len(run.said) == 1 and "shard_00000.parquet: not what was written" in run.said[0]


def test_a_stage_reports_the_counts_of_all_its_shards(tmp_path, prompts):
    artifact, run = made(tmp_path / "run", prompts)
    assert artifact.counts["held_out"] == 2 and artifact.counts["train"] == 7
    read = run.stage("read", "read", ReadStage("prompts", 4), {"file": prompts})
    assert read.counts["rows"] == 9


def test_differences_are_told_by_place_and_digests_by_their_beginning():
    digest = "0123456789abcdef" * 4
    assert differences({"a": {"b": 1}, "c": None}, {"a": {"b": 1}}) == []
    assert differences({"a": digest}, {"a": [1]}) == ["a: '0123456789ab…' there, [1] now".replace("'", "")]
    assert differences({"b": 1, "a": {"x": 1}}, {"b": 2}) == [
        "a: {'x': 1} there, None now",
        "b: 1 there, 2 now",
    ]
    assert differences("g" * 64, "x", "k") == [f"k: '{'g' * 64}' there, 'x' now"]


def test_a_refusal_names_every_folder_that_would_be_lost(tmp_path):
    text = str(refusal(tmp_path, [("a", ["x: 1 there, 2 now"])], ["a", "b"], "run_dir=other"))
    assert f"rm -r {tmp_path / 'a'} {tmp_path / 'b'}" in text and "  a:\n    x: 1 there, 2 now\n" in text
    assert "run_dir=other" in text
