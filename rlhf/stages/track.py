"""Stage `track`: brings one tracker up to date, through accelerate. It leaves no artifact.

Whatever is killed, a tracker ends with each point once. TensorBoard gets one file of events each time, under
a name that the next attempt would use again. Trackio and wandb offline get everything anew, in a folder that
takes the place of the old one. A wandb server is told steps in order, and takes none that it has.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from rlhf.config.stage_configs import TrackStage
from rlhf.data.json_text import json_text
from rlhf.data.shards import fsync_dir, make_folders, write_atomic
from rlhf.errors import UserError
from rlhf.run.job import Job, Outcome, Worker
from rlhf.view.history import Point, Unit
from rlhf.view.trackers import TOLD, told, tracker_folder

PROJECT = "rlhf-iterate"
"""Of wandb (unless WANDB_PROJECT is set) and of trackio; a run is named after its folder."""
_AXES = ("sft", "reward_model", "dpo", "raft")


def run(job: Job[TrackStage], worker: Worker) -> Outcome:
    """Tell a tracker what it lacks of `units`; the metric `notes` has lines for the person who watches.

    Raises:
        UserError: it has not taken all points.
    """
    # What accelerate's own log asks for; without it a GPU would be looked for.
    from accelerate.state import PartialState

    PartialState(cpu=True)
    config = job.config
    folder = tracker_folder(Path(config.run_folder), config.tracker)
    units = [Unit(**unit) for unit in config.units]
    notes: list[str] = []
    tell = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[config.tracker]
    tell(folder, units, config, notes)
    return Outcome(metrics={"notes": notes})


def _missing(record: dict[str, Any], units: list[Unit]) -> list[Unit]:
    known = record.get("units", {})
    return [unit for unit in units if unit.name not in known]


def _has_changed(record: dict[str, Any], units: list[Unit]) -> bool:
    """Whether something that was told has been made again since, with another outcome."""
    known = record.get("units", {})
    return any(known.get(unit.name, unit.digest) != unit.digest for unit in units)


def _record(folder: Path, units: list[Unit], **more: Any) -> None:
    record = {"units": {unit.name: unit.digest for unit in units}, **more}
    write_atomic(folder / TOLD, json_text(record, indent=1).encode())


def _empty_folder(folder: Path) -> Path:
    """A new folder beside a tracker's, in which it works until all is written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    make_folders(partial)
    return partial


