"""Which prompts each iteration trains on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.schema import Config
from rlhf.config.stage_configs import PromptsSettings
from rlhf.data.records import what_became
from rlhf.errors import ConfigError
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

PLACEHOLDER = "{iteration}"


@dataclass(frozen=True)
class PromptSets:
    """Training prompts, one set for all iterations (`sets` has one) or one for each, and the held-out ones."""

    held_out: Artifact
    sets: list[Artifact]
    size: int
    shared: bool

    def of(self, iteration: int) -> tuple[Artifact, list[int]]:
        """The set of an iteration, from 1, and the rows [start, stop) of it; `stop` may lie beyond its end."""
        if self.shared:
            return self.sets[0], [(iteration - 1) * self.size, iteration * self.size]
        return self.sets[iteration - 1], [0, self.size]


def prompt_sets(cfg: Config, run: Run) -> PromptSets:
    """Split and deduplicate the prompts of all iterations; neither part depends on `num_iterations`.

    Raises:
        ConfigError: one set for all iterations has too few prompts.
    """
    shared = PLACEHOLDER not in cfg.prompts.path
    inputs = {"prompts": _file(cfg, run, 1)}
    if cfg.prompts.held_out_path is not None:
        inputs["held_out"] = sources.data_file(run, cfg.prompts.held_out_path, "prompts.held_out_path")
    first = run.stage("prompts", "prompts", PromptsSettings(cfg.prompts.num_held_out), inputs)
    held_out, sets = first.part("held_out.parquet"), [first.part("train.parquet")]
    if shared and first.digest is not None and (problem := too_few(cfg, first.counts["train"], first.counts)):
        raise ConfigError(problem)
    if not shared:
        for t in range(2, cfg.num_iterations + 1):
            seen = {f"seen_{i:03d}": earlier for i, earlier in enumerate(sets, start=1)}
            own = {"prompts": _file(cfg, run, t), "seen_held_out": held_out} | seen
            later = run.stage("prompts", f"iteration_{t:03d}/prompts", PromptsSettings(num_held_out=0), own)
            sets.append(later.part("train.parquet"))
    return PromptSets(held_out, sets, cfg.prompts.num_per_iteration, shared)


def _file(cfg: Config, run: Run, iteration: int) -> Artifact:
    path = cfg.prompts.path.replace(PLACEHOLDER, str(iteration))
    name = "" if path == cfg.prompts.path else f"prompts.path.{iteration}"
    return sources.data_file(run, path, "prompts.path", name)


def too_few(cfg: Config, there: int, counts: dict[str, int]) -> str | None:
    """What to say when one set for all iterations has only so many prompts to train on; None when they are enough."""
    size = cfg.prompts.num_per_iteration
    if cfg.num_iterations * size <= there:
        return None
    lower = {"prompts.num_per_iteration": there // cfg.num_iterations, "num_iterations": there // size}
    ways_out = [f"{key}={value}" for key, value in lower.items() if value > 0]
    ways_out += [
        "more prompts",
        "fewer of them held out",
        "a set for each iteration (prompts.path with {iteration} in it)",
    ]
    return (
        f"num_iterations={cfg.num_iterations} with prompts.num_per_iteration={size} needs {cfg.num_iterations * size} "
        f"training prompts, but {cfg.prompts.path} gives {max(there, 0)} ({what_became(counts)}). Ways out: "
        f"{', '.join(ways_out)}."
    )
