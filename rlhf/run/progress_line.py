"""How far a run is, in one line."""

from __future__ import annotations

from rlhf.run.progress import Progress, StageProgress, TimeLeft, left_of_run, left_of_stage
from rlhf.run.stopwatch import duration


def progress_line(progress: Progress, now: float) -> str:
    """What goes on, how far it is and how long it has taken.

    Example:
        "iteration_001/generate  3/8 shards, 34.0 s, 12.1 responses/s, 540 tokens/s, 45.0 s left; all stages:
        ~4.2 min left"
    """
    stage = progress.running
    if stage is None:
        return f"{progress.phase}, {duration(now - progress.phase_at)}"
    parts = [*stage_parts(progress, stage, now)]
    left = left_of_stage(progress, stage, now)
    if left is not None:
        parts.append(left_text(left))
    text = f"{stage.name}  {', '.join(parts)}"
    whole = left_of_run(progress, now)
    if whole is None or len(progress.stages) - progress.num_done < 2:
        return text
    return f"{text}; all stages: {left_text(whole)}"


def stage_parts(progress: Progress, stage: StageProgress, now: float) -> list[str]:
    """What is known of a running stage.

    Example:
        ["3/8 shards", "34.0 s", "12.1 responses/s", "540 tokens/s"]
    """
    parts = []
    if stage.total and stage.last is not None:
        parts.append(f"{stage.last.done:g}/{stage.total:g} {stage.unit}")
    if progress.phase:
        seconds = now - progress.phase_at
        # For how long, where that is not all the time.
        since = f" for {duration(seconds)}" if progress.phase_at > stage.began_at + 1 and seconds > 10 else ""
        parts.append(f"{progress.phase}{since}")
    parts.append(duration(max(0.0, now - stage.began_at)))
    for what in ("responses", "tokens"):
        rate = stage.rate(what)
        if rate is not None:
            parts.append(f"{rate:,.1f} {what}/s" if rate < 100 else f"{rate:,.0f} {what}/s")
    return parts


def left_text(left: TimeLeft) -> str:
    """Some time to come; ~ marks what rests on other stages of its kind.

    Example:
        "~4.2 min left, and 3 stages of which nothing is known yet"
    """
    text = f"{'~' if left.estimated else ''}{duration(left.seconds)} left"
    if left.unknown:
        stages = "1 stage" if left.unknown == 1 else f"{left.unknown} stages"
        text += f", and {stages} of which nothing is known yet"
    return text
