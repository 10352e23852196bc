"""Write a policy in the dtype people serve it in."""

from __future__ import annotations

import json
import shutil

from rlhf.job import Job, Kind, Outcome, Worker

KIND = Kind.single


def num_shards(job: Job) -> int:
    """Not cut in shards."""
    return 0


def run(job: Job, worker: Worker) -> Outcome:
    """Copy `model` to `model/` with its weights cast; config is `{"dtype": "bfloat16"}`."""
    import torch
    from safetensors.torch import load_file, save_file

    source, target = job.input_path("model"), job.out_path / "model"
    dtype = getattr(torch, job.config["dtype"])
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            weights = load_file(file)
            cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
            save_file(cast, target / file.name, metadata={"format": "pt"})
        elif file.is_file():
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = job.config["dtype"]
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Outcome(counts={"weights": sum(1 for _ in target.glob("*.safetensors"))})


if __name__ == "__main__":
    from rlhf.alone import main

    main("export")
