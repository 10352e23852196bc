"""Artifacts, fingerprints, commit, plan and refusal, with real torch-free stages run in this process."""

import json
import math
import shlex
import sys
from pathlib import Path

import pytest

from rlhf.config.fields import plain
from rlhf.config.schema import Config
from rlhf.config.stage_configs import DpoStage, GenerateStage, PromptsStage
from rlhf.data import shards
from rlhf.data.digest import sealed, unsealed
from rlhf.errors import DataError, RunChanged, RunInUse, SmallerBatches, UserError
from rlhf.loop.judges import rule_config
from rlhf.run import commit as commit_module
from rlhf.run.artifact import Artifact, open_artifact
from rlhf.run.commit import commit, installed_versions
from rlhf.run.job import Job, Outcome
from rlhf.run.lock import DRIVER_LOCK, hold_run
from rlhf.run.plan import AloneDone, Run
from rlhf.run.refusal import UNKNOWN, differences
from rlhf.run.stage_table import stage_function


class InProcess:
    """A launcher that runs a stage right here and remembers what it ran."""

    def __init__(self):
        self.ran = []
        self.rank, self.world_size, self.num_threads = 0, 1, 1

    def launch(self, job, kind, shards):
        self.ran.append((job.name, shards))
        self._shards = shards
        return stage_function(job.stage)(job, self)

    def shards(self):
        yield from self._shards

    def progress(self, done, total, note=""):
        pass

    def keep(self, engine):
        pass


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)))
    return path


def source(path, digest="d"):
    return Artifact(Path(path), digest)


def make(run, prompts_file, num_held_out=4, digest="d"):
    return run.stage(
        "prompts", "prompts", PromptsStage(num_held_out), {"prompts": source(prompts_file, digest)}
    )


def test_a_finished_stage_is_reused(tmp_path, prompts_file):
    launcher = InProcess()
    first = make(Run(tmp_path / "run", Config(), launcher), prompts_file)
    second = make(Run(tmp_path / "run", Config(), launcher), prompts_file)
    assert len(launcher.ran) == 1
    assert first.digest == second.digest and first.counts == second.counts
    assert first.counts["train"] == 36 and first.counts["held_out"] == 4


def test_an_artifact_is_named_by_its_content(tmp_path, prompts_file):
    one = make(Run(tmp_path / "a", Config(), InProcess()), prompts_file)
    other = make(Run(tmp_path / "b", Config(), InProcess()), prompts_file)
    assert one.digest == other.digest
    assert one.record["identity"] == other.record["identity"]
    more = make(Run(tmp_path / "c", Config(), InProcess()), prompts_file, num_held_out=5)
    assert more.digest != one.digest and more.record["identity"] != one.record["identity"]


def test_the_manifest_holds_what_a_person_looks_for(tmp_path, prompts_file):
    record = make(Run(tmp_path / "run", Config(), InProcess()), prompts_file).record
    assert record["identity"]["stage"] == "prompts" and record["identity"]["seed"] == 42
    assert record["identity"]["inputs"] == {"prompts": "d"}
    assert set(record["files"]) == {"train.parquet", "held_out.parquet"}
    assert (
        record["versions"]["transformers"] and record["seconds"] >= 0 and record["compute"]["zero_stage"] == 2
    )


def test_a_setting_without_bound_is_no_change_at_the_next_start(tmp_path):
    run = Run(tmp_path, Config(), InProcess())
    identity = run._identity("generate", GenerateStage(vllm_args={"swap_space": math.inf}), {})
    assert unsealed(sealed(identity)) == identity


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("rlhf.run.commit.VERSIONS", ("pyarrow", "no-such-package"))
    assert installed_versions().keys() == {"pyarrow"}


