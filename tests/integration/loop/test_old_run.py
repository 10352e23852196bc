"""A run that older code has finished goes on with today's: nothing is redone, and what is redone has the same
bytes.

`tests/data/old_run.tar.gz` holds the run and what it was given; its README says how it was made.
"""

import json
import os
import shlex
import shutil
import tarfile

import pytest

from rlhf.data.digest import sealed
from rlhf.run.artifact import open_artifact
from rlhf.run.removal import Leaving, remove, weights_of
from tests.commands import ROOT, environment, typed

ARCHIVE = ROOT / "tests" / "data" / "old_run.tar.gz"
NUM_STAGES = 41
SETTINGS = """
model.path=policy reward_model.path=judge prompts.path=prompts.json prompts.num_per_iteration=10
prompts.num_held_out=5 num_iterations=2 sft.data=sft.jsonl sft.packing=false sft.batch_size=4
sft.max_length=128 sft.learning_rate=1.0e-3 sft.gradient_checkpointing=false
reward_model.data=preferences.jsonl reward_model.on_policy.prompts=judge_prompts.jsonl
reward_model.on_policy.rule=old_run_rules:num_words reward_model.batch_size=4 reward_model.max_length=128
reward_model.gradient_checkpointing=false +evaluate.judges.second=second_judge
evaluate.gold=old_run_rules:has_letter generate.engine=transformers generate.n=4
generate.max_new_tokens=12 generate.shard_size=4 score.max_tokens=1000 pair.truncated=allow
dpo.batch_size=4 dpo.learning_rate=1.0e-3 dpo.gradient_checkpointing=false evaluate.n=2
compute.device=cpu compute.num_threads=1
"""
OTHERS = "+reward_model.others={words: {rule: 'old_run_rules:num_words', weight: 0.5}}"


@pytest.fixture
def old(tmp_path):
    """The folder with `given` and `run`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def given(old, *words):
    """A command about the run, typed in the folder of what it was given; exit code and output."""
    return typed(old / "given", *words, given=environment(old / "given"))


def resume(old, *changes):
    """The command of then, with changes; exit code and output."""
    return given(old, "rlhf.iterate", "run_dir=../run", OTHERS, *SETTINGS.split(), *changes)


def identities(run):
    """What every finished stage was made of, and what came out."""
    manifests = {}
    for path in sorted(run.rglob("artifact.json")):
        record = json.loads(path.read_text())
        manifests[str(path.parent.relative_to(run))] = (record["identity"], record["digest"], record["files"])
    return manifests


def test_a_finished_run_has_nothing_to_do(old):
    before = identities(old / "run")
    summary = json.loads((old / "run" / "summary.json").read_text())
    code, said = resume(old)
    assert code == 0 and f"{NUM_STAGES} stages are finished, 0 to do" in said, said
    assert "✓" not in said, "a stage was made again"
    assert identities(old / "run") == before
    now = json.loads((old / "run" / "summary.json").read_text())
    assert {key: now[key] for key in summary} == summary
    assert set(now) - set(summary) <= {"planned_seconds", "spent_seconds"}
    assert os.readlink(old / "run" / "best") == "iteration_001/export/model"


def test_the_run_folder_alone_goes_on_with_its_own_settings(old):
    before = identities(old / "run")
    code, said = given(old, "rlhf.iterate", "run_dir=../run")
    assert code == 0 and f"{old / 'run'}: goes on with the run's own settings (config.yaml)" in said, said
    assert f"{NUM_STAGES} stages are finished, 0 to do" in said and "✓" not in said, said
    code, said = given(old, "rlhf.iterate", "run_dir=../run", "until=judge/pair", "gates.truncated=ignore")
    assert code == 0 and "5 stages are finished, 0 to do" in said and "best policy" not in said, said
    assert "until=judge/pair: judge/pair is finished" in said and identities(old / "run") == before


def test_a_pasted_way_out_makes_the_run_anew_of_what_is_the_same(old):
    for name in ("iteration_001/dpo", "iteration_002", "summary.json"):
        path = old / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.rename(old / "run", old / "my run, it's")
    run_dir = """run_dir="../my run, it's\""""
    code, said = given(old, "rlhf.iterate", run_dir, "pair.length_penalty=0.5", OTHERS, *SETTINGS.split())
    assert code == 2 and "config.length_penalty: 0.0 there, 0.5 now" in said, said
    way_out = next(line for line in said.splitlines() if "reuse=" in line and line.startswith("    python"))
    words = shlex.split(way_out)[2:]
    assert f'run_dir="{old / "my run, it"}\'s-2"' in words and "pair.length_penalty=0.5" in words, words
    code, said = given(old, *words, "until=iteration_001/score")
    assert code == 0 and "taken from" in said and "✓" not in said, said


