"""Rules that `test_launch` scores with, in worker processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlhf.errors import DataError


def length(messages, response):
    return float(len(response))


def no_number(messages, response):
    return "good"


def process_id(messages, response):
    time.sleep(0.05)
    return float(os.getpid())


def has_torch(messages, response):
    """1 in a process that has imported an engine's libraries, else 0."""
    return float("torch" in sys.modules or "vllm" in sys.modules)


def has_main(messages, response):
    """1 in a process that has imported what the script of its driver imports, or holds its functions."""
    return float("hydra" in sys.modules or hasattr(sys.modules["__main__"], "hydra"))


def broken(messages, response):
    raise ZeroDivisionError("a rule that divides by zero")


def bad_data(messages, response):
    raise DataError("the rule does not like this response")


def killed_once(messages, response):
    """Dies by SIGKILL at the sixth call, the first time."""
    marker = Path(os.environ["RULE_MARKER"])
    calls = int(marker.read_text()) if marker.exists() else 0
    marker.write_text(str(calls + 1))
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(calls)


def stops_once(messages, response):
    """Hangs at its second call, the first time."""
    marker = Path(os.environ["RULE_MARKER"])
    calls = int(marker.read_text()) if marker.exists() else 0
    marker.write_text(str(calls + 1))
    if calls == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return float(calls)


def sleeps(messages, response):
    Path(os.environ["RULE_MARKER"]).write_text(str(os.getpid()))
    time.sleep(60)
    return 0.0


def _remember(pid):
    with open(os.environ["RULE_MARKER"], "a") as file:
        file.write(f"{pid}\n")


def child(messages, response):
    """Leaves a process behind."""
    _remember(subprocess.Popen(["sleep", "300"]).pid)
    return 1.0


def stubborn_child(messages, response):
    """Leaves one behind that is in a session of its own, wants no end, and has a child."""
    script = "trap '' TERM; sleep 300 & echo $!; wait; sleep 300"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    _remember(process.pid)
    _remember(int(process.stdout.readline()))
    return 1.0


def daemon(messages, response):
    """Leaves one behind that has left session and parent."""
    pipe = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(pipe[1], str(os.getpid()).encode())
            os.execvp("sleep", ["sleep", "300"])
        os._exit(0)
    _remember(int(os.read(pipe[0], 20)))
    return 1.0


def daemon_then_killed(messages, response):
    daemon(messages, response)
    os.kill(os.getpid(), signal.SIGKILL)


def daemon_then_raises(messages, response):
    daemon(messages, response)
    raise ValueError("after\n✓ forged\x1b[0m")


def daemon_then_sleeps(messages, response):
    daemon(messages, response)
    _remember(os.getpid())
    time.sleep(60)
    return 0.0


def prints(messages, response):
    """Prints what a log in another encoding cannot hold."""
    print("你好 ✓")
    return float(len(response))


def server_killed_once(messages, response):
    """Kills the process that it was forked from, the first time."""
    marker = Path(os.environ["RULE_MARKER"])
    if not marker.exists():
        marker.write_text(str(os.getppid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return float(len(response))


def leaves_a_child(messages, response):
    """Starts, at its first call, a process that outlives it by as many seconds as RULE_SECONDS says."""
    marker = Path(os.environ["RULE_MARKER"])
    if not marker.exists():
        child = subprocess.Popen(["sleep", os.environ["RULE_SECONDS"]])
        marker.write_text(str(child.pid))
    return 0.0


calls: list[object] = []


async def slow(messages, response):
    """Its length, from somewhere far away."""
    calls.append(response)
    return len(response)


def many(messages, responses: list[str]):
    """Their lengths."""
    calls.append(responses)
    return [len(response) for response in responses]


async def slow_many(messages, responses: list[str]):
    """The same from far away."""
    return many(messages, responses)


def too_few(messages, responses: list[str]):
    """One number, whatever was asked."""
    return [1.0]


def stops_and_says_who(messages, response):
    """Stops its process at the first call of all, which writes down who it is."""
    try:
        with open(os.environ["RULE_MARKER"], "x", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    except FileExistsError:
        return float(len(response))
    os.kill(os.getpid(), signal.SIGSTOP)
    return float(len(response))


def sleeps_once(messages, response):
    """Is asleep for long at the first call of all."""
    try:
        with open(os.environ["RULE_MARKER"], "x", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    except FileExistsError:
        return float(len(response))
    time.sleep(600)
    return float(len(response))


def slow_process_id(messages, response):
    """Takes a second, and says that it began."""
    with open(os.environ["RULE_MARKER"], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(1)
    return float(os.getpid())


def tells_when(messages, response):
    """Says when it was called, by whom and with how long a response; takes a fifth of a second."""
    with open(os.environ["RULE_MARKER"], "a", encoding="utf-8") as file:
        file.write(f"{time.time()} {os.getpid()} {len(response)}\n")
    time.sleep(0.2)
    return float(len(response))


NEXT_ANSWER = []


def next_answer(messages, responses: list[str]):
    """What a test of this process has put into `NEXT_ANSWER`."""
    return NEXT_ANSWER[0]
