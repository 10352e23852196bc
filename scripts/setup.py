"""Builds .venv from the pinned lists in requirements/, or finds it already built.

Run through `make setup`. Only the standard library is used. A finished set-up leaves `.venv/setup.json` with
a key made of everything it was built from; without that file, or with another key in it, .venv is built anew,
so a set-up killed half way is repaired by the next one.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # isolated from it until now

from rlhf.launch.nvidia import driver_cuda, is_too_old, listed_gpus, oldest_driver  # noqa: E402  no package needed

VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
DISCARDED = ROOT / ".venv.discarded"
STATE = VENV / "setup.json"
LOG = VENV / "setup.log"
REQUIREMENTS = ROOT / "requirements"

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where the CPU build of torch is looked for when the places pip is configured with do not have it."""

RECIPE = 1
"""To be raised when this script changes so that an environment it built before must be built anew."""


def fail(message: str) -> NoReturn:
    """Ends the set-up with a message for the person."""
    print(f"set-up: {message}", file=sys.stderr)
    sys.exit(2)


def nvidia_gpus() -> list[str]:
    """Names of the GPUs that a CUDA program started here would see; empty without any."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    return listed_gpus()


def check_driver(asked: str) -> None:
    """Ends the set-up where the driver is too old for the CUDA packages.

    Where a person asks for them it only says so: what is built here may run elsewhere.
    """
    pinned = re.search(
        r"^nvidia-cuda-runtime==(\d+\.\d+)", (REQUIREMENTS / "cuda.txt").read_text(), re.MULTILINE
    )
    assert pinned, "requirements/cuda.txt names the CUDA version that its packages are made for"
    found = driver_cuda()
    if found is None or not is_too_old(found, pinned[1]):
        return
    problem = (
        f"the driver of this machine runs CUDA {found} (nvidia-smi shows it), and the CUDA packages need "
        f"{oldest_driver(pinned[1])} or later"
    )
    if asked == "cuda":
        print(f"set-up: {problem}: they will not see its GPUs", flush=True)
        return
    fail(
        f"{problem}.\n"
        "  Ways out:\n"
        "  - install a newer driver, then run the same command again\n"
        "  - do without the GPUs: make setup VARIANT=cpu\n"
        "  - install them all the same, for another machine or a later driver: make setup VARIANT=cuda"
    )


def read_state() -> dict[str, str]:
    """What the last set-up wrote down; empty when it is missing or torn."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(**state: str) -> None:
    """Replaces the state file whole, so that a kill leaves the old one or the new one."""
    partial = STATE.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")
    partial.replace(STATE)


def choose_variant(asked: str, state: dict[str, str]) -> tuple[str, str]:
    """CPU or CUDA packages, and the reason in words."""
    if asked != "auto":
        return asked, "asked for"
    if state.get("variant") in ("cpu", "cuda"):
        return state["variant"], "as in the last set-up here"
    gpus = nvidia_gpus()
    if gpus:
        return "cuda", f"{len(gpus)} NVIDIA GPU{'s' if len(gpus) > 1 else ''} found: {gpus[0]}"
    return "cpu", "no NVIDIA GPU found"


