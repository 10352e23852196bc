"""Whether this machine can run the models at all, told from names and headers in no time."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf.config.choices import Device, Launcher
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.launch.cluster import gpus_of_nodes
from rlhf.launch.machine import num_cores, visible_gpus
from rlhf.models.weight_files import has_weights, num_parameters

LARGEST_ON_A_CPU = 2e9
"""Parameters; a larger model takes weeks for one iteration without a GPU."""

# The `8B` of Llama-3-8B and the `7B` of Mixtral-8x7B; not the `4b` of `4bit`.
_SIZE = re.compile(r"(?<![\w.])(?:\d+x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


def approximate_size(path: str) -> float | None:
    """Parameters of a model: counted in a local folder, else as its name says (`…-8B-…`), else None."""
    folder = Path(path).expanduser()
    if has_weights(folder):
        return float(num_parameters(folder))
    # An underscore counts as a letter of a word, so that `llama_8b` would have no size.
    name = path.rpartition("/")[2].replace("_", "-")
    match = _SIZE.search(name)
    if match is None:
        return None
    return float(match[1]) * 1e9


def check_capacity(cfg: Config) -> None:
    """Refuse large models on a machine without GPUs, unless `compute.device=cpu` says that it is meant.

    Raises:
        ConfigError: why it cannot run, and every way out.
    """
    # `cpu` says that it is meant, and `cuda` without a GPU is refused where GPUs are counted.
    if cfg.compute.device is not Device.auto or visible_gpus():
        return
    where = "This machine cannot run it: no NVIDIA GPU is visible"
    if cfg.compute.launcher is Launcher.ray:
        nodes = gpus_of_nodes()
        # Before a run has joined them nobody knows what they have; its preflight looks again.
        if nodes is None or nodes:
            return
        where = "The nodes of the cluster cannot run it: none has a GPU"
    large = []
    for key, path in _models_loaded_here(cfg).items():
        size = approximate_size(path)
        if size is not None and size > LARGEST_ON_A_CPU:
            large.append(f"{key}={path} (about {size / 1e9:.3g} billion parameters)")
    if large:
        raise ConfigError(
            f"{where}, and {' and '.join(large)} would take "
            f"weeks on {num_cores()} CPU cores.\n"
            "Ways out:\n"
            "  see the whole loop work here in minutes: python -m rlhf.iterate experiment=quickstart\n"
            "  run the same command where nvidia-smi lists GPUs (and CUDA_VISIBLE_DEVICES does not hide "
            "them)\n"
            "  choose models of at most 2 billion parameters: model.path=… reward_model.path=…\n"
            "  do it on the CPU all the same: compute.device=cpu"
        )


def _models_loaded_here(cfg: Config) -> dict[str, str]:
    """Paths of the policy and the judges from outside, by config key.

    Judges that only evaluate are left out: they score the held-out prompts alone.

    Example:
        {"model.path": "meta-llama/Meta-Llama-3-8B-Instruct", "reward_model.others.small.path": "./judge"}
    """
    paths = {"model.path": cfg.model.path}
    section = cfg.reward_model
    if section.url is None and section.rule is None:
        paths["reward_model.path"] = section.path
    for name, judge in section.others.items():
        if judge.path:
            paths[f"reward_model.others.{name}.path"] = judge.path
    return {key: path for key, path in paths.items() if not path.startswith("@")}
