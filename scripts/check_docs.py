"""Hold every command of README and docs, and of the files that docs give to clusters, against the code:
`python scripts/check_docs.py [--run RUN]`.

A command of ours goes through its own module and command line, with the tool itself left out: settings that
do not exist, values that are impossible and experiments that are gone are errors, files need not be there.
What is in `RUN_BY` is also run, with small models, by the test that it names. Commands that only look at a
run are run as they stand with `--run`, on that run folder (a finished quickstart) in the place of RUN and
runs/quickstart. `--list` prints each command with how far it is held.

In a command `…` stands for what a reader puts there: a value, or the rest of the command. Exit code 1: a
command is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # the package need not be installed

from page_commands import PYTHON, Command, commands_of, experiments_of, pages  # noqa: E402

from rlhf.command import line  # noqa: E402
from rlhf.config.limits import check_config  # noqa: E402
from rlhf.config.schema import Config  # noqa: E402
from rlhf.run.stage_table import STAGES  # noqa: E402

RUN_BY = {
    "answer": "tests/unit/test_answer.py",
    "bestofn": "tests/integration/command/test_judging_tools.py",
    "check": "tests/unit/preflight/test_cuda.py",
    "generate": "tests/integration/real/test_real_model.py",
    "iterate": "tests/integration/loop/test_old_run.py",
    "pair": "tests/integration/command/test_wheel.py",
    "plan": "tests/unit/test_plan.py",
    "rewardbench": "tests/integration/command/test_judging_tools.py",
    "score": "tests/integration/scoring/test_judge_folders.py",
    "stage": "tests/integration/loop/test_loop.py",
}
"""Tools by the test that runs each of them on something small."""
LOOKS = ("status", "gc", "report", "compare", "whatif", "chat")
"""Tools that need nothing but a run's folder: `--run` runs their commands as they stand."""
_RUNS = ("RUN", "runs/quickstart", "runs/mine")
_SBATCH_SCRIPT = "scripts/slurm.sh"
_FOREIGN_SCRIPTS = ("gen_judgment.py", "gen_api_answer.py", "show_result.py", "utils/add_markdown_info.py")
"""Of the benchmarks that docs/evaluation.md tells people to clone."""
_FOREIGN_MODULES = ("pip", "pytest")
_PLACEHOLDERS = ("…", "key=value", "experiment=…")
_LEFT_OUT = '"LEFT_OUT"'


@dataclass(frozen=True)
class Verdict:
    """How a command is held: `held` in a word or two, `why` it is no more than that; `wrong` is empty if all
    is well.
    """

    command: Command
    held: str
    why: str = ""
    wrong: str = ""


