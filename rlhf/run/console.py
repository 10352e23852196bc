"""What a person sees while a run goes on: a line per stage that has ended, and how far the run is. On a
terminal that is a view at its bottom, elsewhere a line now and then.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from rlhf.data.records import dropped
from rlhf.errors import Stopped, one_line, printable
from rlhf.run.output import Output, Screen, can_draw, show, size_of_terminal, text_output
from rlhf.run.progress import Progress, State, here, write_progress
from rlhf.run.progress_line import progress_line

EVERY_SECONDS = 30.0
"""Between lines where the output is no terminal."""
_LOOK_SECONDS = 1.0
"""Between two pictures of the view, and between two notes of how far the run is."""

_SHOWN = [
    "rows",
    "train",
    "held_out",
    "responses",
    "truncated",
    "cut_on_the_left",
    "over_context",
    "cut",
    "cut_left",
    "cut_chosen",
    "cut_rejected",
    "equal_after_cut",
    "long_prompts",
    "pairs",
    "steps",
    "conversations",
    "first_loss",
    "last_loss",
    "packs",
    "held_out_accuracy",
    "held_out_loss",
    "disagreement",
    "non_finite",
    "answers",
    "leaning/first",
    "leaning/second",
    "cost",
    "refused_by_template",
    "spelled_special_tokens",
    "engine",
]
"""Counts and metrics worth a place on a stage's line, beside what was dropped."""

Draw = Callable[[Progress, int, int], Sequence[str]]
"""Lines of a view for so many columns and at most so many lines (`rlhf.view.progress_view.drawn_lines`)."""

_watching: Console | None = None


@contextmanager
def phase(text: str) -> Iterator[None]:
    """Tell who watches what goes on meanwhile, where nothing can be counted and it may take long."""
    if _watching is None:
        yield
        return
    with _watching.phase(text):
        yield


@contextmanager
def aside() -> Iterator[None]:
    """Leave the terminal to others meanwhile, such as a library that draws how far it is by itself."""
    if _watching is None:
        yield
        return
    with _watching.aside():
        yield


