"""Faults at random in the whole loop: tiny models, vLLM (on a CPU its engine is the worker), two training
ranks."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from rlhf.data.shards import read_all_rows
from tests.faults import hooks
from tests.faults.processes import alive, descendants, workers_of
from tests.faults.tally import Tally, contents, manifests
from tests.tiny import tiny_llama, tiny_reward_model

ROOT = Path(__file__).resolve().parents[2]
MODES = (
    "driver",
    "worker",
    "rank",
    "engine",
    "everything",
    "SIGTERM",
    "SIGINT",
    "boundary",
    "full disk",
    "hang",
)
WEIGHTS = (2, 2, 2, 2, 2, 1, 1, 4, 0.5, 0.5)
STOP_SECONDS = 10.0
"""A clean stop may take so long."""
HANG_SECONDS = 120
SMALLEST = 60_000
"""Bytes that a file may have on the full disk: less than a model's weights, more than a shard."""


def prepare(folder: Path) -> list[str]:
    """A policy, a judge and prompts; returns what a run of them is told."""
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }  # heads of 32, as vLLM wants
    tiny_llama(folder / "policy", seed=1, **shape)
    tiny_reward_model(folder / "judge", seed=2)
    (folder / "prompts.json").write_text(json.dumps([{"prompt": f"Say {i} in words"} for i in range(30)]))
    return [
        f"model.path={folder / 'policy'}",
        f"reward_model.path={folder / 'judge'}",
        f"prompts.path={folder / 'prompts.json'}",
        *["prompts.num_per_iteration=24", "prompts.num_held_out=6", "num_iterations=1", "generate.n=4"],
        *["generate.max_new_tokens=12", "generate.shard_size=4", "pair.truncated=allow", "dpo.batch_size=4"],
        *["dpo.save_steps=1", "dpo.learning_rate=1e-3", "dpo.gradient_checkpointing=false", "evaluate.n=2"],
        "compute.num_training_ranks=2",
    ]


def prompt_ids(run: Path) -> dict[str, list[str]]:
    """Prompts of every stage that holds some, in order."""
    folders = [path.parent for path in manifests(run)]
    sharded = [folder for folder in folders if any(folder.glob("shard_*"))]
    return {
        str(folder.relative_to(run)): [row["id"] for row in read_all_rows(folder, ["id"])]
        for folder in sharded
    }


