"""One engine for a stage, and one for a judge in a run, where `engine: auto` leaves the choice open."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf.config.choices import Engine
from rlhf.config.schema import Config
from rlhf.config.stage_configs import ScoreStage
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from rlhf.errors import RunChanged, WorkerFailed
from rlhf.run import engine_choice
from rlhf.run.artifact import Artifact
from rlhf.run.job import Outcome
from rlhf.run.plan import Run

AUTO, VLLM, TRANSFORMERS = Engine.auto, Engine.vllm, Engine.transformers


class Scoring:
    """A launcher whose worker takes `prefers` where the engine is open, and dies after `shards` shards."""

    def __init__(self, prefers=VLLM, shards=99):
        self.prefers, self.left, self.told = prefers, shards, []

    def launch(self, job, kind, shards):
        self.told.append((job.name, job.config.engine, shards))
        engine = job.config.engine
        if engine is AUTO:
            engine = engine_choice.pin_engine(job.out_path, self.prefers)
        for index in shards:
            if not self.left:
                raise WorkerFailed("killed")
            self.left -= 1
            row = {"id": str(index), "scores": [float(engine is VLLM)]}
            write_shard(job.out_path / shard_name(index), SCORES_SCHEMA, [row])
        return Outcome()


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "candidates"
    folder.mkdir()
    for index in range(2):
        row = {"id": str(index), "messages": [], "prompt_token_ids": [], "candidates": []}
        write_shard(folder / shard_name(index), CANDIDATES_SCHEMA, [row])
    return {"candidates": Artifact(folder, "c"), "judge": Artifact(Path("/judge"), "j")}


def score(folder, launcher, inputs, engine=AUTO, name="score", run=None, **changes):
    run = run or Run(folder, Config(**changes), launcher)
    return run.stage("score", name, ScoreStage(engine=engine), inputs)


def engine_of(artifact):
    return artifact.record["identity"]["config"]["engine"]


@pytest.mark.parametrize("taken", [VLLM, TRANSFORMERS])
def test_an_artifact_names_the_engine_that_made_it_and_auto_is_content_with_it(tmp_path, inputs, taken):
    made = score(tmp_path / "run", Scoring(taken), inputs)
    assert engine_of(made) == taken.value and made.record["config"]["engine"] == "auto"
    assert not [path.name for path in made.path.iterdir() if path.name.startswith(".")]
    launcher = Scoring(VLLM if taken is TRANSFORMERS else TRANSFORMERS)
    again = [score(tmp_path / "run", launcher, inputs, engine) for engine in (AUTO, taken)]
    assert launcher.told == [] and {one.digest for one in again} == {made.digest}
    with pytest.raises(
        RunChanged, match=f"config.engine: '{taken.value}' there, '{launcher.prefers.value}' now"
    ):
        score(tmp_path / "run", launcher, inputs, launcher.prefers)


@pytest.mark.parametrize("then", [VLLM, TRANSFORMERS])
def test_what_a_named_engine_has_begun_or_finished_goes_on_under_auto(tmp_path, inputs, then):
    other = VLLM if then is TRANSFORMERS else TRANSFORMERS
    with pytest.raises(WorkerFailed):
        score(tmp_path / "run", Scoring(shards=1), inputs, then)
    launcher = Scoring(prefers=other)
    planned = Run(tmp_path / "run", Config(), planning=True)
    score(None, None, inputs, run=planned)
    planned.refuse_changes()
    finished = score(tmp_path / "run", launcher, inputs)
    assert launcher.told == [("score", then, [1])] and engine_of(finished) == then.value


def test_the_shards_of_a_stage_are_of_one_engine(tmp_path, inputs):
    with pytest.raises(WorkerFailed):
        score(tmp_path / "run", Scoring(VLLM, shards=1), inputs)
    # vLLM cannot be loaded any more, and `auto` would take transformers; another worker may think so too.
    launcher = Scoring(TRANSFORMERS)
    finished = score(tmp_path / "run", launcher, inputs)
    assert launcher.told == [("score", VLLM, [1])] and engine_of(finished) == "vllm"


def test_where_no_shard_is_made_the_choice_is_open_again(tmp_path, inputs):
    with pytest.raises(WorkerFailed):
        score(tmp_path / "run", Scoring(VLLM, shards=0), inputs)
    assert engine_of(score(tmp_path / "run", Scoring(TRANSFORMERS), inputs)) == "transformers"


def test_a_judge_is_asked_in_one_engine_throughout_a_run(tmp_path, inputs):
    run = Run(tmp_path / "run", Config(), Scoring(TRANSFORMERS))
    score(None, None, inputs, name="iteration_000/score", run=run)
    run.launcher.prefers = VLLM
    other = inputs | {"judge": Artifact(Path("/other"), "o")}
    assert engine_of(score(None, None, inputs, name="iteration_001/score", run=run)) == "transformers"
    assert engine_of(score(None, None, other, name="iteration_001/score_other", run=run)) == "vllm"


@pytest.mark.parametrize("then", [AUTO, VLLM, TRANSFORMERS])
def test_auto_takes_what_any_engine_has_made_in_another_run(tmp_path, inputs, then):
    made = score(tmp_path / "a", Scoring(VLLM), inputs, then)
    launcher = Scoring()
    taken = score(tmp_path / "b", launcher, inputs, reuse=[str(tmp_path / "a")])
    assert launcher.told == [] and taken.digest == made.digest and engine_of(taken) == engine_of(made)


def test_of_several_workers_the_first_one_chooses(tmp_path):
    assert engine_choice.pinned_engine(tmp_path) is None
    assert engine_choice.pin_engine(tmp_path, TRANSFORMERS) is TRANSFORMERS
    assert engine_choice.pin_engine(tmp_path, VLLM) is TRANSFORMERS


@pytest.mark.parametrize("damage", ["", "vll", "auto"])
def test_a_damaged_word_of_the_engine_is_refused(tmp_path, damage):
    (tmp_path / ".engine").write_text(damage)
    with pytest.raises(RunChanged, match=r"\.engine is damaged"):
        engine_choice.pinned_engine(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_system_without_links_has_one_choice_too(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*names):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
        monkeypatch.setattr("os.symlink", refuse)
    assert engine_choice.pin_engine(tmp_path, VLLM) is VLLM
    assert engine_choice.pin_engine(tmp_path, TRANSFORMERS) is VLLM
    # A copy of the folder, links followed, says the same.
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    assert engine_choice.pinned_engine(copy) is VLLM
    assert [path.name for path in tmp_path.glob(".*")] == [".engine"]


def test_a_stage_without_engine_is_left_alone(tmp_path):
    identity = json.loads('{"config": {"beta": 0.1}}')
    assert engine_choice.identities_of(identity) == [identity]
    assert engine_choice.identity_with(identity, VLLM) == identity


@pytest.mark.parametrize(
    ("asked_for", "made", "wanted"),
    [
        (AUTO, [], AUTO),
        (AUTO, [VLLM], VLLM),
        (AUTO, [TRANSFORMERS, VLLM], TRANSFORMERS),
        # A named one is not changed: the plan has refused it where it does not fit.
        (TRANSFORMERS, [VLLM], TRANSFORMERS),
    ],
)
def test_what_a_run_needs_to_go_on_is_the_engine_that_it_began_with(asked_for, made, wanted):
    artifacts = [Artifact(Path("/pending"), None)]
    for engine in made:
        identity = {"stage": "score", "config": {"engine": engine.value}, "inputs": {"judge": "j"}}
        artifacts.append(Artifact(Path("/score"), "s", {"identity": identity}))
    cfg = Config()
    cfg.score.engine = asked_for
    assert engine_choice.as_begun(cfg.score, artifacts).engine is wanted
    assert cfg.score.engine is asked_for
