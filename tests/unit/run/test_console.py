"""What is printed: nothing that happens to an output ends a run, and nothing of a text commands a terminal."""

import ast
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.preflight.findings import Finding, Level, table
from rlhf.rewardbench import table_v1, table_v2
from rlhf.run.console import Console

ROOT = Path(__file__).resolve().parents[3]
# A run's console, the output of a library, and a file that is opened after it.
RUN = """
import os, subprocess, sys
from pathlib import Path
from rlhf.command.line import guarded
from rlhf.run.console import Console
from rlhf.run.output import show
def main():
    folder = Path(sys.argv[1])
    console = Console(folder)
    with open(folder / "artifact", "w", encoding="utf-8") as artifact:
        for number in range(100):
            console.say(f"  ✓ stage {number} 你好")
            print("a library's own ✓", flush=True)
            print("and its warning ✓", file=sys.stderr)
        os.system("echo of a child")
        artifact.write("whole ✓")
    show("done ✓", error=True)
guarded(main)
"""


def run(folder, **how):
    """Run it with some outputs and environment; a kind of failure would be another exit code, or half a file."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT)) | how.pop("environment", {})
    script = folder / "run.py"
    script.write_text(RUN, encoding="utf-8")
    done = subprocess.run([sys.executable, script, folder], env=environment, cwd=ROOT, timeout=60, **how)
    assert done.returncode == 0, done
    assert (folder / "artifact").read_text(encoding="utf-8") == "whole ✓"
    log = (folder / "logs" / "driver.log").read_text(encoding="utf-8")
    assert log.count("✓ stage") == 100
    assert "of a child" not in log
    return done


def closed(*descriptors):
    def close():
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2), (0, 1), (0, 1, 2)])
def test_a_closed_output_is_nobodys_output(tmp_path, descriptors):
    run(tmp_path, preexec_fn=closed(*descriptors))


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_reader_that_leaves_ends_nothing(tmp_path, streams):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = run(tmp_path, **dict.fromkeys(streams, write_end))
    os.close(write_end)
    assert not done.stderr


@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_a_full_disk_behind_the_output_is_said_once(tmp_path, streams):
    with open("/dev/full", "wb") as full:
        done = run(tmp_path, **{"stderr": subprocess.PIPE, **dict.fromkeys(streams, full)})
    if "stderr" not in streams:
        said = done.stderr.decode()
        assert said.count("standard output cannot be written: No space left on device") == 1
        assert said.endswith("done ✓\n")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_without_our_signs_shows_them_escaped(tmp_path, environment):
    done = run(tmp_path, environment=environment, capture_output=True)
    assert rb"\u2713 stage 99 \u4f60\u597d" in done.stdout
    assert rb"done \u2713" in done.stderr


def test_a_terminal_that_is_gone_ends_nothing(tmp_path):
    ours, theirs = pty.openpty()
    os.close(ours)
    run(tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)


def test_an_output_that_does_not_block_loses_nothing(tmp_path):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    command = [sys.executable, "-c", RUN.replace("range(100)", "range(3000)"), tmp_path]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=write_end, stderr=subprocess.DEVNULL
    ) as process:
        os.close(write_end)
        with open(read_end, encoding="utf-8") as reader:
            said = reader.read()
    assert process.returncode == 0
    assert said.count("✓ stage") == 3000


HANG_UP = """
import os, signal, sys, time
from rlhf.command.line import guarded
def main():
    print("running", flush=True)
    os.kill(os.getpid(), signal.SIGHUP)
    print("survived", flush=True)
guarded(main)
"""


@pytest.mark.parametrize(
    ("under_nohup", "code", "said"), [(False, 129, "running\n"), (True, 0, "running\nsurvived\n")]
)
def test_a_hang_up_stops_a_run_unless_it_is_to_be_ignored(under_nohup, code, said):
    handler = signal.SIG_IGN if under_nohup else signal.SIG_DFL
    done = subprocess.run(
        [sys.executable, "-c", HANG_UP],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )
    assert (done.returncode, done.stdout) == (code, said)
    assert ("the same command goes on" in done.stderr) != under_nohup


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "driver.log").symlink_to("/dev/full")
    console = Console(tmp_path)
    console.say("first")
    console.say("second")
    console._log.close()
    assert capsys.readouterr().out == "first\nsecond\n"


HOSTILE = "\x1b]0;y\x07hep\n✓ forged\u202e"


def test_no_name_is_a_command_or_a_line_of_its_own(tmp_path, capsys):
    console = Console(tmp_path)
    console.say(f"  ! {HOSTILE}")
    console.end("score", 1.0, {"rows": 1, "engine": HOSTILE})
    console._log.close()
    said = capsys.readouterr().out
    log = (tmp_path / "logs" / "driver.log").read_text(encoding="utf-8")
    for text in (said, log):
        assert "\x1b" not in text and "\u202e" not in text and "hep" in text
    assert "hep\\n✓ forged" in said.splitlines()[-1]


def test_tables_of_rewardbench_show_a_subset_in_one_line():
    nothing = dict.fromkeys(("Chat", "Chat Hard", "Safety", "Reasoning"))
    overall = {"current": None, "legacy": None}
    subsets = {HOSTILE: {"accuracy": 50.0, "score": 50.0, "rows": 2, "ties": 0}}
    figures = {"current": nothing, "legacy": nothing, "overall": overall, "subsets": subsets}
    for text in (table_v1(figures), table_v2({"overall": None, "subsets": subsets})):
        line = next(line for line in text.split("\n") if "hep" in line)
        assert line.isprintable() and "✓ forged" in line


def test_no_line_of_a_finding_passes_for_another_finding():
    text = table([Finding(Level.error, f"a {HOSTILE}", f"Mend it.{HOSTILE}", "data")])
    marked = [line for line in text.split("\n") if line.startswith(("  ✓", "  ⚠", "  ✗")) or line[:1] != " "]
    assert len(marked) == 2, text  # the subject, and the finding


def test_one_place_prints():
    printing = []
    for path in (ROOT / "rlhf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("print", "traceback.print_exc") or called.endswith(
                ("stdout.write", "stderr.write")
            ):
                printing.append(path.name)
    assert set(printing) == {"output.py"}