def test_scores_go_on_in_the_engine_that_began_them(old):
    """That run was made when `score.engine` was transformers where nobody said another; now it is auto."""
    iteration = old / "run" / "iteration_001"
    for path in [old / "run" / "iteration_002", old / "run" / "summary.json", *iteration.iterdir()]:
        if path.name in ("generate", "score"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    partial = iteration / ".score.partial"
    os.rename(iteration / "score", partial)
    record = json.loads((partial / "artifact.json").read_text())
    (partial / "artifact.json").unlink()
    (partial / ".identity.json").write_bytes(sealed(record["identity"]))
    first, *others = sorted(partial.glob("shard_*.parquet"))
    assert others, "a part of it is to be left"
    for path in others:
        path.unlink()
    (partial / f".{first.name}.sha256").write_text(record["files"][first.name]["sha256"])
    begun = first.stat().st_mtime_ns
    code, said = resume(old, "until=iteration_001/score")
    assert code == 0 and "✓ iteration_001/score" in said, said
    now = json.loads((iteration / "score" / "artifact.json").read_text())
    assert now["identity"] == record["identity"] and record["identity"]["config"]["engine"] == "transformers"
    assert (iteration / "score" / first.name).stat().st_mtime_ns == begun


def test_what_is_redone_without_a_model_has_the_same_bytes(old):
    # What models compute may differ in its last bits between machines; these stages may not.
    redone = [
        "prompts",
        "judge/pair",
        "iteration_001/mix",
        "iteration_001/pair",
        "iteration_002/held_out/gold",
    ]
    before = identities(old / "run")
    for name in redone:
        shutil.rmtree(old / "run" / name)
    code, said = resume(old)
    assert code == 0, said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  ✓")] == [
        "judge/pair",
        "prompts",
        "iteration_001/mix",
        "iteration_001/pair",
        "iteration_002/held_out/gold",
    ]
    assert identities(old / "run") == before


def test_a_changed_setting_is_refused_with_its_name(old):
    code, said = resume(old, "pair.length_penalty=0.5")
    assert code == 2 and "config.length_penalty: 0.0 there, 0.5 now" in said, said
    assert "iteration_001/pair:" in said and "rm -r" in said


def test_another_rule_of_the_same_name_is_refused(old):
    rules = old / "given" / "old_run_rules.py"
    rules.write_text(rules.read_text().replace("float(len", "2 * float(len"))
    code, said = resume(old)
    assert code == 2 and "config.rule_source:" in said, said


def test_the_rules_of_the_package_are_what_they_were():
    """Folders of the quickstart hold the digest of `rlhf.world.tasks`: only its wording has changed since
    then."""
    from rlhf.run.sources import function_source

    of_then = "5e8fae084b75a834c8e0f18be369d055241f434792778fe204d7a7be5c52df16"
    assert function_source("rlhf.world.tasks:gold", "evaluate.gold") == of_then


def test_a_run_whose_weights_were_removed_has_nothing_to_do(old):
    run = old / "run"
    artifact = open_artifact(run / "iteration_002" / "dpo")
    remove(Leaving("iteration_002/dpo", "", weights_of(artifact), artifact), "test")
    before = identities(run)
    code, said = resume(old)
    assert code == 0 and f"{NUM_STAGES} stages are finished, 0 to do" in said, said
    shutil.rmtree(run / "iteration_002" / "held_out" / "generate")
    code, said = resume(old)
    assert code == 2 and "iteration_002/held_out/generate: what has to be read was removed" in said, said
    assert f"rm -r {run}/iteration_002/dpo" in said and len(identities(run)) == len(before) - 1
