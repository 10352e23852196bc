"""TensorBoard, wandb (offline) and trackio are told each point once, whatever is killed."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest

from rlhf.config.stage_configs import StageCompute, TrackStage
from rlhf.run.job import Job
from rlhf.view.history import history, settings
from rlhf.view.run_folder import open_run
from tests.faults import hooks
from tests.integration.loop.test_old_run import OTHERS, SETTINGS
from tests.tracked import points_of, trackio_config, wandb_records

ROOT = Path(__file__).resolve().parents[3]
TRACKERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not any(distributions(name=name)), reason=f"{name} is not installed: make test-trackers"
        ),
    )
    for name in ("tensorboard", "trackio", "wandb")
]
INSTALLED = [name for name in ("tensorboard", "trackio", "wandb") if any(distributions(name=name))]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What each process of `tell` would import anew: it is forked from this one."""
    for module in (
        "accelerate.tracking",
        *(["torch.utils.tensorboard"] if "tensorboard" in INSTALLED else []),
    ):
        importlib.import_module(module)


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder with `given` and a finished `run` of two iterations, SFT and a judge trained."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tarfile.open(ROOT / "tests" / "data" / "old_run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def job_for(run, tracker):
    read = open_run(str(run))
    config = TrackStage(tracker, str(run), [vars(unit) for unit in history(read)], settings(read))
    return Job("track", f"track/{tracker}", config, {}, "", 42, StageCompute())


def tell(run, tracker, dies_at=0):
    """Tell a tracker what there is in a process of its own, which dies at a boundary; (exit code, boundaries)."""
    job = job_for(run, tracker)
    context = multiprocessing.get_context("fork")
    counter = run.parent / "counter"
    counter.unlink(missing_ok=True)
    process = context.Process(target=_told_there, args=(job, run / "logs", counter, dies_at))
    process.start()
    process.join(120)
    return process.exitcode, counter.stat().st_size if counter.exists() else 0


def _told_there(job, root, counter, dies_at):
    os.setsid()
    from rlhf.stages.track import run

    hooks.install(root, hooks.count_and_kill(counter, str(dies_at), "self"))
    run(job, None)
    os._exit(0)


def half(run):
    """The run as it was when its first iteration had trained, and was not evaluated; what came later aside."""
    aside = run.with_name("aside")
    aside.mkdir()
    for name in ("iteration_002", "iteration_001/held_out", "summary.json"):
        shutil.move(run / name, aside / name.replace("/", "+"))
    return aside


def whole(run, aside):
    for path in aside.iterdir():
        shutil.move(path, run / path.name.replace("+", "/"))
    aside.rmdir()


def expected(run):
    """What a tracker must hold: every value of every unit once, but for seconds."""
    points = []
    for unit in history(open_run(str(run))):
        for place, values in unit.points:
            points += [(name, place, value) for name, value in values.items()]
    return [point for point in points if not point[0].startswith(("iteration/seconds/", "config"))]


