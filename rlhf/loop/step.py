"""The stages of one iteration, or of an evaluation within it: what each is told, and where its folder
lies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlhf.config.fields import filled
from rlhf.config.schema import Config, PairSettings
from rlhf.models.weight_files import saved_dtype
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run
from rlhf.run.refusal import UNKNOWN
from rlhf.run.stage_table import STAGES

_OF_THE_POLICY = ("generate", "reference", "dpo", "raft", "sft", "preferences")
"""Stages that load the policy, or its tokenizer."""
_RENDERING = ("generate", "sft", "preferences", "score", "reward_model")
"""Stages that render conversations."""
_IN_THE_POLICYS_DTYPE = ("generate", "reference", "dpo", "raft")
"""Stages whose dtype is settled once for the whole run."""


def stage_config(cfg: Config, stage: str, **changes: Any) -> Any:
    """What a stage is told: its section of the config, what it needs of others, and `changes`.

    Example:
        `stage_config(cfg, "generate", iteration=1, slice=[0, 320])` is a `GenerateStage`: the section
        `generate`, dtype and trust_remote_code of the section `model`, iteration 1, and rows 0 to 320 of the
        prompts.
    """
    values: dict[str, Any] = {}
    if stage in _OF_THE_POLICY:
        values["dtype"] = cfg.model.dtype.value
        values["trust_remote_code"] = cfg.model.trust_remote_code
    if stage in ("score", "reward_model"):
        values["dtype"] = cfg.reward_model.dtype.value
        values["trust_remote_code"] = cfg.reward_model.trust_remote_code
    if stage == "preferences":
        values["columns"] = cfg.pair.columns
    if stage == "reference":
        # Pairs are cut as DPO will cut them: the two must see the same tokens.
        values["max_length"] = cfg.dpo.max_length
    if stage == "raft":
        values["pairing"] = filled(PairSettings, cfg.pair)
    if stage in _RENDERING:
        values["special_tokens"] = cfg.special_tokens
    section = getattr(cfg, stage, None)
    return filled(STAGES[stage].config, section, **(values | changes))


class Watcher(Protocol):
    """Looks at what an iteration makes as soon as it is finished."""

    def stage_finished(self, iteration: int, artifact: Artifact) -> None:
        """Called with every artifact of a watched step."""
        ...


@dataclass(frozen=True)
class Step:
    """A folder of stages that belong together: an iteration, or an evaluation within it.

    `dtype` is what the policy runs in, settled once from π0's files: the iterates themselves are stored in
    fp32.
    """

    run: Run
    folder: str
    iteration: int
    dtype: str = UNKNOWN
    watcher: Watcher | None = None

    def stage(
        self,
        stage: str,
        *,
        name: str = "",
        config: Any = None,
        # A mapping of artifacts; `inputs` that are unpacked could stand for it too, as far as mypy knows.
        unrecorded: Any = None,
        **inputs: Artifact | None,
    ) -> Artifact:
        """The artifact of one stage in this folder.

        Args:
            stage: a name in `rlhf.run.stage_table.STAGES`.
            name: of its folder, where that is another.
            config: what it is told; None is what the run's config says.
            unrecorded: inputs that are no part of its identity (`rlhf.run.plan.Run.stage`).
            inputs: artifacts by the names that the stage knows them by; None is no input.
        """
        if config is None:
            config = self.config(stage)
        present = {key: artifact for key, artifact in inputs.items() if artifact is not None}
        artifact = self.run.stage(stage, f"{self.folder}/{name or stage}", config, present, unrecorded)
        if self.watcher is not None:
            self.watcher.stage_finished(self.iteration, artifact)
        return artifact

    def config(self, stage: str, **changes: Any) -> Any:
        """What a stage of this step is told, with `changes`."""
        if stage in _IN_THE_POLICYS_DTYPE:
            changes = {"dtype": self.dtype} | changes
        return stage_config(self.run.cfg, stage, **changes)

    def inside(self, folder: str) -> Step:
        """A step in a folder of this one, which nobody watches."""
        path = f"{self.folder}/{folder}"
        return replace(self, folder=path, watcher=None)


def iteration_step(run: Run, iteration: int, dtype: str, watcher: Watcher | None = None) -> Step:
    """The step of an iteration; 0 is the evaluation of π0."""
    folder = f"iteration_{iteration:03d}"
    return Step(run, folder, iteration, dtype, watcher)


def policy_dtype(cfg: Config, initial: Artifact) -> str:
    """The dtype in which every iterate is sampled, scored and trained."""
    wanted = cfg.model.dtype.value
    if initial.digest is not None:
        return saved_dtype(initial.path, wanted)
    # π0 has yet to be made, so its files cannot tell.
    return UNKNOWN if wanted == "auto" else wanted
