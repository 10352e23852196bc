"""Change one token of a module at a time and see whether its unit tests notice: `make mutate`.

    python scripts/mutate_modules.py [seed=0] [mutants=70] [modules=data,run/lock] [processes=2]

The changes (`<` for `<=`, + for −, a constant plus one, `and` for `or`, …) are cosmic-ray's. A sample of all
that the torch-free modules offer is drawn by the seed. Each mutant is run in a copy of the project against
the unit tests of its module's room, `tests/unit/<room>`, until one fails. Cosmic-ray's own runner has one
test command for all modules and changes the files where they lie; so only its operators are used here.

Prints each mutant that nothing notices, then a table by module. Exit code 1 below 85 % noticed, 2 when the
tests fail without any change. Mutants listed in `equivalent_mutants.toml` change nothing that a test could
see: they are drawn, and neither run nor counted. (`mutate_commit.py` is another thing: chosen breaks of the
commit protocol, each with the test that has to notice.)
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import NoReturn, TypeVar

from mutants import Mutant, listed_equivalents, mutants_of, torch_free_modules

ROOT = Path(__file__).resolve().parents[1]

LEAST_NOTICED = 0.85

MEMORY_KB = 16 * 2**20
"""Address space of one run of the tests: a mutant that grows for ever ends itself and not the machine."""


def fail(message: str) -> NoReturn:
    """Ends the run before it has begun."""
    print(f"mutate: {message}", file=sys.stderr)
    sys.exit(2)


Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `noticed`, `time` (the tests did not end), `survived` or `equivalent`."""

    mutant: Mutant
    outcome: str


def test_files(project: Path, module: str) -> list[str]:
    """The unit tests of a module's room; those of its own name come first, then those that name it."""
    room, _, name = module.partition("/")
    folder = project / "tests" / "unit" / room

    def distance(path: Path) -> tuple[int, str]:
        if path.stem.startswith(f"test_{name}"):
            return 0, path.name
        return 1 if f"{room}.{name}" in path.read_text() else 2, path.name

    return [str(path.relative_to(project)) for path in sorted(folder.glob("test_*.py"), key=distance)]


