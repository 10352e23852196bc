"""What the file system is asked for, seen from inside: every boundary can be written down, or be the last
one.

`install` wraps the calls in this process. A folder with a `sitecustomize.py` on PYTHONPATH (`on_path`) does
it in every Python process of a command, with no hook in the package.
"""

from __future__ import annotations

import builtins
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.processes import descendants, is_engine

Event = Callable[[str, str], None]
"""Told what is about to happen or has just happened (`before fsync`, `half a write` …), and to which path."""


class _Torn:
    """A file whose writes have a middle."""

    def __init__(self, file: Any, event: Event) -> None:
        self._file, self._event = file, event

    def write(self, data: Any) -> Any:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._event("half a write", str(self._file.name))
        self._file.write(data[half:])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


def install(root: Path, event: Event) -> None:
    """Wrap fsync, replace, rename, link, unlink and opening to write, for paths below `root`."""
    prefix = str(root)

    def wrap(name: str, path_of: Callable[..., str]) -> None:
        call = getattr(os, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            path = path_of(*arguments)
            if not path.startswith(prefix):
                return call(*arguments, **keywords)
            event(f"before {name}", path)
            result = call(*arguments, **keywords)
            event(f"after {name}", path)
            return result

        setattr(os, name, wrapped)

    def of_descriptor(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def first(path: Any, *rest: Any) -> str:
        return str(path)

    def second(source: Any, target: Any, *rest: Any) -> str:
        return str(target)

    for name, path_of in (("replace", second), ("rename", second), ("link", second), ("unlink", first)):
        wrap(name, path_of)
    wrap("fsync", of_descriptor)
    plain_open = builtins.open

    def open_torn(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        opened = plain_open(file, mode, *arguments, **keywords)
        ours = "w" in mode and not isinstance(file, int) and os.fspath(file).startswith(prefix)
        return _Torn(opened, event) if ours and "/logs/" not in str(file) else opened

    builtins.open = open_torn  # type: ignore[assignment]


def count_and_kill(counter: Path, at: str, action: str = "self") -> Event:
    """Number the boundaries of all processes together; at number `at` (from 1; "0": never) comes SIGKILL.

    `at` may also name a boundary: what happens, a colon, how the path ends. `action`: whom it strikes:
    `self`, the `driver` (the process in RLHF_FAULT_DRIVER), `engine` (vLLM's, where this worker has it in a
    process of its own), or `everything` in its session. Which files got their name is written down in
    `counter` with the suffix `.made`.
    """
    wanted, _, ending = at.partition(":")

    def event(what: str, path: str) -> None:
        descriptor = os.open(counter, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        number = os.fstat(descriptor).st_size + 1
        os.write(descriptor, b".")
        os.close(descriptor)
        if what == "after replace":
            with open(counter.with_suffix(".made"), "a") as made:
                made.write(f"{path}\n")
        if wanted == str(number) or (wanted == what and path.endswith(ending)):
            _strike(action)

    return event


def _strike(action: str) -> None:
    driver = int(os.environ.get("RLHF_FAULT_DRIVER", "0")) or os.getpid()
    if action == "self":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "engine":
        engines = [pid for pid in descendants(os.getpid()) if is_engine(pid)]
        assert engines, "no engine to kill"
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
        return
    if action == "everything":
        for entry in Path("/proc").iterdir():
            if (
                entry.name.isdigit()
                and int(entry.name) not in (os.getpid(), driver)
                and _session(int(entry.name))
            ):
                os.kill(int(entry.name), signal.SIGKILL)
        os.kill(driver, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(driver, signal.SIGKILL)


def _session(pid: int) -> bool:
    """Whether a process carries this command's mark in its environment."""
    mark = f"RLHF_FAULT_COUNTER={os.environ['RLHF_FAULT_COUNTER']}".encode()
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def from_environment() -> None:
    """What `sitecustomize.py` calls, in every process of a command."""
    os.environ.setdefault("RLHF_FAULT_DRIVER", str(os.getpid()))
    counter, at, action = (os.environ[f"RLHF_FAULT_{name}"] for name in ("COUNTER", "AT", "ACTION"))
    install(Path(os.environ["RLHF_FAULT_ROOT"]), count_and_kill(Path(counter), at, action))


def on_path(folder: Path, root: Path, counter: Path, at: str, action: str = "self") -> dict[str, str]:
    """The environment in which a command dies at boundary `at` of its work below `root`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "from tests.faults.hooks import from_environment\nfrom_environment()\n"
    )
    here = str(Path(__file__).resolve().parents[2])
    settings = {"ROOT": root, "COUNTER": counter, "AT": at, "ACTION": action}
    marks = {f"RLHF_FAULT_{name}": str(value) for name, value in settings.items()}
    return os.environ | {"PYTHONPATH": f"{folder}:{here}"} | marks