def test_a_part_has_a_digest_of_its_own(tmp_path, prompts_file):
    prompts = make(Run(tmp_path / "run", Config(), InProcess()), prompts_file)
    train, held_out = prompts.part("train.parquet"), prompts.part("held_out.parquet")
    assert train.digest == prompts.record["files"]["train.parquet"]["sha256"]
    assert train.digest != held_out.digest != prompts.digest
    assert train.path == prompts.path / "train.parquet"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_held_out": 5}, "config.num_held_out: 4 there, 5 now"),
        ({"digest": "e"}, "inputs.prompts: 'd' there, 'e' now"),
    ],
)
def test_a_change_is_refused_with_the_difference_and_every_way_out(tmp_path, prompts_file, change, said):
    folder = tmp_path / "run"
    make(Run(folder, Config(), InProcess()), prompts_file)
    launcher = InProcess()
    with pytest.raises(RunChanged) as refusal:
        make(Run(folder, Config(), launcher), prompts_file, **change)
    for part in (said, "put the old values back", "run_dir=", f"rm -r {folder / 'prompts'}"):
        assert part in str(refusal.value)
    assert launcher.ran == []


def test_the_ways_out_can_be_pasted(tmp_path, prompts_file):
    folder = tmp_path / "my run; it's $HOME"
    make(Run(folder, Config(), InProcess()), prompts_file)
    anew = "python -m rlhf.iterate run_dir=b 'reuse=[a]'"
    with pytest.raises(RunChanged) as refusal:
        make(Run(folder, Config(), InProcess(), elsewhere=anew), prompts_file, num_held_out=5)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert anew in lines and "(what is the same is taken from here and not computed again):" in str(
        refusal.value
    )
    remove = next(line for line in lines if line.startswith("rm -r"))
    assert shlex.split(remove) == ["rm", "-r", str(folder / "prompts")]


def scored(run, tmp_path, rule="my_rule:f", text="def f(messages, response): return 1"):
    (tmp_path / "my_rule.py").write_text(text)
    cfg = rule_config(Config(), rule, "reward_model.rule")
    return run.stage("score", "score", cfg, {"candidates": source(tmp_path, "d")})


class Nothing(InProcess):
    """Runs no stage."""

    def launch(self, job, kind, shards):
        return Outcome()


