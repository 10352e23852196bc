"""Rules that `test_launch` scores with, in worker processes."""

import os
import signal
import subprocess
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


def leaves_a_child(messages, response):
    """Starts, at its first call, a process that outlives it by as many seconds as RULE_SECONDS says."""
    marker = Path(os.environ["RULE_MARKER"])
    if not marker.exists():
        child = subprocess.Popen(["sleep", os.environ["RULE_SECONDS"]])
        marker.write_text(str(child.pid))
    return 0.0
