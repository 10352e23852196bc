"""Whether this machine has the room for a run on disk, and the packages.

What is needed is an estimate from headers and settings, in bytes: a need that nearly fills what there is
gets a warning.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from rlhf.config.choices import Engine, KeptPolicies
from rlhf.config.schema import Config
from rlhf.data.files import resolved
from rlhf.generation.vllm_args import check_batch_invariant, check_batching
from rlhf.launch.machine import gpus_of_run
from rlhf.loop.prompt_sets import samples_to_train
from rlhf.preflight.findings import Finding, Level, finding
from rlhf.preflight.memory import bytes_of_weights, fits
from rlhf.run.commit import VERSIONS

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_FP32 = 4  # bytes of a number
_ADAM = 12  # bytes a parameter: fp32 weights, and both of Adam's moments


def disk(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> Iterator[Finding]:
    """What is yet to be written: fp32 weights of each iteration, an export, checkpoints, responses."""
    folder = resolved(cfg.run_dir or ".", "run_dir")
    checkpoints = _bytes_of_checkpoints(cfg, sizes, bytes_of_weights(cfg, sizes, folders))
    needed = _bytes_to_write(cfg, sizes, folder) + checkpoints
    # A new run's folder is not there yet; the nearest one above it is on the same disk.
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    way_out = "Put run_dir on a larger disk, make room, or run fewer num_iterations."
    yield fits("disk, to be written", needed, free, 0.8, way_out)


def _bytes_to_write(cfg: Config, sizes: dict[str, float], folder: Path) -> float:
    """Of weights and responses, which stay."""
    num_left = 0
    for t in range(1, cfg.num_iterations + 1):
        step = folder / f"iteration_{t:03d}"
        if not (step / cfg.method.value).is_dir():
            num_left += 1
    policy = sizes.get("model.path", 0)
    judge = 0.0
    if cfg.reward_model.data is not None:
        judge = sizes.get("reward_model.path", 0)
    num_stored = num_left
    if cfg.keep_policies is KeptPolicies.best_and_last:
        # The best, the last, and the one that is trained from the last.
        num_stored = min(num_left, 3)
    num_policies = num_stored + 1  # one of them is the export
    if cfg.sft.data is not None:
        num_policies += 1
    responses = 0
    if samples_to_train(cfg):
        responses = num_left * cfg.prompts.num_per_iteration * cfg.generate.n
    # Half of the limit: most responses end before it.
    tokens = responses * cfg.generate.max_new_tokens / 2
    weights = _FP32 * policy * num_policies + _FP32 * judge
    return weights + 8 * tokens  # 8 bytes a token are its id and its text


def _bytes_of_checkpoints(cfg: Config, sizes: dict[str, float], weights: dict[str, float]) -> float:
    """Of those that the largest training has at most, in case the newest is damaged or not finished."""
    trained = []
    # An adapter's checkpoint is small; SFT trains the whole model in any case.
    if cfg.sft.data is not None or cfg.dpo.lora.rank == 0:
        trained.append("model.path")
    if cfg.reward_model.data is not None:
        trained.append("reward_model.path")
    largest = 0.0
    for key in trained:
        checkpoint = _ADAM * sizes.get(key, 0)
        # Under ZeRO-3 the weights that a model computes with are not in it, but made of the fp32 ones.
        if cfg.compute.zero_stage != 3:
            checkpoint += weights.get(key, 0)
        largest = max(largest, checkpoint)
    return cfg.compute.num_checkpoints * largest


def engine_arguments(cfg: Config) -> Iterator[Finding]:
    """Whether vLLM can do on this machine what `generate.vllm_args` and `generate.batch_invariant` ask of it;
    nothing where it is asked nothing.

    Raises:
        ConfigError: it cannot.
    """
    has_gpu = len(gpus_of_run(cfg.compute)) > 0
    check_batch_invariant(cfg.generate, has_gpu)
    arguments = cfg.generate.vllm_args
    if not arguments or cfg.generate.engine is Engine.transformers:
        return
    check_batching(arguments, has_gpu)
    names = ", ".join(arguments)
    yield finding(True, f"generate.vllm_args: {names}")


def versions(cfg: Config) -> Iterator[Finding]:
    """Packages that the chosen engines need, against the lower bounds of pyproject.toml where it is there."""
    packages = list(VERSIONS)
    if Engine.vllm in (cfg.generate.engine, cfg.score.engine):
        packages.append("vllm")
    least = _least_versions()
    for package in packages:
        way_out = f"make setup installs {least.get(package, 'it')} or later."
        if package == "vllm":
            way_out += " Or set generate.engine and score.engine to transformers."
        version = _installed(package)
        if version is None:
            yield Finding(Level.error, f"{package} is not installed", way_out)
            continue
        is_new_enough = _numbers(version) >= _numbers(least.get(package, "0"))
        yield finding(is_new_enough, f"{package} {version}", way_out)


def _least_versions() -> dict[str, str]:
    """The lower bounds of pyproject.toml by package; an installed copy of this one has no such file."""
    if not _PYPROJECT.is_file():
        return {}
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', _PYPROJECT.read_text(encoding="utf-8")))


def _installed(package: str) -> str | None:
    # vLLM's build for machines without a GPU is a package of another name.
    for name in (package, f"{package}-cpu"):
        for distribution in distributions(name=name):
            return distribution.version
    return None


def _numbers(version: str) -> list[int]:
    """Numbers of a version, to be compared: `2.13.0+cpu` gives [2, 13, 0]."""
    public, _, _ = version.partition("+")
    numbers = re.findall(r"\d+", public)
    return [int(number) for number in numbers]
