"""Kill a run again and again at random moments, resume it each time, and compare it with an undisturbed one.

    python scripts/kill_and_resume.py --reference RUN_A --run RUN_B --kills 20 -- experiment=quickstart seed=1

RUN_A is made first when it does not exist. Each kill is a SIGKILL of the driver alone, of a worker alone, or of
everything. At the end every artifact of both runs must have the same content, and no process may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

MODES = ("driver", "worker", "everything")
WORKER_SECONDS = 60.0
"""How long a kill of a worker waits for one to appear."""


def descendants(pid: int) -> list[int]:
    """Ids of all processes below one, read from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers_of(driver: int) -> list[int]:
    """Stage processes of a driver: they lead process groups of their own."""
    return [pid for pid in descendants(driver) if alive(pid) and _group(pid) == pid]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def start(run: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start the loop on a run folder."""
    log = open(run.with_name(run.name + ".out"), "ab")  # noqa: SIM115 - the child's for its life
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf.iterate", f"run_dir={run}", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(driver: subprocess.Popen[bytes], mode: str, rng: random.Random) -> tuple[str, list[int]]:
    """Kill as `mode` says; returns what was really killed and every process that must be gone soon."""
    deadline = time.monotonic() + WORKER_SECONDS
    while mode == "worker" and not workers_of(driver.pid) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)  # between stages, and while the driver starts, there is none
    everyone = [driver.pid, *descendants(driver.pid)]
    workers = workers_of(driver.pid)
    if mode == "worker" and workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
    elif mode == "everything":
        for pid in everyone:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    else:
        mode = "driver"
        driver.kill()
    driver.wait()
    return mode, everyone


def contents(run: Path) -> dict[str, str]:
    """Digest of every artifact of a run, by name."""
    return {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["digest"] for path in run.rglob("artifact.json")
    }


def main() -> int:
    """Run, kill, resume, compare; exit code 0 when nothing differs and nothing is left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds a run may go on between two kills")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    if not (options.reference / "summary.json").is_file() and start(options.reference, options.arguments).wait():
        print("the undisturbed run failed")
        return 1
    killed: dict[str, int] = {}
    ever: set[int] = set()
    while sum(killed.values()) < options.kills:
        driver = start(options.run, options.arguments)
        try:
            code = driver.wait(rng.uniform(1.0, options.longest))
            print(f"finished with exit code {code} after {sum(killed.values())} kills")
            break
        except subprocess.TimeoutExpired:
            mode, processes = kill(driver, rng.choice(MODES), rng)
            killed[mode] = killed.get(mode, 0) + 1
            ever.update(processes)
            print(f"kill {sum(killed.values())}: {mode}", flush=True)
    code = start(options.run, options.arguments).wait()
    time.sleep(1.0)
    orphans = [pid for pid in ever if alive(pid)]
    expected, found = contents(options.reference), contents(options.run)
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"kills={killed} exit={code} artifacts={len(found)} differ={len(differ)} {differ} orphans={len(orphans)}")
    return int(bool(code or differ or orphans))


if __name__ == "__main__":
    sys.exit(main())