class Runner:
    """Runs unit tests in copies of the project, as many at a time as there are copies."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.copies: Queue[Path] = Queue()
        self.running: set[subprocess.Popen[str]] = set()
        self.first = folder / "copy_0"
        left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "outputs", "multirun", "build")
        shutil.copytree(ROOT, self.first, ignore=left_out)
        # Compiled files that are held against the source's content, not its size and second: a mutant may
        # have both of the original.
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "rlhf"]
        subprocess.run(command, cwd=self.first, check=True)
        self.seconds: dict[str, float] = {}
        self.processes = processes

    def first_run(self, rooms: list[str]) -> None:
        """All must pass without a change. Their time tells how long a mutant may take."""
        if not all(list(self.side_by_side(self._passes, rooms))):
            fail("tests fail without any change: mend them first.")
        for number in range(1, self.processes):
            self.copies.put(Path(shutil.copytree(self.first, self.first.with_name(f"copy_{number}"))))
        self.copies.put(self.first)

    def _passes(self, room: str) -> bool:
        begin = time.monotonic()
        code, output = self.pytest(self.first, [f"tests/unit/{room}"], seconds=1800, write_compiled=True)
        self.seconds[room] = time.monotonic() - begin
        print(f"tests/unit/{room:<12} {self.seconds[room]:4.0f} s without a change", flush=True)
        if code != 0:
            print(output, file=sys.stderr)
        return code == 0

    def pytest(
        self, copy: Path, files: list[str], seconds: float, write_compiled: bool = False
    ) -> tuple[int | None, str]:
        """pytest's exit code (None: it did not end in time) and what it said."""
        arguments = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short"]
        # the same examples for every mutant
        arguments += ["--hypothesis-seed=0", *files]
        limited = ["sh", "-c", f'ulimit -v {MEMORY_KB}; exec "$@"', "sh", *arguments]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        if not write_compiled:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        process = subprocess.Popen(
            limited,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            self.end(process)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Ends a run of the tests with all that it started, which may have outlived it."""
        self.running.discard(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def verdict(self, mutant: Mutant) -> Verdict:
        """Tests one mutant in a copy that is free."""
        room = mutant.module.partition("/")[0]
        copy = self.copies.get()
        path = copy / "rlhf" / f"{mutant.module}.py"
        original = path.read_text()
        path.write_text(mutant.text)
        try:
            # generous, since other work on the machine may slow everything down
            limit = 60 + 5 * self.seconds[room]
            code, _ = self.pytest(copy, test_files(copy, mutant.module), limit)
        finally:
            path.write_text(original)
            self.copies.put(copy)
        if code is None:
            return Verdict(mutant, "time")
        return Verdict(mutant, "noticed" if code else "survived")

    def side_by_side(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """What a function finds of each item, as it comes; Ctrl-C ends all that runs."""
        pool = ThreadPoolExecutor(self.processes)
        try:
            for future in as_completed([pool.submit(function, item) for item in items]):
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                self.end(process)
            raise
        pool.shutdown()


def show(verdict: Verdict, done: str) -> None:
    """A mutant as a person reads it."""
    mutant = verdict.mutant
    place = f"rlhf/{mutant.module}.py:{mutant.line}"
    print(f"{done} {verdict.outcome}  {place}  {mutant.function or 'the module itself'}")
    print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)


def print_table(verdicts: list[Verdict]) -> float:
    """One line for each module, and the share noticed of those that are not equivalent."""
    print(f"\n{'module':<28}{'mutants':>8}{'noticed':>9}{'by time':>9}{'equivalent':>12}{'survived':>10}")
    counts: dict[str, Counter[str]] = {}
    for each in verdicts:
        counts.setdefault(each.mutant.module, Counter())[each.outcome] += 1
        counts.setdefault("~all", Counter())[each.outcome] += 1
    for module, count in sorted(counts.items()):
        noticed = count["noticed"] + count["time"]
        print(
            f"{module.lstrip('~'):<28}{count.total():>8}{noticed:>9}{count['time']:>9}"
            f"{count['equivalent']:>12}{count['survived']:>10}"
        )
    total = counts["~all"]
    noticed = total["noticed"] + total["time"]
    return noticed / max(1, noticed + total["survived"])


def settings_of(arguments: list[str]) -> dict[str, str]:
    """What the command line says, such as `seed=3`."""
    settings = {"seed": "0", "mutants": "70", "modules": "", "processes": "2"}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in settings:
            known = ", ".join(f"{key}=" for key in settings)
            fail(f"{argument!r} is none of {known}.")
        settings[name] = value
    return settings


def main() -> int:
    """Draws, tests, and prints; 1 when too many survive."""
    settings = settings_of(sys.argv[1:])
    seed = int(settings["seed"])
    asked = [name for name in settings["modules"].split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        # All is read from the copy: the project may change while this goes on.
        runner = Runner(Path(folder), int(settings["processes"]))
        modules = torch_free_modules(runner.first, asked)
        offered = [mutant for module in modules for mutant in mutants_of(runner.first, module)]
        size = min(int(settings["mutants"]), len(offered))
        if not size:
            fail(f"modules={settings['modules']}: no such room or module, such as data or run/lock.")
        sample = random.Random(seed).sample(offered, size)
        print(f"{size} of {len(offered)} mutants of {len(modules)} modules, seed {seed}", flush=True)
        equivalents = listed_equivalents()
        to_test = [mutant for mutant in sample if mutant.key not in equivalents]
        verdicts = [Verdict(mutant, "equivalent") for mutant in sample if mutant.key in equivalents]
        runner.first_run(sorted({mutant.module.partition("/")[0] for mutant in to_test}))
        for verdict in runner.side_by_side(runner.verdict, to_test):
            verdicts.append(verdict)
            if verdict.outcome != "noticed":
                show(verdict, f"{len(verdicts)}/{size}")
    share = print_table(verdicts)
    lines_offered = {mutant.key_of_line for mutant in offered}
    for key in sorted(equivalents):
        if key[0] in modules and key[:3] not in lines_offered:
            print(f"listed as equivalent, but not in the code any more: {key}")
    print(f"noticed={share:.1%} least={LEAST_NOTICED:.0%} seed={seed} mutants={size}")
    return int(share < LEAST_NOTICED)


if __name__ == "__main__":
    sys.exit(main())
