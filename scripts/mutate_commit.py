"""Break the commit protocol in one way after another, and show which test notices.

    python scripts/mutate_commit.py [word …]

Each mutation is a change of the text of a copy of the package, in a temporary folder; the tests that should
notice run against that copy. Words choose the mutations that have one of them in their name. Exit code 1 when
one survives, or when the text to change is not there any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUNDARIES, CORRUPTION = "tests/faults/test_boundaries.py", "tests/faults/test_corruption.py"
CHECKPOINTS, LOCK = "tests/integration/training/test_checkpoints.py", "tests/unit/run/test_lock.py"


@dataclass(frozen=True)
class Mutation:
    """`old` in a file of the package becomes `new`; `tests` are pytest's arguments."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "drop the fsync of a file",
        "data/shards.py",
        "            os.fsync(file.fileno())\n",
        "",
        f"{BOUNDARIES} -k bytes_reach",
    ),
    Mutation(
        "drop the fsync of the folder",
        "data/shards.py",
        "        fsync_dir(path.parent)\n",
        "",
        f"{BOUNDARIES} -k bytes_reach",
    ),
    Mutation(
        "write a shard under its own name",
        "data/shards.py",
        'temporary = path.with_name(f".{path.name}.tmp")',
        "temporary = path",
        f"{BOUNDARIES} -k bytes_reach",
    ),
    Mutation(
        "rename before the manifest",
        "run/commit.py",
        "    write_atomic(partial / MANIFEST, sealed(record))\n",
        "    os.rename(partial, final)\n    write_atomic(final / MANIFEST, sealed(record))\n    return\n",
        "tests/unit/run/test_plan.py -k commit",
    ),
    Mutation(
        "manifest before the files' fsync",
        "run/commit.py",
        "            os.fsync(file.fileno())\n    # Only now",
        "            pass\n    # Only now",
        f"{BOUNDARIES} -k counts_only_after",
    ),
    Mutation(
        "drop the fsync of the run folder after the rename",
        "run/commit.py",
        "    os.rename(partial, final)\n    fsync_dir(final.parent)\n    tidy(final)\n",
        "    os.rename(partial, final)\n    tidy(final)\n",
        f"{BOUNDARIES} -k counts_only_after",
    ),
    Mutation(
        "forget digests and checkpoints before the rename",
        "run/commit.py",
        "    os.rename(partial, final)\n    fsync_dir(final.parent)\n    tidy(final)\n",
        "    tidy(partial)\n    os.rename(partial, final)\n    fsync_dir(final.parent)\n",
        f"{BOUNDARIES} -k leave_no_trace",
    ),
    Mutation(
        "skip the checksum of inputs",
        "run/plan.py",
        "        self.verify(*inputs.values(), *unrecorded.values())\n",
        "",
        f"{CORRUPTION} -k damaged_input",
    ),
    Mutation(
        "skip the checksum of what is taken from another run",
        "run/commit.py",
        '    check_files(source, record["files"], list(record["files"]), partial)\n',
        "",
        f"{CORRUPTION} -k not_taken",
    ),
    Mutation(
        "skip the manifest's seal",
        "data/digest.py",
        'record.pop("seal", None) != digest_of(record)',
        'not record.pop("seal", None)',
        f"{CORRUPTION} -k damaged_input",
    ),
    Mutation(
        "count a damaged shard of unfinished work as done",
        "data/shards.py",
        "return written == digest_file(path).encode()",
        "return True",
        f"{CORRUPTION} -k unfinished_work_is_named",
    ),
    Mutation(
        "ignore the driver's lock",
        "run/lock.py",
        "is_locked = _take_alone(driver_file)",
        "is_locked = True",
        f"{LOCK} -k second_driver",
    ),
    Mutation(
        "ignore the worker's token",
        "run/lock.py",
        "    if not still_ours(folder, token):\n        workers_file",
        "    if False:\n        workers_file",
        f"{LOCK} -k too_late",
    ),
    Mutation(
        "do not wait for an earlier driver's workers",
        "run/lock.py",
        "return _take_alone(workers_file) is not False",
        "return True",
        f"{LOCK} -k waits_for",
    ),
    Mutation(
        "seal a checkpoint before all ranks wrote",
        "training/checkpoints.py",
        "        barrier()\n        checkpoint = self.out",
        "        checkpoint = self.out",
        f"{CHECKPOINTS} -k other_ranks",
    ),
    Mutation(
        "trust checkpoints without a whole seal",
        "training/checkpoints.py",
        "return unsealed((checkpoint / SEAL).read_bytes())",
        "return json.loads((checkpoint / SEAL).read_bytes())",
        f"{CHECKPOINTS} -k does_not_cover",
    ),
    Mutation(
        "skip a checkpoint's checksums",
        "training/checkpoints.py",
        "        if digests == expected:\n",
        "        if True:\n",
        f"{CHECKPOINTS} -k does_not_cover",
    ),
]


def copy_of_the_project(folder: Path) -> None:
    """What the tests need."""
    for name in ("rlhf", "tests", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def caught(mutation: Mutation, folder: Path) -> str:
    """The test that fails; empty when all pass."""
    path = folder / "rlhf" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(
            f"{mutation.what}: its text stands {text.count(mutation.old)} times in {mutation.file}"
        )
    prefix = "import json\n" if "json.loads" in mutation.new else ""
    future = "from __future__ import annotations\n"
    path.write_text(text.replace(mutation.old, mutation.new).replace(future, future + prefix))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *mutation.tests.split(" ", 2),
    ]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    path.write_text(text)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        raise SystemExit(
            f"{mutation.what}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return failed[0].rpartition("::")[2].partition("[")[0] if failed else ""


def main() -> int:
    """Print mutation → test; 1 when one is not caught."""
    survived = 0
    words = sys.argv[1:]
    chosen = [each for each in MUTATIONS if not words or any(word in each.what for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_project(Path(folder))
        for mutation in chosen:
            test = caught(mutation, Path(folder))
            survived += not test
            print(f"{mutation.what:<55}{test or 'SURVIVED'}", flush=True)
    print(f"mutations={len(chosen)} survived={survived}")
    return int(bool(survived))


if __name__ == "__main__":
    sys.exit(main())
