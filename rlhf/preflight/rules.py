"""Stage `call_rule`: what a Python function of the run says of one answer, in a process of its own.

Not a stage of the loop: it leaves no artifact; the metric `findings` is what `rlhf.check` shows.
"""

from __future__ import annotations

import math
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf.config.stage_configs import CallRuleStage
from rlhf.data.records import Message
from rlhf.errors import RlhfError
from rlhf.preflight.findings import Finding, Level, collect, finding
from rlhf.run.job import Job, Outcome, Worker
from rlhf.scoring.judge import RuleJudge

_ANSWER = "It is 4."
TIME_LIMIT_SECONDS = 10.0
"""A rule is asked for every response: one that takes so long for one has a loop without an end, or will never
be done."""


def run(job: Job[CallRuleStage], worker: Worker) -> Outcome:
    """Import the rule, and call it once on a prompt of the run, where one is here."""
    config = job.config
    findings = collect("data", _call(config.key, config.rule, config.messages))
    return Outcome(metrics={"findings": findings})


def _call(key: str, rule: str, messages: list[Message] | None) -> Iterator[Finding]:
    try:
        with _time_limit():
            judge = RuleJudge(rule)
            if messages is None:
                text = "it is imported; not called, for its prompts are not here yet"
                yield finding(True, f"{key}={rule}: {text}")
                return
            (value,) = judge.score([(messages, _ANSWER)]).scores
    except RlhfError:
        # It says of itself what is wrong: no such function, or a value that is no number.
        raise
    # A rule is anybody's code: whatever comes out of it (SystemExit too) would end the run's scoring.
    except BaseException as error:
        yield Finding(Level.error, f"{key}={rule}: {_where(error)}", _way_out(messages))
        return
    asked = messages[-1]["content"][:60]
    text = f"{key}={rule}: gives {value:g} for {_ANSWER!r} to {asked!r}"
    yield finding(math.isfinite(value), text, "Responses with such a value are left out and counted.")


def _where(error: BaseException) -> str:
    """What was raised, and in which line of which file."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename not in (__file__, "<frozen importlib._bootstrap>")]
    if not own:
        return what
    return f"{what} ({own[-1].filename}, line {own[-1].lineno})"


def _way_out(messages: list[Message] | None) -> str:
    if messages is None:
        return "The module cannot be imported: mend it, or install what it needs."
    asked = messages[-1]["content"][:200]
    return (
        f"Every response is scored by it: let it give a number for any text, NaN where it cannot. It was "
        f"called with the messages of a prompt that ends {asked!r} and the response {_ANSWER!r}."
    )


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TimeoutError out of a rule that runs for longer than `TIME_LIMIT_SECONDS`."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still at work after {TIME_LIMIT_SECONDS:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