def test_a_changed_file_of_a_rule_is_named_and_explained(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    scored(Run(tmp_path / "run", Config(), Nothing()), tmp_path)
    plan = Run(tmp_path / "run", Config(), planning=True)
    scored(plan, tmp_path, text="def f(messages, response): return 1  # one")
    with pytest.raises(RunChanged) as refusal:
        plan.refuse_changes()
    said = str(refusal.value)
    assert f"the file of my_rule:f has changed, {tmp_path / 'my_rule.py'}" in said
    assert "whole source" in said and "module of its own" in said
    assert "my_rule" not in sys.modules


def test_another_rule_is_no_changed_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    scored(Run(tmp_path / "run", Config(), Nothing()), tmp_path)
    with pytest.raises(RunChanged, match=r"config\.rule: 'my_rule:f' there, 'my_rule:g' now") as refusal:
        scored(Run(tmp_path / "run", Config(), Nothing()), tmp_path, rule="my_rule:g")
    assert "has changed" not in str(refusal.value)


def test_another_seed_is_a_change(tmp_path, prompts_file):
    make(Run(tmp_path / "run", Config(), InProcess()), prompts_file)
    with pytest.raises(RunChanged, match="seed: 42 there, 43 now"):
        make(Run(tmp_path / "run", Config(seed=43), InProcess()), prompts_file)


def test_memory_budgets_and_machines_are_no_change(tmp_path):
    run = Run(tmp_path, Config())
    lean = run._identity("dpo", DpoStage(beta=0.1, save_steps=5, batch_tokens=100), {})
    rich = run._identity("dpo", DpoStage(beta=0.1, save_steps=50, batch_tokens=9999), {})
    assert lean == rich
    cfg = Config()
    cfg.compute.zero_stage = 3
    assert Run(tmp_path, cfg)._identity("dpo", DpoStage(beta=0.1), {}) == lean


def test_a_plan_runs_nothing_and_says_what_is_left(tmp_path, prompts_file):
    plan = Run(tmp_path / "run", Config(), planning=True)
    artifact = make(plan, prompts_file)
    assert artifact.digest is None and plan.pending == ["prompts"]
    assert not (tmp_path / "run").exists()
    made = make(Run(tmp_path / "run", Config(), InProcess()), prompts_file)
    plan = Run(tmp_path / "run", Config(), planning=True)
    assert make(plan, prompts_file) == made and plan.pending == []


def test_a_plan_names_everything_a_change_touches(tmp_path, prompts_file):
    folder = tmp_path / "run"
    first = make(Run(folder, Config(), InProcess()), prompts_file)
    run = Run(folder, Config(), InProcess())
    run.stage("prompts", "later", PromptsStage(num_held_out=0), {"prompts": first.part("train.parquet")})
    plan = Run(folder, Config(), planning=True)
    changed = make(plan, prompts_file, num_held_out=5)
    later = plan.stage(
        "prompts", "later", PromptsStage(num_held_out=0), {"prompts": changed.part("train.parquet")}
    )
    assert changed.stale and later.stale
    with pytest.raises(RunChanged) as refusal:
        plan.refuse_changes()
    assert f"rm -r {folder / 'prompts'} {folder / 'later'}" in str(refusal.value)


def test_a_plan_says_nothing_of_what_it_cannot_know(tmp_path, prompts_file):
    folder = tmp_path / "run"
    make(Run(folder, Config(), InProcess()), prompts_file)
    plan = Run(folder, Config(), planning=True)
    artifact = make(plan, prompts_file, num_held_out=UNKNOWN, digest=None)
    assert plan.refusals == [] and artifact.digest is None and not artifact.stale


def test_what_is_redone_with_the_same_outcome_keeps_what_came_after(tmp_path, prompts_file):
    folder, launcher = tmp_path / "run", InProcess()
    run = Run(folder, Config(), launcher)
    first = make(run, prompts_file)
    run.stage("prompts", "later", PromptsStage(num_held_out=0), {"prompts": first.part("train.parquet")})
    (folder / "prompts").rename(tmp_path / "gone")
    run = Run(folder, Config(), launcher)
    again = make(run, prompts_file)
    run.stage("prompts", "later", PromptsStage(num_held_out=0), {"prompts": again.part("train.parquet")})
    assert [name for name, _ in launcher.ran] == ["prompts", "later", "prompts"]


def test_unfinished_work_of_a_long_stage_with_other_settings_is_refused(tmp_path):
    partial = tmp_path / ".generate.partial"
    partial.mkdir()
    run = Run(tmp_path, Config(), InProcess())
    (partial / ".identity.json").write_bytes(sealed(run._identity("generate", GenerateStage(n=8), {})))
    plan = Run(tmp_path, Config(), planning=True)
    plan.stage("generate", "generate", GenerateStage(n=4), {})
    assert plan.refusals == [], "nothing was made with the old settings, so nothing would be lost"
    (partial / "shard_00000.parquet").write_text("x")
    with pytest.raises(RunChanged, match=r"generate \(unfinished\)[\s\S]*config.n: 8 there, 4 now"):
        run.stage("generate", "generate", GenerateStage(n=4), {})
    plan = Run(tmp_path, Config(), planning=True)
    plan.stage("generate", "generate", GenerateStage(n=4), {})
    assert plan.refusals == [("generate", ["config.n: 8 there, 4 now"])]


def test_unfinished_work_of_a_short_stage_with_other_settings_is_thrown_away(tmp_path, prompts_file):
    partial = tmp_path / ".prompts.partial"
    partial.mkdir()
    run = Run(tmp_path, Config(), InProcess())
    (partial / ".identity.json").write_bytes(
        sealed(run._identity("prompts", PromptsStage(num_held_out=9), {}))
    )
    (partial / "rubbish").write_text("x")
    assert "rubbish" not in make(run, prompts_file).record["files"]


def test_half_written_files_are_no_part_of_an_artifact(tmp_path, prompts_file):
    partial = tmp_path / ".prompts.partial"
    partial.mkdir()
    (partial / ".shard_00000.parquet.tmp").write_text("half")
    (partial / "artifact.json").write_text("{}")
    artifact = make(Run(tmp_path, Config(), InProcess()), prompts_file)
    assert set(artifact.record["files"]) == {"train.parquet", "held_out.parquet"}
    assert not list(artifact.path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["missing", "shorter", "manifest"])
def test_a_damaged_artifact_is_named(tmp_path, prompts_file, damage):
    artifact = make(Run(tmp_path, Config(), InProcess()), prompts_file)
    target = artifact.path / ("artifact.json" if damage == "manifest" else "train.parquet")
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-10])
    with pytest.raises(RunChanged, match=str(artifact.path)):
        open_artifact(artifact.path)


