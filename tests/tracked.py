"""What trackers have been told, read back from their own files."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

Points = list[tuple[str, int, object]]
"""Name, place on its axis, and value, sorted."""

_BLOCK = 32768
_HEAD_OF_FILE = 7
_HEAD = struct.Struct("<IHB")


def tensorboard_points(folder: Path) -> Points:
    """Of all scalars, as TensorBoard reads them, and of texts."""
    from tensorboard.backend.event_processing import event_accumulator

    loaded = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    loaded.Reload()
    points: Points = []
    for name in loaded.Tags()["scalars"]:
        points += [(name, event.step, event.value) for event in loaded.Scalars(name)]
    for name in loaded.Tags()["tensors"]:
        for event in loaded.Tensors(name):
            points.append((name.removesuffix("/text_summary"), event.step, event.tensor_proto.string_val[0]))
    return sorted(points, key=str)


def trackio_points(folder: Path) -> Points:
    """Of trackio's database."""
    [database] = folder.glob("*.db")
    points: Points = []
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("SELECT DISTINCT run_id FROM metrics").fetchall()
        assert len(runs) == 1, "one run of the tracker stands for the whole run"
        for step, text in connection.execute("SELECT step, metrics FROM metrics"):
            points += [(name, step, value) for name, value in json.loads(text).items()]
    return sorted(points, key=str)


def trackio_config(folder: Path) -> dict[str, object]:
    """The settings that trackio shows."""
    [database] = folder.glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        [[text]] = connection.execute("SELECT config FROM configs").fetchall()
    return dict(json.loads(text))


def wandb_points(folder: Path) -> Points:
    """Of the offline run in wandb's folder, each at the place that it has on its axis."""
    points: Points = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        row = {
            "".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        values = {name: value for name, value in row.items() if not name.startswith("_")}
        axis = next(
            name for name in ("iteration", "dpo/step", "sft/step", "reward_model/step") if name in values
        )
        place = values.pop(axis)
        points += [(name, place, value) for name, value in values.items()]
    return sorted(points, key=str)


def wandb_records(folder: Path) -> Iterator[object]:
    """Every record of the one offline run, by wandb's own message type."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("offline-run-*/run-*.wandb")
    for content in _log_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        yield record


def _log_records(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format: 32 KiB blocks of pieces with checksum, length and kind."""
    at = _HEAD_OF_FILE
    whole = b""
    while at + _HEAD.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEAD.size:
            at += left  # what is left of a block is too short for a piece
            continue
        _, length, kind = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        whole += data[at : at + length]
        at += length
        if kind in (1, 4):  # all of a record, or its end
            yield whole
            whole = b""


READERS = {"tensorboard": tensorboard_points, "trackio": trackio_points, "wandb": wandb_points}


def points_of(run: Path, tracker: str) -> Points:
    """What a tracker of a run holds, without the seconds that stages took, which differ between two runs."""
    points = READERS[tracker](run / "logs" / tracker)
    return [point for point in points if not point[0].startswith("iteration/seconds/")]