def _put_in_place(new: Path, folder: Path) -> None:
    """Let a folder take the place of a tracker's old one; killed half-way, there is none, and no record."""
    for path in sorted(new.rglob("*")):
        # wandb's links to its newest logs would name the folder that this one was.
        if path.is_symlink():
            path.unlink()
        elif path.is_file():
            _to_disk(path)
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        os.rename(folder, gone)
    os.rename(new, folder)
    fsync_dir(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _tensorboard(folder: Path, units: list[Unit], config: TrackStage, notes: list[str]) -> None:
    from accelerate.tracking import TensorBoardTracker

    record = told(folder)
    if _has_changed(record, units):
        record = {}
    new = _missing(record, units)
    number = record.get("files", 0) + 1
    partial = _empty_folder(folder)
    tracker = TensorBoardTracker(partial.name, str(partial.parent))
    tracker.start()
    for unit in new:
        for place, values in unit.points:
            # The same lines as in the file, not a paragraph of them.
            values = {
                name: _as_code(value) if unit.axis == "config" else value for name, value in values.items()
            }
            tracker.log(values, step=place)
    tracker.finish()
    [written] = partial.glob("*tfevents*")
    _to_disk(written)
    # TensorBoard reads files in the order of their names, and goes back to none.
    events = f"events.out.tfevents.{number:06d}.rlhf"
    os.rename(written, partial / events)
    known = {**record.get("units", {}), **{unit.name: unit.digest for unit in new}}
    write_atomic(partial / TOLD, json_text({"units": known, "files": number}, indent=1).encode())
    if not record:
        _put_in_place(partial, folder)
        return
    # The events first: killed in between, the next attempt puts its file in the place of this one.
    os.rename(partial / events, folder / events)
    fsync_dir(folder)
    os.rename(partial / TOLD, folder / TOLD)
    fsync_dir(folder)
    shutil.rmtree(partial, ignore_errors=True)


def _as_code(text: Any) -> str:
    return "\n".join(f"    {line}" for line in str(text).split("\n"))


def _trackio(folder: Path, units: list[Unit], config: TrackStage, notes: list[str]) -> None:
    partial = _empty_folder(folder)
    # Read when it is imported. It stays on this machine, also where others of the person's runs do not.
    os.environ["TRACKIO_DIR"] = str(partial)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL"):
        os.environ.pop(name, None)
    from accelerate.tracking import TrackioTracker

    tracker = TrackioTracker(
        PROJECT,
        name=_run_name(config),
        config=config.settings,
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    tracker.start()
    num_points = 0
    for unit in _without_settings(units):
        for place, values in unit.points:
            tracker.log(dict(values), step=place)
            num_points += 1
    tracker.finish()
    # It warns of what it could not keep, and goes on.
    [database] = partial.glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        [num_kept] = connection.execute("SELECT count(*) FROM metrics").fetchone()
    if num_kept != num_points:
        raise UserError(f"trackio has kept {num_kept} of {num_points} points")
    _record(partial, units)
    _put_in_place(partial, folder)


def _wandb(folder: Path, units: list[Unit], config: TrackStage, notes: list[str]) -> None:
    import wandb

    mode = wandb.setup().settings.mode
    if mode == "disabled":
        notes.append("WANDB_MODE=disabled: it is told nothing")
        return
    run_id = _wandb_id(folder)
    if mode in ("offline", "dryrun"):
        partial = _empty_folder(folder)
        _log_to_wandb(partial, run_id, "offline", units, 0, config)
        # wandb makes a folder of its own name.
        made = partial / "wandb"
        _record(made, units)
        _put_in_place(made, folder)
        shutil.rmtree(partial)
        return
    record = told(folder)
    if _has_changed(record, units):
        # What a server has been told cannot be taken back.
        record = {}
        run_id = _wandb_id(folder, new=True)
        notes.append(f"stages were made again since it was told of them: it begins a new run, {run_id}")
    if not record.get("is_online"):
        record = {}
    new = _missing(record, units)
    num_rows = record.get("rows", 0)
    make_folders(folder)
    num_rows = _log_to_wandb(folder.parent, run_id, "online", new, num_rows, config)
    known = {**record.get("units", {}), **{unit.name: unit.digest for unit in new}}
    write_atomic(
        folder / TOLD, json_text({"units": known, "rows": num_rows, "is_online": True}, indent=1).encode()
    )


def _log_to_wandb(
    place: Path, run_id: str, mode: str, units: list[Unit], num_rows: int, config: TrackStage
) -> int:
    """Log units as rows number `num_rows` and following; returns how many rows there are then."""
    import wandb
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        id=run_id,
        name=_run_name(config),
        dir=str(place),
        resume="allow",
        mode=mode,
        config=config.settings,
        # Nothing of this machine or its code: the run's own points, and nothing else.
        settings=wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    tracker.start()
    for axis in _AXES:
        tracker.tracker.define_metric(f"{axis}/*", step_metric=f"{axis}/step")
    tracker.tracker.define_metric("iteration/*", step_metric="iteration")
    gates = []
    for unit in _without_settings(units):
        for point in unit.points:
            # In wandb one count goes through the whole run; the axes are values like others.
            tracker.log(_with_place(unit, point), step=num_rows)
            num_rows += 1
            gates += [f"π{point[0]}: {value}" for value in point[1].values() if isinstance(value, str)]
    if gates:
        earlier = tracker.tracker.summary.get("gates_found") or []
        tracker.tracker.summary["gates_found"] = [*earlier, *gates]
    tracker.finish()
    return num_rows


def _with_place(unit: Unit, point: Point) -> dict[str, Any]:
    place, values = point
    key = "iteration" if unit.axis == "iteration" else f"{unit.axis}/step"
    return {key: place, **values}


def _wandb_id(folder: Path, new: bool = False) -> str:
    """The id of the wandb run that stands for this run, made when it is first needed."""
    path = folder.with_name("wandb_run_id.txt")
    if path.is_file() and not new:
        return path.read_text(encoding="utf-8").strip()
    run_id = uuid.uuid4().hex[:12]
    make_folders(path.parent)
    write_atomic(path, run_id.encode())
    return run_id


def _without_settings(units: list[Unit]) -> list[Unit]:
    """Units that are points: settings have a place of their own in wandb and trackio."""
    return [unit for unit in units if unit.axis != "config"]


def _run_name(config: TrackStage) -> str:
    return Path(config.run_folder).name