def test_one_stage_alone_needs_its_inputs(tmp_path, prompts_file):
    run = Run(tmp_path, Config(), InProcess(), only="later")
    with pytest.raises(UserError, match="later alone cannot run: prompts"):
        make(run, prompts_file)


def test_one_stage_alone_stops_after_itself(tmp_path, prompts_file):
    launcher = InProcess()
    with pytest.raises(AloneDone):
        make(Run(tmp_path, Config(), launcher, only="prompts"), prompts_file)
    assert [name for name, _ in launcher.ran] == ["prompts"]


def test_commit_writes_the_manifest_before_the_final_name_appears(tmp_path, monkeypatch):
    partial, final = tmp_path / ".x.partial", tmp_path / "x"
    partial.mkdir()
    (partial / "file").write_text("content")
    seen = []
    monkeypatch.setattr(
        "os.rename", lambda a, b: seen.append((sorted(p.name for p in a.iterdir()), b)) or a.replace(b)
    )
    commit(partial, final, {"stage": "x"}, Job("x", "x", {}, {}, str(partial), 0, {}), {"n": 1}, {}, 0.5)
    assert seen == [(["artifact.json", "file"], final)]


def test_every_folder_on_the_way_to_a_first_stage_is_flushed(tmp_path, prompts_file, monkeypatch):
    flushed = []
    fsync_dir = shards.fsync_dir
    monkeypatch.setattr(shards, "fsync_dir", lambda path: flushed.append(path) or fsync_dir(path))
    run = Run(tmp_path / "new" / "run", Config(), InProcess())
    made = run.stage("prompts", "judge/deep/prompts", PromptsStage(4), {"prompts": source(prompts_file)})
    on_the_way = [tmp_path, tmp_path / "new", run.folder, run.folder / "judge"]
    assert set(on_the_way) <= set(flushed)
    again = Run(tmp_path / "again", Config(reuse=[str(run.folder)]), InProcess())
    flushed.clear()
    again.stage("prompts", "judge/deep/prompts", PromptsStage(4), {"prompts": source(prompts_file)})
    assert again.launcher.ran == [] and made.digest
    assert {tmp_path, again.folder, again.folder / "judge"} <= set(flushed)


def test_every_folder_inside_of_a_stage_is_flushed(tmp_path, monkeypatch):
    partial = tmp_path / ".x.partial"
    (partial / "model" / "more").mkdir(parents=True)
    (partial / "model" / "more" / "file").write_text("the only one")
    flushed = []
    monkeypatch.setattr(shards, "fsync_dir", flushed.append)
    commit(partial, tmp_path / "x", {}, Job("x", "x", {}, {}, str(partial), 0), {}, {}, 0.5)
    assert {partial, partial / "model", partial / "model" / "more"} <= set(flushed)


def test_differences_name_the_place():
    there = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    now = {"a": {"b": 2, "c": [1, 2]}, "e": "new"}
    assert differences(there, now) == ["a.b: 1 there, 2 now", "e: None there, 'new' now"]
    assert differences(there, there) == []


def test_plain_config_is_json():
    text = json.dumps(plain(Config()))
    assert '"strategy": "best_worst"' in text and '"dtype": "auto"' in text