class Console:
    """Prints to standard output and keeps a copy with times in `logs/driver.log`.

    As a context it tells, every second, how far the run is. A thread does that, for the driver itself may be
    busy for long.

    Args:
        folder: of the run.
        draw: makes the view; None shows lines on a terminal too.
        recorded: whether `logs/progress.json` is kept for those who look from elsewhere.
        is_ours: whether this driver still has the folder; one that took it over keeps its own notes there.
    """

    def __init__(
        self,
        folder: Path,
        draw: Draw | None = None,
        recorded: bool = False,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        # Appended to, for a run may be resumed; open for the run's life, so there is no `with`.
        log = Output(folder / "logs" / "driver.log", "logs/driver.log")
        self._log = text_output(log, "utf-8")
        self._folder = folder
        self._draw = draw if can_draw() else None
        self._recorded = recorded
        self._is_ours = is_ours
        self._run = here([], {}, time.time())
        self._is_planned = False
        self._is_aside = False
        self._said_at = time.monotonic()
        self._screen = Screen()
        # Of the main thread, which says lines, and of the one that draws.
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="console", daemon=True)

    def __enter__(self) -> Self:
        global _watching
        _watching = self
        self._keeper.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        global _watching
        _watching = None
        self._is_over.set()
        self._keeper.join(2 * _LOOK_SECONDS)  # it may hang in a terminal that is stopped by Ctrl-S
        with self._lock:
            self._screen.clear()
            self._draw = None
            self._run.ended = _how_it_ended(error)
            self._write_down()
            self._log.close()

    def plan(self, names: Sequence[str], seconds: Mapping[str, float]) -> None:
        """Show how far a run is from now on.

        Args:
            names: of its stages, in order.
            seconds: of those that are finished, by name.
        """
        with self._lock:
            # What was warned of while the plan was made stays.
            warnings, number = self._run.warnings, self._run.num_warnings
            self._run = here(names, seconds, time.time())
            self._run.warnings, self._run.num_warnings = warnings, number
            self._is_planned = True
            self._write_down()

    def say(self, text: str = "") -> None:
        """Print some lines."""
        with self._lock:
            self._screen.clear()
            show(text)
            self._said_at = time.monotonic()
            now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            for line in printable(text).split("\n"):
                self._log.write(f"{now} {line}\n")
                if line.lstrip().startswith(("! ", "⚠ ")):
                    self._run.warn(line.strip())
            # A driver that is killed leaves the log complete.
            self._log.flush()
            self._redraw()

    def begin(self, name: str) -> None:
        """Say that a stage begins."""
        with self._lock:
            stage = self._run.stage(name)
            stage.state = State.running
            stage.began_at = time.time()
            self._run.phase, self._run.phase_at = "starting", time.time()
            self._said_at = time.monotonic()
            self._write_down()
            self._redraw()

    def end(self, name: str, seconds: float, figures: dict[str, Any]) -> None:
        """Say that a stage has ended well, how long it took and what came out."""
        parts = []
        for key in _SHOWN:
            if figures.get(key) not in (0, None):
                parts.append(_labelled(figures[key], key))
        for reason, count in dropped(figures).items():
            parts.append(_labelled(count, f"{reason} dropped"))
        text = one_line(", ".join(parts))
        self.done(name, seconds)
        self.say(f"  ✓ {name:<32}{seconds:6.1f} s  {text}")
        if figures.get("warning"):
            self.say(f"  ⚠ {figures['warning']}")

    def done(self, name: str, seconds: float) -> None:
        """Take note of a stage that is finished, made here or taken from another run."""
        with self._lock:
            stage = self._run.stage(name)
            stage.state = State.done
            stage.seconds = seconds
            self._run.phase = ""
            self._write_down()

    def figures(self, lines: Sequence[str]) -> None:
        """Keep the last figures in sight."""
        with self._lock:
            self._run.figures = list(lines)

    def progress(self, done: float, total: float, note: str) -> None:
        """Take note of how far the present stage is; with a total of 0 only what goes on."""
        with self._lock:
            stage = self._run.running
            if total == 0:
                self._run.phase, self._run.phase_at = one_line(note), time.time()
            elif stage is not None and stage.count(time.time(), done, total, one_line(note)) and done:
                self._run.phase = ""

    def held(self, counts: Mapping[str, int]) -> None:
        """Take note of what the shard held that has just been made."""
        with self._lock:
            if self._run.running is not None:
                self._run.running.hold(counts.get("responses", 0), counts.get("response_tokens", 0))

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Tell what goes on until the end of the block."""
        before = self._run.phase, self._run.phase_at
        with self._lock:
            self._run.phase, self._run.phase_at = one_line(text), time.time()
        try:
            yield
        finally:
            with self._lock:
                self._run.phase, self._run.phase_at = before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Draw nothing until the end of the block."""
        with self._lock:
            self._screen.clear()
            self._is_aside = True
        try:
            yield
        finally:
            with self._lock:
                self._is_aside = False

    def _keep(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            with self._lock:
                self.tick()

    def tick(self) -> None:
        """Show how far the run is: drawn on a terminal, as a line now and then elsewhere."""
        self._write_down()
        if self._draw is not None and self._is_planned:
            self._redraw()
            return
        is_busy = self._run.running is not None or self._run.phase != ""
        # A file of lines for every report could not be read.
        if is_busy and time.monotonic() - self._said_at >= EVERY_SECONDS:
            self.say(f"  … {progress_line(self._run, time.time())}")

    def _redraw(self) -> None:
        if self._draw is None or self._is_aside or not self._is_planned or self._is_over.is_set():
            return
        columns, lines = size_of_terminal()
        try:
            self._screen.draw(self._draw(self._run, columns, lines))
        except Exception as error:  # whatever it is: a picture is no reason to lose a run
            self._draw = None
            self.say(f"  ! the view cannot be drawn ({one_line(repr(error))}); lines tell how far the run is")

    def _write_down(self) -> None:
        if self._recorded and self._is_planned and self._is_ours():
            self._run.written_at = time.time()
            write_progress(self._folder, self._run)


def _how_it_ended(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    if isinstance(error, Stopped):
        number = error.exit_code - 128
        return f"stopped by {signal.Signals(number).name}" + (" (Ctrl-C)" if number == signal.SIGINT else "")
    first, _, _ = (str(error) or type(error).__name__).partition("\n")
    return f"failed: {one_line(first)}"


def _labelled(value: Any, key: str) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    label = key.replace("_", " ")
    return f"{value} {label}"
