"""Write a policy as people serve it and share it: in its dtype, with a model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from rlhf.config.stage_configs import ExportStage
from rlhf.loop import card
from rlhf.models.folder import saved_dtype
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[ExportStage], worker: Worker) -> Outcome:
    """Copy `model` to `model/`; config is `dtype` and the facts of its `card` (`rlhf.loop.card`).

    Weights that have the dtype already are linked, not copied: both names belong to finished artifacts, which nothing
    changes. The rest is cast.
    """
    source, target = job.input_path("model"), job.out_path / "model"
    same = saved_dtype(source) == job.config.dtype
    shutil.rmtree(target, ignore_errors=True)  # of a killed attempt: never write through a link
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            (_link if same else _cast)(file, target / file.name, job.config.dtype)
        elif file.is_file():
            shutil.copyfile(file, target / file.name)
    model_config = json.loads((target / "config.json").read_text())
    model_config.pop("torch_dtype", None)
    model_config["dtype"] = job.config.dtype
    (target / "config.json").write_text(json.dumps(model_config, indent=2) + "\n")
    (target / "README.md").write_text(card.text(job.config.card, job.config.dtype), encoding="utf-8")
    return Outcome(counts={"weights": sum(1 for _ in target.glob("*.safetensors"))})


def _link(file: Path, target: Path, dtype: str) -> None:
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)


def _cast(file: Path, target: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    wanted = getattr(torch, dtype)
    cast = {name: t.to(wanted) if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file(cast, target, metadata={"format": "pt"})
