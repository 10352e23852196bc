"""Whether this machine can run the models at all, told from names and headers in no time."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf.config.choices import Device
from rlhf.config.schema import Config
from rlhf.errors import ConfigError
from rlhf.launch.machine import num_cores, visible_gpus
from rlhf.models.weight_files import num_parameters

LARGEST_ON_A_CPU = 2e9
"""Parameters; a larger model takes weeks for one iteration without a GPU."""

_SIZE = re.compile(r"(?<![\w.])(?:\d+x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


def approximate_size(path: str) -> float | None:
    """Parameters of a model: counted in a local folder, else as the name says (`…-8B-…`); None when it does not."""
    folder = Path(path).expanduser()
    if any(folder.glob("*.safetensors")):
        return float(num_parameters(folder))
    found = _SIZE.search(path.rpartition("/")[2].replace("_", "-"))
    return float(found[1]) * 1e9 if found else None


def check_capacity(cfg: Config) -> None:
    """Refuse large models on a machine without GPUs, unless `compute.device=cpu` says that it is meant.

    Raises:
        ConfigError: why it cannot run, and every way out.
    """
    if cfg.compute.device is not Device.auto or visible_gpus():
        return
    paths = {"model.path": cfg.model.path}
    if cfg.reward_model.url is None and cfg.reward_model.rule is None:
        paths["reward_model.path"] = cfg.reward_model.path
    paths |= {f"reward_model.others.{n}.path": o.path for n, o in cfg.reward_model.others.items() if o.path}
    sizes = {f"{key}={path}": approximate_size(path) for key, path in paths.items() if not path.startswith("@")}
    large = {name: size for name, size in sizes.items() if size is not None and size > LARGEST_ON_A_CPU}
    if large:
        what = " and ".join(f"{name} (about {size / 1e9:.3g} billion parameters)" for name, size in large.items())
        raise ConfigError(
            f"This machine cannot run it: no NVIDIA GPU is visible, and {what} would take weeks on {num_cores()} CPU "
            "cores.\nWays out:\n"
            "  see the whole loop work here in minutes: python -m rlhf.iterate experiment=quickstart\n"
            "  run the same command where nvidia-smi lists GPUs (and CUDA_VISIBLE_DEVICES does not hide them)\n"
            "  choose models of at most 2 billion parameters: model.path=… reward_model.path=…\n"
            "  do it on the CPU all the same: compute.device=cpu"
        )