def names_and_places(points):
    return sorted((name, place) for name, place, _ in points if name != "config")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_holds_every_point_once(old, tracker):
    run = old / "run"
    aside = half(run)
    assert tell(run, tracker)[0] == 0
    early = points_of(run, tracker)
    assert names_and_places(early) == names_and_places(expected(run)) != []
    whole(run, aside)
    assert tell(run, tracker)[0] == 0
    points = points_of(run, tracker)
    assert names_and_places(points) == names_and_places(expected(run))
    assert set(map(str, early)) < set(map(str, points))
    losses = {place: value for name, place, value in points if name == "dpo/loss"}
    assert sorted(losses) == list(range(1, len(losses) + 1)), "one axis, without a jump or a gap"
    steps = [
        json.loads((run / f"iteration_00{t}/dpo/artifact.json").read_text())["counts"]["steps"]
        for t in (1, 2)
    ]
    assert len(losses) == sum(steps)
    scores = {place: value for name, place, value in points if name == "iteration/score"}
    figures = json.loads((run / "summary.json").read_text())["iterations"]
    assert scores == pytest.approx({row["iteration"]: row["mean_score"] for row in figures}, rel=1e-6)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_killed_at_any_boundary_it_comes_to_the_same(old, tracker):
    run = old / "run"
    aside = half(run)
    assert tell(run, tracker)[0] == 0
    early = old / "early"
    shutil.copytree(run / "logs", early)
    whole(run, aside)
    code, boundaries = tell(run, tracker)
    undisturbed = points_of(run, tracker)
    assert code == 0 and boundaries > 5
    # The others take seconds each time.
    every = 1 if tracker == "tensorboard" else max(1, boundaries // 4)
    for dies_at in range(1, boundaries + 1, every):
        shutil.rmtree(run / "logs")
        shutil.copytree(early, run / "logs")
        code, _ = tell(run, tracker, dies_at)
        assert code == -signal.SIGKILL
        assert tell(run, tracker)[0] == 0
        assert points_of(run, tracker) == undisturbed, dies_at
        left = [path.name for path in (run / "logs").iterdir() if path.name.startswith(".")]
        assert left == [], dies_at


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_training_that_came_out_otherwise_takes_the_place_of_the_old_one(old, tracker):
    run = old / "run"
    aside = half(run)
    (run / "summary.json").write_text("{}")
    metrics = run / "iteration_001" / "dpo" / "metrics.jsonl"
    before = metrics.read_text()
    manifest = run / "iteration_001" / "dpo" / "artifact.json"
    sealed = manifest.read_text()
    from rlhf.data.digest import sealed as seal

    assert tell(run, tracker)[0] == 0
    rows = [json.loads(line) | {"loss": 9.0} for line in before.splitlines()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {key: value for key, value in json.loads(sealed).items() if key != "seal"}
    record["files"]["metrics.jsonl"]["bytes"] = metrics.stat().st_size
    manifest.write_bytes(seal(record | {"digest": "0" * 64}))
    assert tell(run, tracker)[0] == 0
    losses = [value for name, _, value in points_of(run, tracker) if name == "dpo/loss"]
    assert losses == [9.0] * len(rows)
    assert aside.is_dir()


@pytest.mark.skipif("wandb" not in INSTALLED, reason="wandb is not installed: make test-trackers")
def test_wandb_has_one_run_with_settings_and_gates(old):
    run = old / "run"
    gate = {"iteration": 1, "gate": "kl", "text": "π1 is far\u202e <b>", "where": "iteration_001/held_out"}
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"gates": [gate]}))
    ids = []
    for _ in range(2):
        assert tell(run, "wandb")[0] == 0
        ids.append((run / "logs" / "wandb_run_id.txt").read_text())
        records = list(wandb_records(run / "logs" / "wandb"))
        assert next(record.run.run_id for record in records if record.HasField("run")) == ids[-1]
    assert ids[0] == ids[1]
    text = str(records)
    assert "prompts.json" in text and "gates/kl" in text and "gates_found" in text
    assert "\u202e" not in "".join(str(point) for point in points_of(run, "wandb"))


@pytest.mark.skipif("trackio" not in INSTALLED, reason="trackio is not installed: make test-trackers")
def test_trackio_stays_here_and_has_the_settings(old, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/else")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    assert tell(old / "run", "trackio")[0] == 0
    assert trackio_config(old / "run" / "logs" / "trackio")["num_iterations"] == 2


@pytest.mark.skipif("tensorboard" not in INSTALLED, reason="tensorboard is not installed: make test-trackers")
def test_tensorboard_has_one_run_with_the_settings_as_text(old):
    assert tell(old / "run", "tensorboard")[0] == 0
    folder = old / "run" / "logs" / "tensorboard"
    assert [path for path in folder.iterdir() if path.is_dir()] == [], "a folder would be another run"
    [[_, place, text]] = [point for point in points_of(old / "run", "tensorboard") if point[0] == "config"]
    assert place == 0 and b'"num_iterations": 2' in text


def command(old, run, *changes):
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}:{old / 'given'}", HF_HUB_OFFLINE="1")
    trackers = f"report_to=[{','.join(INSTALLED)}]"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "rlhf.iterate"),
            *(f"run_dir=../{run.name}", OTHERS, *SETTINGS.split(), trackers, *changes),
        ],
        cwd=old / "given",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed: make test-trackers")
def test_a_run_killed_in_dpo_tells_the_same_as_an_undisturbed_one(old):
    # Made anew in both: older code, or another machine, may differ in the last bits of a gradient norm.
    shutil.rmtree(old / "run" / "iteration_002")
    (old / "run" / "best").unlink()
    shutil.copytree(old / "run", old / "killed", symlinks=True)
    undisturbed = command(old, old / "run", "dpo.save_steps=1")
    said, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, said
    killed = command(old, old / "killed", "dpo.save_steps=1")
    training = old / "killed" / "iteration_002" / ".dpo.partial"
    while not any(training.glob("checkpoint-*/sealed.json")) and killed.poll() is None:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL and training.is_dir(), "it was killed while it trained"
    resumed = command(old, old / "killed", "dpo.save_steps=1")
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "going on" in said + "".join(
        path.read_text() for path in (old / "killed" / "logs").glob("iteration_002.dpo.*.log")
    ), said
    for tracker in INSTALLED:
        assert points_of(old / "killed", tracker) == points_of(old / "run", tracker), tracker
        assert names_and_places(points_of(old / "run", tracker)) == names_and_places(expected(old / "run"))
        assert f"{tracker} " in said.split("best policy")[1]