def setup_key(variant: str) -> str:
    """Hash of everything .venv is built from. The folder counts: a moved virtual environment is broken."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [
        RECIPE,
        variant,
        str(ROOT),
        project["build-system"],
        project["project"],
        project["tool"]["setuptools"],
    ]
    lists = {path.name: path.read_text() for path in REQUIREMENTS.glob("*.txt")}
    return hashlib.sha256(json.dumps([*parts, lists], sort_keys=True, allow_nan=False).encode()).hexdigest()


def venv_version() -> str:
    """`3.11` and the like of the interpreter in .venv; empty when it does not run."""
    command = [str(VENV_PYTHON), "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_finished(state: dict[str, str], key: str) -> bool:
    """Whether .venv was built from exactly this, and with the Python that PYTHON names if it names one."""
    if state.get("key") != key or state.get("python") != venv_version():
        return False
    return not os.environ.get("PYTHON") or state["python"] == running_version()


def running_version() -> str:
    """`3.11` and the like of this interpreter."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def lock_out_others() -> IO[str]:
    """Waits until no other set-up works here.

    pip inherits the lock: if only the set-up is killed, the next one waits for the pip it left behind.
    """
    lock = open(ROOT / ".venv.lock", "w")  # noqa: SIM115  held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("set-up: another set-up works in this folder; waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def start_afresh(variant: str, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Puts an empty .venv in the place of what an earlier set-up left; refuses one that is not ours.

    The state without a key marks the folder as ours and keeps the choice of packages, should we be
    interrupted. Returns the process that deletes the old files, which can take a minute on a busy disk.
    """
    if VENV.is_symlink() or (any(VENV.glob("bin*")) and not STATE.exists()):
        fail(
            f"{VENV} was not made by this set-up, so it is left alone.\n"
            "  Ways out: move it elsewhere or delete it, then run the same command again."
        )
    if VENV.exists():
        shutil.rmtree(DISCARDED, ignore_errors=True)
        VENV.rename(DISCARDED)  # in one step: no kill leaves half an environment in its place
    VENV.mkdir()
    write_state(variant=variant)
    return subprocess.Popen(["rm", "-rf", str(DISCARDED)], pass_fds=[lock.fileno()])


class Installer:
    """Runs pip in .venv, its output in .venv/setup.log, and explains failures."""

    def __init__(self, lock: IO[str]) -> None:
        self.lock = lock
        self.started = time.monotonic()
        # settings that would send the packages elsewhere, or make the interpreter look elsewhere
        dropped = {
            "PIP_USER",
            "PIP_TARGET",
            "PIP_PREFIX",
            "PIP_NO_BINARY",
            "PYTHONPATH",
            "PYTHONHOME",
            "VIRTUAL_ENV",
        }
        dropped |= {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
        self.environment = {name: value for name, value in os.environ.items() if name not in dropped}
        # DeepSpeed compiles nothing at set-up; what it needs later, it builds where there is a compiler
        self.environment.update(DS_BUILD_OPS="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")

    def say(self, text: str) -> None:
        print(f"set-up: {time.monotonic() - self.started:4.0f} s  {text}", flush=True)

    def run(self, command: list[str]) -> bool:
        with LOG.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock.fileno()],
            )
        return done.returncode == 0

    def pip(self, *arguments: str) -> bool:
        # --no-deps: the lists are complete. No build isolation: the only build tool used is the pinned
        # setuptools.
        options = ["--no-deps", "--no-build-isolation", "--no-compile", "--progress-bar=off"]
        return self.run([str(VENV_PYTHON), "-m", "pip", "install", *options, *arguments])

    def need(self, succeeded: bool, what: str, ways_out: str) -> None:
        if succeeded:
            return
        tail = "\n".join(f"  | {line}" for line in LOG.read_text(errors="replace").splitlines()[-15:])
        fail(f"{what} failed. The end of {LOG}:\n{tail}\n  Ways out: {ways_out}")


PIP_WAYS_OUT = (
    "check the network and the free space on this disk (df -h .), then run the same command again: "
    "pip keeps what it\n"
    "  has downloaded. Behind a mirror, set PIP_INDEX_URL."
)


def make_venv(installer: Installer) -> None:
    """An empty virtual environment with pip."""
    # the base interpreter, so that .venv does not hang on another virtual environment
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    made = installer.run([interpreter, "-I", "-m", "venv", str(VENV)])
    package = f"python{running_version()}-venv"
    ways_out = (
        f"on Debian and Ubuntu the package {package} may be missing: sudo apt install {package}.\n"
        "  Or name another Python: make setup PYTHON=/path/to/python3"
    )
    installer.need(made, f"{interpreter} -m venv", ways_out)


def install_torch(installer: Installer, variant: str) -> None:
    """torch from its own list; the CPU variant never takes the CUDA build, which is gigabytes larger."""
    requirement = str(REQUIREMENTS / f"torch-{variant}.txt")
    ways_out = PIP_WAYS_OUT
    installed = installer.pip("-r", requirement)
    if not installed and variant == "cpu":
        installer.say(f"pip's configured places have no CPU build of torch; trying {TORCH_CPU_INDEX}")
        installed = installer.pip("--index-url", TORCH_CPU_INDEX, "-r", requirement)
        ways_out += (
            f"\n  Without access to {TORCH_CPU_INDEX}, put the wheel named in requirements/torch-cpu.txt"
            "\n  in a folder and set PIP_FIND_LINKS to that folder."
            f"\n  Without torch the unit tests run all the same: {VENV_PYTHON} -m pytest tests/unit"
        )
    installer.need(installed, "installing torch", ways_out)
    check = (
        "import sys, torch; print(torch.__version__, torch.version.cuda); "
        f"sys.exit((torch.version.cuda is not None) != {variant == 'cuda'})"
    )
    installer.need(
        installer.run([str(VENV_PYTHON), "-I", "-c", check]),
        f"importing the {variant} build of torch",
        "if the lines above name another build, look where pip takes torch from (pip config list);\n"
        "  if they name a missing library, this system may be too old for it (see ldd --version).",
    )


def build(variant: str, key: str, lock: IO[str]) -> None:
    """Makes .venv from nothing and seals it with its key."""
    installer = Installer(lock)
    if read_state():
        installer.say(
            "the .venv found here is unfinished, or the lists or the Python changed: building it anew"
        )
    cleaner = start_afresh(variant, lock)
    minutes = "2 to 4 minutes" if variant == "cpu" else "10 minutes or more, about 12 GB"
    installer.say(
        f"making .venv with Python {platform.python_version()} ({minutes}; pip writes to .venv/setup.log)"
    )
    make_venv(installer)
    installer.need(
        installer.pip("-r", str(REQUIREMENTS / "build.txt")), "installing pip and setuptools", PIP_WAYS_OUT
    )
    installer.say(f"installing the packages of requirements/{variant}.txt and dev.txt")
    # before torch: DeepSpeed's build then neither imports torch nor looks for CUDA
    lists = ["-r", str(REQUIREMENTS / f"{variant}.txt"), "-r", str(REQUIREMENTS / "dev.txt")]
    installer.need(installer.pip(*lists), "installing the packages", PIP_WAYS_OUT)
    installer.say("installing torch")
    install_torch(installer, variant)
    installer.need(installer.pip("-e", str(ROOT)), "installing this project", PIP_WAYS_OUT)
    installer.say("importing everything once: the first run then finds it compiled")
    installer.run(
        [str(VENV_PYTHON), "-m", "rlhf.launch.preload"]
    )  # what cannot be imported, a run will say better
    cleaner.wait()
    write_state(variant=variant, python=running_version(), key=key)
    installer.say("done")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("variant", nargs="?", default="auto", choices=["auto", "cpu", "cuda"])
    asked = parser.parse_args().variant
    if platform.system() != "Linux":
        fail(
            f"{platform.system()} is not supported: vLLM and DeepSpeed are installed from their "
            "Linux packages.\n"
            "  Ways out: a Linux machine, a Linux container, or WSL 2 on Windows."
        )
    lock = lock_out_others()
    state = read_state()
    variant, reason = choose_variant(asked, state)
    other = "cuda" if variant == "cpu" else "cpu"
    print(
        f"set-up: {variant.upper()} packages ({reason}; the other choice: make setup VARIANT={other})",
        flush=True,
    )
    key = setup_key(variant)
    if is_finished(state, key):
        return
    if variant == "cuda":
        check_driver(asked)
    build(variant, key, lock)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the same command starts it again", file=sys.stderr)
        sys.exit(130)