class Checker:
    """Holds the commands of pages against the code, in a folder where nothing lies.

    Args:
        folder: an empty one; experiments that pages have people write are put there.
        run: a finished quickstart that commands are run on; None runs none.
    """

    def __init__(self, folder: Path, run: Path | None = None) -> None:
        self._folder = folder
        self._run = run
        self._make = (ROOT / "Makefile").read_text(encoding="utf-8")
        (folder / "experiment").mkdir(exist_ok=True)

    def check(self, page: Path) -> list[Verdict]:
        """A verdict on each command of a page, in order."""
        for name, text in experiments_of(page).items():
            (self._folder / "experiment" / f"{name}.yaml").write_text(text, encoding="utf-8")
        return [self._verdict(command) for command in commands_of(page)]

    def _verdict(self, command: Command) -> Verdict:
        first, second, *rest = command.words
        if first == "make":
            return self._of_make(command)
        if first == "sbatch":
            return self._of_sbatch(command)
        if first not in PYTHON:
            return Verdict(command, "not ours")
        if second == "-m":
            return self._of_module(command, rest[0] if rest else "", rest[1:])
        return _of_script(command, second, rest)

    def _of_make(self, command: Command) -> Verdict:
        wrong = []
        for word in command.words[1:]:
            name, is_set, _ = word.partition("=")
            if is_set and not re.search(rf"^{re.escape(name)} \?=", self._make, re.MULTILINE):
                wrong.append(f"the Makefile reads no {name}")
            if not is_set and not re.search(rf"^{re.escape(name)}:", self._make, re.MULTILINE):
                wrong.append(f"the Makefile has no target {name}")
        return Verdict(command, "target there", "takes minutes to hours, or downloads", "; ".join(wrong))

    def _of_sbatch(self, command: Command) -> Verdict:
        if _SBATCH_SCRIPT not in command.words:
            return Verdict(command, "", "", f"it submits no {_SBATCH_SCRIPT}")
        given = command.words[command.words.index(_SBATCH_SCRIPT) + 1 :]
        # As the script itself types it.
        words = [*_plain_words(given), "compute=ray", "compute.num_nodes=2"]
        wrong = self._in_folder(lambda: composed(ROOT / "rlhf" / "iterate.py", words, self._folder))
        why = "its script is run by tests/integration/scripts/test_slurm.py"
        return Verdict(command, "composed", why, wrong)

    def _of_module(self, command: Command, module: str, words: Sequence[str]) -> Verdict:
        package, _, tool = module.partition(".")
        if package != "rlhf":
            there = module in _FOREIGN_MODULES or _is_there(module)
            return Verdict(command, "module there", "", "" if there else f"there is no module {module}")
        if not re.fullmatch(r"\w+", tool):
            return Verdict(command, "not ours")  # such as rlhf.<name>
        file = ROOT / "rlhf" / f"{tool}.py"
        if not file.is_file():
            return Verdict(command, "", "", f"there is no tool {module}")
        wanted = _plain_words(words)
        if not command.is_whole and not wanted:
            return Verdict(command, "named")
        wrong = self._in_folder(lambda: composed(file, wanted, self._folder))
        if wrong:
            return Verdict(command, "composed", "", wrong)
        if tool in LOOKS:
            return self._run_here(command, module, wanted)
        if tool in RUN_BY:
            why = "the command itself wants models or files of the reader's, or hours"
            return Verdict(command, f"composed; {tool} is run by {RUN_BY[tool]}", why)
        return Verdict(command, "composed", "no test runs it")

    def _run_here(self, command: Command, module: str, words: list[str]) -> Verdict:
        if self._run is None:
            return Verdict(command, "composed", "run with --run RUN")
        given = [_on_run(word, self._run) for word in words]
        done = subprocess.run(
            [sys.executable, "-m", module, *given],
            cwd=self._folder,
            env=_environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        wrong = "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-500:]}"
        return Verdict(command, "run", "", wrong)

    def _in_folder(self, compose: Callable[[], str]) -> str:
        # Where a page says runs/mine, no run of that name may have a say.
        with contextlib.chdir(self._folder):
            return compose()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def _on_run(word: str, run: Path) -> str:
    """A word of a command with a real run in the place of the page's."""
    key, equals, value = word.partition("=")
    if not equals:
        return str(run) if word.startswith("runs/") else word
    if value in _RUNS:
        return f"{key}={run}"
    if key == "runs":
        return f"runs=[{run},{run}]" if "," in value else f"runs={run}"
    return word


def _plain_words(words: Sequence[str]) -> list[str]:
    """The words of a command without what a reader puts in the place of `…`, and without brackets around what
    may be left out; nor what only a shell knows (`${gone:+take_over=$gone}`).
    """
    plain = []
    for word in words:
        if word.startswith("["):
            word = word.strip("[]")
        if word in _PLACEHOLDERS or word.startswith("$"):
            continue
        key, equals, value = word.partition("=")
        plain.append(f"{key}={_LEFT_OUT}" if equals and value == "…" else word)
    return plain


def composed(file: Path, words: Sequence[str], folder: Path) -> str:
    """What is wrong with a command of a tool, by its own command line; empty if nothing is.

    Args:
        file: the tool's module.
        words: of the command, behind the tool's name.
        folder: with experiments of its own.
    """
    if file.stem == "stage":
        return _of_stage(words, folder)
    flags = [f"--config-dir={folder}"]
    said = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    arguments = mock.patch.object(sys, "argv", [str(file), *flags, *words])
    # The tool's own module up to its last line, where its command line begins.
    tool = mock.patch.object(line, "main", _main_without_tool)
    try:
        with arguments, tool, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as leaving:
        if leaving.code in (0, None):
            return ""
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return said.getvalue().strip() or "it said nothing, and left with an error"


_main = line.main


def _main_without_tool(
    command: Callable[[Any], None], config_name: str = "iterate", schema: type[Any] = Config
) -> NoReturn:
    """As the command line's `main`, but nothing is done with the config once it is checked."""

    def look(config: Any) -> None:
        if isinstance(config, Config):
            check_config(config)

    _main(look, config_name, schema)


def _of_stage(words: Sequence[str], folder: Path) -> str:
    """As `composed`, of `rlhf.stage`, which has a command line of its own and goes by a run's settings."""
    names = [word for word in words if "=" not in word]
    for name in names:
        if name not in STAGES:
            return f"there is no stage {name}"
    own = ("run_dir=", "iteration=", "artifact=")
    settings = [word for word in words if "=" in word and not word.startswith(own)]
    return composed(ROOT / "rlhf" / "iterate.py", settings, folder)


def _of_script(command: Command, script: str, words: Sequence[str]) -> Verdict:
    if script in _FOREIGN_SCRIPTS:
        return Verdict(command, "not ours")
    file = ROOT / script
    if not file.is_file():
        return Verdict(command, "", "", f"there is no {script}")
    source = file.read_text(encoding="utf-8")
    wrong = []
    for word in words:
        key = word.partition("=")[0].lstrip("-")
        is_named = word.startswith("--") or "=" in word
        if is_named and not re.search(rf"\b{re.escape(key)}\b", source):
            wrong.append(f"{script} reads no {key}")
    return Verdict(command, "options there", "takes minutes to hours, or downloads", "; ".join(wrong))


def _is_there(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def checked(folder: Path, run: Path | None = None) -> list[Verdict]:
    """Verdicts on all commands of all pages."""
    checker = Checker(folder, run)
    verdicts = []
    for page in pages():
        verdicts += checker.check(page)
    return verdicts


def main() -> None:
    """Check, print what is wrong and how many are held in which way."""
    parser = argparse.ArgumentParser(description="hold the commands of README and docs against the code")
    parser.add_argument("--run", type=Path, help="a finished quickstart, on which commands that look are run")
    parser.add_argument("--list", action="store_true", help="print every command")
    arguments = parser.parse_args()
    run = arguments.run.resolve() if arguments.run else None
    with tempfile.TemporaryDirectory() as folder:
        verdicts = checked(Path(folder), run)
    for verdict in verdicts:
        text = shlex.join(verdict.command.words)
        if verdict.wrong:
            print(f"{verdict.command.place}: {text}\n    {verdict.wrong}")
        elif arguments.list:
            why = f" ({verdict.why})" if verdict.why else ""
            print(f"{verdict.command.place}: {text}\n    {verdict.held}{why}")
    for held, count in Counter(verdict.held for verdict in verdicts if not verdict.wrong).most_common():
        print(f"{count:4} {held}")
    num_wrong = sum(bool(verdict.wrong) for verdict in verdicts)
    print(f"{num_wrong:4} wrong")
    sys.exit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
