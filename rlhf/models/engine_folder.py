"""A model folder as vLLM is to see it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhf.models.folder import refuses_generation_config
from rlhf.models.weight_files import second_copies


class EngineFolder:
    """The folder itself, or links to what of it vLLM may see; they last as long as this object.

    vLLM loads every weight file it finds where there is no index, so a second copy of the weights
    ends it, or is what it samples from; and it stops at a generation_config.json that transformers
    refuses, although it is told to leave it alone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        source = Path(path).absolute()
        hidden = {file.name for file in second_copies(source)}
        if hidden:
            # Mistral's own config, which vLLM would take together with its own weights.
            hidden.add("params.json")
        if refuses_generation_config(source):
            hidden.add("generation_config.json")
        if not hidden:
            return
        self._links = TemporaryDirectory(prefix="rlhf_model_")
        self.path = self._links.name
        for file in source.iterdir():
            if file.name not in hidden:
                os.symlink(file, Path(self.path) / file.name)


def import_classes(folder: str) -> None:
    """Import a model's class into this process, where vLLM's engine is about to run, and tell vLLM so.

    It wants to know some properties of the class first, and would start a process for that, which
    imports all of vLLM: 7 s at the first use of an architecture on a machine. A class that cannot be
    imported is left to vLLM, which says why.
    """
    from vllm import ModelRegistry

    config = json.loads((Path(folder) / "config.json").read_bytes())
    for architecture in config.get("architectures") or []:
        names = [architecture]
        if architecture not in ModelRegistry.models:
            # A judge: vLLM looks at what it would wrap transformers' model in, and then puts the judge's
            # head on the causal model's class.
            names = ["TransformersForSequenceClassification"]
            names.append(architecture.replace("ForSequenceClassification", "ForCausalLM"))
        for name in names:
            if name in ModelRegistry.models:
                with suppress(Exception):
                    ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