class ShortOfMemory(InProcess):
    """Runs out of memory so many times before a stage comes to its end, each time with a shard more."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.found = []

    def launch(self, job, kind, shards):
        self.found.append(job.compute.found_budget)
        if self.times:
            self.times -= 1
            self.ran.append((job.name, shards))
            raise SmallerBatches(f"memory ran out: going on with {self.times}")
        outcome = super().launch(job, kind, shards)
        outcome.metrics["budget"] = {"batch_tokens": 512, "device": "cpu", "ran_out": True}
        return outcome


class Listener:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def begin(self, name):
        pass

    def end(self, name, seconds, figures):
        pass


def test_a_stage_that_finds_smaller_batches_is_started_again_and_said_each_time(tmp_path, prompts_file):
    launcher, console = ShortOfMemory(2), Listener()
    artifact = make(Run(tmp_path / "run", Config(), launcher, console), prompts_file)
    assert len(launcher.ran) == 3 and artifact.counts["train"] == 36
    assert console.said == [
        "  ! prompts: memory ran out: going on with 1",
        "  ! prompts: memory ran out: going on with 0",
    ]


def test_what_was_found_is_told_to_the_next_stage_of_its_name(tmp_path, prompts_file):
    launcher = ShortOfMemory(0)
    run = Run(tmp_path / "run", Config(), launcher)
    make(run, prompts_file)
    run.stage("prompts", "more", PromptsStage(5), {"prompts": source(prompts_file)})
    # Also where the first was finished by another process.
    again = Run(tmp_path / "run", Config(), launcher)
    make(again, prompts_file)
    again.stage("prompts", "third", PromptsStage(6), {"prompts": source(prompts_file)})
    found = {"batch_tokens": 512, "device": "cpu", "ran_out": True}
    assert launcher.found == [None, found, found]
    assert open_artifact(tmp_path / "run" / "third").record["compute"]["found_budget"] == found


class TakenAway(InProcess):
    """Another driver takes the run over while a stage works, or while its checksums are taken."""

    def launch(self, job, kind, shards):
        outcome = super().launch(job, kind, shards)
        take_away(self.folder)
        (Path(job.out) / "artifact.json").write_text("the other driver's")
        if self.fails:
            raise DataError("a file that the other driver has removed")
        return outcome


def take_away(folder):
    (folder / DRIVER_LOCK).write_text(json.dumps({"pid": "4711", "host": "node7", "token": "another"}))


@pytest.mark.parametrize("fails", [False, True])
def test_a_driver_that_was_taken_over_in_a_stage_renames_and_removes_nothing(tmp_path, prompts_file, fails):
    launcher = TakenAway()
    launcher.folder, launcher.fails = tmp_path / "run", fails

    def work():
        with hold_run(tmp_path / "run", print) as token:
            run = Run(tmp_path / "run", Config(), launcher, token=token)
            make(run, prompts_file)

    with pytest.raises(DataError if fails else RunInUse):
        work()
    partial = tmp_path / "run" / ".prompts.partial"
    assert (partial / "train.parquet").exists()
    assert (partial / "artifact.json").read_text() == "the other driver's"
    assert not (tmp_path / "run" / "prompts").exists()
    assert json.loads((tmp_path / "run" / DRIVER_LOCK).read_text())["token"] == "another"


def test_one_that_was_taken_over_while_checksums_were_taken_renames_nothing(
    tmp_path, prompts_file, monkeypatch
):
    def entries(*arguments):
        take_away(tmp_path / "run")
        return entries_of(*arguments)

    entries_of = commit_module._entries
    monkeypatch.setattr(commit_module, "_entries", entries)

    def work():
        with hold_run(tmp_path / "run", print) as token:
            make(Run(tmp_path / "run", Config(), InProcess(), token=token), prompts_file)

    with pytest.raises(RunInUse, match="taken over by process 4711 on node7"):
        work()
    assert not (tmp_path / "run" / "prompts").exists()


def test_one_that_was_taken_over_begins_no_stage(tmp_path, prompts_file):
    launcher = InProcess()

    def work():
        with hold_run(tmp_path / "run", print) as token:
            take_away(tmp_path / "run")
            make(Run(tmp_path / "run", Config(), launcher, token=token), prompts_file)

    with pytest.raises(RunInUse, match="the same command goes on"):
        work()
    assert launcher.ran == [] and sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".driver.lock",
        ".workers.lock",
    ]
