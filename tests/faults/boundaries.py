"""SIGKILL before, in the middle of and after every write, fsync, rename and link of a run, one at a time."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.faults import hooks, subject
from tests.faults.tally import Tally, damaged_files, redone


def undisturbed(folder: Path) -> tuple[dict[str, Any], int]:
    """What comes out without a kill, and how many boundaries there are on the way."""
    subject.prepare(folder)
    counter = folder.with_suffix(".count")
    assert subject.attempt(folder, hooks.count_and_kill(counter, "0")) == 0, (
        folder / "error.txt"
    ).read_text()
    return json.loads((folder / "result.json").read_text()), counter.stat().st_size


def kill_at(folder: Path, at: int, expected: dict[str, Any], tally: Tally) -> None:
    """Kill at one boundary, resume, compare."""
    subject.prepare(folder)
    counter = folder.with_suffix(".count")
    counter.unlink(missing_ok=True)
    tally.check(
        subject.attempt(folder, hooks.count_and_kill(counter, str(at))) == -9,
        f"boundary {at}: was not reached",
    )
    tally.kills += 1
    tally.accepted(folder, f"after a kill at boundary {at}")
    code = subject.attempt(folder)
    if code:
        tally.check(False, f"boundary {at}: no resume: {(folder / 'error.txt').read_text()}")
        return
    found = json.loads((folder / "result.json").read_text())
    tally.check(found["digests"] == expected["digests"], f"boundary {at}: another outcome")
    for name, ids in expected["ids"].items():
        tally.ids(ids, found["ids"][name], f"boundary {at}, {name}")
    tally.accepted(folder, f"after boundary {at} and a resume")
    tally.redone_max = max(tally.redone_max, redone(folder / "begun"))
    hidden = [
        path for run in ("run", "again") for path in (folder / run).rglob(".*") if ".lock" not in path.name
    ]
    tally.check(not hidden, f"boundary {at}: left over {hidden}")


def suite(folder: Path, kills: int, seed: int) -> Tally:
    """Kill at so many boundaries, evenly spread from a random first one; all of them where `kills` allows."""
    tally = Tally()
    expected, number = undisturbed(folder / "whole")
    assert damaged_files(folder / "whole") == []
    step = max(1.0, number / kills)
    first = random.Random(seed).uniform(0, step)
    for at in sorted({1 + int(first + i * step) % number for i in range(min(kills, number))}):
        kill_at(folder / "killed", at, expected, tally)
        shutil.rmtree(folder / "killed")
    return tally


if __name__ == "__main__":
    done = suite(Path(sys.argv[1]), int(sys.argv[2]), seed=int(sys.argv[3]))
    print("\n".join([*done.missed, done.line()]))
    sys.exit(done.code())
