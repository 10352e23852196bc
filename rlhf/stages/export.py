"""Write a policy as people serve it and share it: in its dtype, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rlhf.config.stage_configs import ExportStage
from rlhf.loop import card
from rlhf.models.folder import config_text
from rlhf.models.kinds import FOREIGN_WEIGHTS
from rlhf.models.template_files import copy_other_templates
from rlhf.models.weight_files import INDEX, saved_dtype, second_copies, write_index
from rlhf.run.commit import link_or_copy
from rlhf.run.job import Job, Outcome, Worker


def run(job: Job[ExportStage], worker: Worker) -> Outcome:
    """Copy `model` to `model/`; config is `dtype` and the facts of its `card` (`rlhf.loop.card`).

    Weights that have the dtype already are linked, not copied: both names belong to finished
    artifacts, which nothing changes. The rest is cast.
    """
    dtype = job.config.dtype
    source = job.input_path("model")
    target = job.out_path / "model"
    has_dtype = saved_dtype(source) == dtype
    # What a killed attempt has left goes first: never write through a link.
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    num_weights = 0
    # π0 as it was given may hold its weights several times over; people load the ones that were used here.
    copies = second_copies(source)
    for file in sorted(source.iterdir()):
        copy = target / file.name
        if file in copies or file.suffix in FOREIGN_WEIGHTS:
            continue
        if file.suffix == ".safetensors":
            num_weights += 1
            if has_dtype:
                link_or_copy(file, copy)
            else:
                _cast(file, copy, dtype)
        elif file.is_file():
            shutil.copyfile(file, copy)
    if not has_dtype and (target / INDEX).exists():
        write_index(target)  # the source's says how large the weights were before they were cast
    copy_other_templates(source, target)
    _write_dtype(target / "config.json", dtype)
    (target / "README.md").write_text(card.text(job.config.card, dtype), encoding="utf-8")
    return Outcome(counts={"weights": num_weights})


def _write_dtype(path: Path, dtype: str) -> None:
    """Say in a model's config.json which dtype its weights have now."""
    model_config = json.loads(path.read_text(encoding="utf-8"))
    # The old name of the same key: where both stand, which one counts depends on the version of transformers.
    model_config.pop("torch_dtype", None)
    model_config["dtype"] = dtype
    path.write_text(config_text(model_config), encoding="utf-8")


def _cast(file: Path, target: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    for name, tensor in weights.items():
        # Whole numbers stay what they are.
        if tensor.is_floating_point():
            weights[name] = tensor.to(getattr(torch, dtype))
    # As save_pretrained writes it: some versions of transformers read no file without.
    save_file(weights, target, metadata={"format": "pt"})