@dataclass
class Victim:
    """One run folder that is disturbed until it is finished, again and again."""

    folder: Path
    overrides: list[str]
    rng: random.Random
    tally: Tally
    longest: float = 40.0
    """Seconds after which a fault comes at the latest."""
    boundaries: int = 1
    """How many an undisturbed run has."""
    modes: Counter[str] = field(default_factory=Counter)
    slowest_stop: float = 0.0
    pieces: int = 0
    """Shards and checkpoints that were finished once and not again."""
    _run: Path = Path()
    _damaged: dict[Path, bytes] = field(default_factory=dict)
    _ever_damaged: set[str] = field(default_factory=set)
    _moves: int = 0

    def start(
        self, at: int = 0, action: str = "self", limit: int | None = None, patience: int = 3600
    ) -> subprocess.Popen[str]:
        """Start the loop; `at` is the boundary to die at, `limit` the largest file it may write."""
        counter = self.folder / "counter"
        counter.unlink(missing_ok=True)
        environment = hooks.on_path(self.folder / "hooks", self._run, counter, str(at), action) | {
            "HF_HUB_OFFLINE": "1"
        }

        def limits() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rlhf.iterate",
                f"run_dir={self._run}",
                *self.overrides,
                f"compute.hang_seconds={patience}",
            ],
            stdout=open(self.folder / "out.txt", "w"),
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
            preexec_fn=limits,
        )

    def said(self) -> str:
        """What the last attempt printed."""
        return (self.folder / "out.txt").read_text()

    def undisturbed(self) -> Path:
        """The run that all others must equal."""
        self._run = self.folder / "whole"
        started = time.monotonic()
        code = self.start().wait()
        assert code == 0, self.said()
        self.longest = time.monotonic() - started
        self.boundaries = (self.folder / "counter").stat().st_size
        return self._run

    def life(self, kills: int) -> None:
        """Disturb a fresh run so often, or until it is finished; then let it finish and compare."""
        self._run = self.folder / f"run{self._moves}"
        (self.folder / "counter.made").unlink(missing_ok=True)
        self._ever_damaged.clear()
        for _ in range(kills):
            mode = self.rng.choices(MODES, WEIGHTS)[0]
            going = self.fault(mode)
            print(f"  {mode if going else 'finished'}: {self.tally.line()}", flush=True)
            if not going:
                break
        self.finish()

    def fault(self, mode: str) -> bool:
        """One attempt that is disturbed; False when it came to its end before."""
        at = self.rng.randint(1, self.boundaries) if mode == "boundary" else 0
        action = self.rng.choice(("self", "driver", "everything"))
        limit, patience = (
            (SMALLEST if mode == "full disk" else None),
            (HANG_SECONDS if mode == "hang" else 3600),
        )
        driver = self.start(at, action, limit, patience)
        processes = self._strike(driver, mode)
        code = driver.returncode
        if code == 0:
            return False
        if code == 2 and "is damaged" in self.said():
            self._restore(named=True)
            return True
        self.modes[f"boundary, {action}" if at else mode] += 1
        self.tally.kills += 1
        expected = {
            "SIGTERM": 143,
            "SIGINT": 130,
            "driver": -9,
            "everything": -9,
            "hang": 1,
            "rank": 1,
            "engine": 1,
            "worker": 1,
        }
        self.tally.check(code == expected.get(mode, code), f"{mode}: exit code {code}: {self.said()[-1500:]}")
        self.tally.check(mode != "hang" or " hangs:" in self.said(), f"hang: {self.said()[-1500:]}")
        self.tally.check("Traceback" not in self.said() or code == 1, f"{mode}: {self.said()[-1500:]}")
        self._count_orphans(processes)
        self.tally.accepted(self._run, f"after {mode}") if not self._damaged else None
        if self.rng.random() < 0.2:
            self._damage()
        if self.rng.random() < 0.2:
            self._move()
        return True

    def _strike(self, driver: subprocess.Popen[str], mode: str) -> list[int]:
        """Do what `mode` says at a random moment; returns all processes that must be gone soon."""
        if mode in ("boundary", "full disk"):
            return self._wait(driver, lambda: False, 900)
        seen = self._wait(driver, lambda: "to do" in self.said(), 120)
        seen += self._wait(driver, lambda: False, self.rng.uniform(0, self.longest * 0.7))
        choose: dict[str, Callable[[], list[int]]] = {
            "worker": lambda: workers_of(driver.pid),
            "hang": lambda: workers_of(driver.pid),
            "rank": lambda: workers_of(driver.pid) if any(self._run.rglob(".dpo.partial")) else [],
            "engine": lambda: workers_of(driver.pid) if any(self._run.rglob(".generate.partial")) else [],
        }
        if mode in choose:
            seen += self._wait(driver, lambda: bool(choose[mode]()), 120)
            victims = choose[mode]()
        else:
            victims = [driver.pid, *descendants(driver.pid)] if mode == "everything" else [driver.pid]
            seen += victims
        number = {"hang": signal.SIGSTOP, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(
            mode, signal.SIGKILL
        )
        for pid in victims if mode == "everything" else [self.rng.choice(victims)] if victims else []:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        began = time.monotonic()
        seen += self._wait(driver, lambda: False, 900)
        if mode.startswith("SIG"):
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - began)
            self.tally.check(
                time.monotonic() - began < STOP_SECONDS, f"{mode}: {time.monotonic() - began:.1f} s"
            )
        return seen

    def _wait(self, driver: subprocess.Popen[str], until: Callable[[], bool], seconds: float) -> list[int]:
        """Wait until something holds, the driver ends or time is up; all processes seen."""
        deadline, seen = time.monotonic() + seconds, {driver.pid}
        while driver.poll() is None and not until() and time.monotonic() < deadline:
            seen.update(descendants(driver.pid))
            time.sleep(0.1)
        return list(seen)

    def _count_orphans(self, processes: list[int]) -> None:
        deadline = time.monotonic() + 20.0
        while (left := [pid for pid in processes if alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.tally.orphans += len(left)
        self.tally.check(not left, f"processes left over: {left}")

    def _damage(self) -> None:
        """Truncate, flip or empty a random file of finished or unfinished work."""
        files = [
            p
            for p in self._run.glob("**/*")
            if p.is_file() and p.suffix in (".parquet", ".json", ".safetensors")
        ]
        files += [p for p in self._run.rglob("*.pt") if p.is_file()]
        files = [
            p for p in files if p.parent != self._run and p not in self._damaged and p.stat().st_nlink == 1
        ]
        if not files:
            return
        path = self.rng.choice(files)
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(self.rng.choice([data[: len(data) // 2], bytes(flipped), b""]))
        self._damaged[path] = data
        self._ever_damaged.add(self._stage(path))
        self.modes["damaged file"] += 1

    def _stage(self, path: Path) -> str:
        """The stage that a file is of, finished or not."""
        folders = path.parent.relative_to(self.folder).parts[1:]
        folders = tuple(takewhile(lambda part: not part.startswith("checkpoint-"), folders))
        return "/".join(part.removeprefix(".").removesuffix(".partial") for part in folders)

    def _count_redone(self) -> None:
        """A shard or a checkpoint that got its name is never made again, unless somebody damaged its stage.

        So a kill costs what was in flight: a shard of each worker, `dpo.save_steps` (1) optimizer steps.
        """
        made = [Path(line) for line in (self.folder / "counter.made").read_text().splitlines()]
        pieces = [path for path in made if path.name.startswith("shard_") or path.name == "sealed.json"]
        pieces = [path for path in pieces if self._stage(path) not in self._ever_damaged]
        number = Counter(str(Path(*path.relative_to(self.folder).parts[1:])) for path in pieces)
        again = sorted(name for name, times in number.items() if times > 1)
        self.pieces += len(number)
        self.tally.redone_max = max(self.tally.redone_max, 1 + len(again))
        self.tally.check(bool(pieces) and not again, f"finished, and made again: {again}")

    def _restore(self, named: bool = False) -> None:
        """Put damaged files back where they still are; `named`: the refusal must have named one of them."""
        said = re.sub(r"\s", "", self.said())
        self.tally.check(
            not named or any(str(path) in said for path in self._damaged), f"not named: {self.said()}"
        )
        for path, data in self._damaged.items():
            if path.is_file():
                path.write_bytes(data)
        self._damaged.clear()

    def _move(self) -> None:
        self._moves += 1
        there = self.folder / f"moved{self._moves}"
        os.rename(self._run, there)
        self._damaged = {there / path.relative_to(self._run): data for path, data in self._damaged.items()}
        self._run = there
        self.modes["run folder moved"] += 1

    def finish(self) -> None:
        """Let it finish, and compare."""
        code = self.start().wait()
        if code == 2 and "is damaged" in self.said():
            self._restore(named=True)
            code = self.start().wait()
        self._restore()
        self.tally.check(code == 0, f"no end: {self.said()[-3000:]}")
        whole = self.folder / "whole"
        self.tally.accepted(self._run, "at the end")
        expected, found = contents(whole), contents(self._run)
        differ = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        self.tally.check(not differ, f"{self._run}: another outcome in {differ}")
        there = prompt_ids(self._run)
        for name, ids in prompt_ids(whole).items():
            self.tally.ids(ids, there.get(name, []), name)
        self._count_redone()
        if not differ and code == 0:
            shutil.rmtree(self._run)
        self._moves += 1
