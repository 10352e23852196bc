"""Which prompts each iteration trains on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.schema import Config, PromptsConfig
from rlhf.data.records import what_became
from rlhf.errors import ConfigError
from rlhf.loop.step import stage_config
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run

PLACEHOLDER = "{iteration}"


@dataclass(frozen=True)
class PromptSets:
    """Training prompts, one set for all iterations (`sets` has one) or one for each, and the held-out
    ones.
    """

    held_out: Artifact
    sets: list[Artifact]
    size: int
    shared: bool

    def of(self, iteration: int) -> tuple[Artifact, list[int]]:
        """The set of an iteration, from 1, and the rows [start, stop) of it; `stop` may lie beyond its
        end.
        """
        if self.shared:
            start = (iteration - 1) * self.size
            return self.sets[0], [start, start + self.size]
        return self.sets[iteration - 1], [0, self.size]


def prompt_sets(cfg: Config, run: Run) -> PromptSets:
    """Split and deduplicate the prompts of all iterations; neither part depends on `num_iterations`.

    Raises:
        ConfigError: one set for all iterations has too few prompts.
    """
    shared = not has_set_per_iteration(cfg)
    inputs = _files(cfg, run, 1)
    if cfg.prompts.held_out_path is not None:
        inputs["held_out"] = sources.data_file(run, cfg.prompts.held_out_path, "prompts.held_out_path")
    needs_training = samples_to_train(cfg)
    config = stage_config(cfg, "prompts", needs_training=needs_training)
    first = run.stage("prompts", "prompts", config, inputs)
    held_out = first.part("held_out.parquet")
    sets = [first.part("train.parquet")]
    if needs_training and shared and first.digest is not None:
        problem = too_few(cfg, first.counts["train"], first.counts)
        if problem:
            raise ConfigError(problem)
    if not shared:
        for t in range(2, cfg.num_iterations + 1):
            sets.append(_later_set(cfg, run, t, held_out, sets))
    return PromptSets(held_out, sets, cfg.prompts.num_per_iteration, shared)


def _later_set(
    cfg: Config, run: Run, iteration: int, held_out: Artifact, earlier: list[Artifact]
) -> Artifact:
    """Training prompts of an iteration with a set of its own, without any prompt that was seen or is held
    out.
    """
    inputs = _files(cfg, run, iteration) | {"seen_held_out": held_out}
    for number, prompts in enumerate(earlier, start=1):
        inputs[f"seen_{number:03d}"] = prompts
    config = stage_config(cfg, "prompts", num_held_out=0)  # they were cut off iteration 1's
    split = run.stage("prompts", f"iteration_{iteration:03d}/prompts", config, inputs)
    return split.part("train.parquet")


def samples_to_train(cfg: Config) -> bool:
    """Whether training prompts are needed: given pairs (`pair.data`) are trained on as they are."""
    return cfg.pair.data is None


def prompt_paths(cfg: Config, iteration: int) -> list[str]:
    """What `prompts.path` names for an iteration: one path, or each of a list; nothing where it is not read.

    With given pairs and a file of held-out prompts no other prompts are needed. Then the default, which is
    a large data set that nobody has asked for, is not read; a path that somebody set still is, as ever.

    Example:
        `prompts.path=[mine.jsonl, "owner/name-iter{iteration}"]` in iteration 2 is ["mine.jsonl",
        "owner/name-iter2"]
    """
    path = cfg.prompts.path
    has_all_it_needs = not samples_to_train(cfg) and cfg.prompts.held_out_path is not None
    if path is None or (has_all_it_needs and path == PromptsConfig().path):
        return []
    paths = [path] if isinstance(path, str) else list(path)
    return [path.replace(PLACEHOLDER, str(iteration)) for path in paths]


def has_set_per_iteration(cfg: Config) -> bool:
    """Whether each iteration has prompts of its own; then all iterations' sets are disjoint by dropping
    duplicates.
    """
    return prompt_paths(cfg, 1) != prompt_paths(cfg, 2)


def _files(cfg: Config, run: Run, iteration: int) -> dict[str, Artifact]:
    """The files that an iteration's prompts come from, as inputs of the stage that splits them."""
    files: dict[str, Artifact] = {}
    for number, path in enumerate(prompt_paths(cfg, iteration), start=1):
        # The first is called as when there was only one: runs made then go on.
        key = "prompts" if number == 1 else f"prompts_{number:03d}"
        # A data set of the Hub becomes an artifact, and each needs a name of its own.
        name = "prompts.path" if number == 1 else f"prompts.path.file{number}"
        if has_set_per_iteration(cfg):
            name += f".{iteration}"
        files[key] = sources.data_file(run, path, "prompts.path", name)
    return files


def too_few(cfg: Config, num_prompts: int, counts: dict[str, int]) -> str | None:
    """What to say when one set for all iterations has only so many prompts to train on; None when they are
    enough.
    """
    size = cfg.prompts.num_per_iteration
    num_needed = cfg.num_iterations * size
    if num_needed <= num_prompts:
        return None
    ways_out = []
    if num_prompts >= cfg.num_iterations:
        ways_out.append(f"prompts.num_per_iteration={num_prompts // cfg.num_iterations}")
    if num_prompts >= size:
        ways_out.append(f"num_iterations={num_prompts // size}")
    ways_out += [
        "more prompts",
        "fewer of them held out",
        "a set for each iteration (prompts.path with {iteration} in it)",
    ]
    return (
        f"num_iterations={cfg.num_iterations} with prompts.num_per_iteration={size} needs "
        f"{num_needed} training "
        f"prompts, but {cfg.prompts.path} gives {max(num_prompts, 0)} ({what_became(counts)}). Ways out: "
        f"{', '.join(ways_out)}."
    )
