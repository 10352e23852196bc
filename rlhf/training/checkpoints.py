"""Training checkpoints that are whole or are not used.

The Hugging Face Trainer writes `checkpoint-N` in place and resumes from the highest N, torn or not.
Here a checkpoint counts once `sealed.json` stands in it: written last, with the size and SHA-256 of
every file. Resuming reads those checksums first, so DeepSpeed unpickles nothing that this package
did not write itself.
"""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.data.digest import digest_files, sealed, unsealed
from rlhf.data.shards import fsync_dir, write_atomic
from rlhf.errors import UserError
from rlhf.run.attempt_folder import SEAL
from rlhf.training.ranks import barrier, on_rank_zero, own_rank, world_size

_log = logging.getLogger(__name__)


def train_resumable(trainer: Trainer, out: Path, num_checkpoints: int) -> None:
    """Train to the end, going on from the newest whole checkpoint in `out` if there is one.

    Every rank calls this. Interrupted at any moment and called again with the same number of ranks,
    it ends with the same weights, bit for bit on a CPU in fp32. The checkpoints stay until the
    stage is committed.

    Args:
        trainer: it saves its checkpoints in
        out: the folder of the unfinished stage.
        num_checkpoints: that are kept, sealed, at least 2: the newest, and those before it in case the
            newest is damaged. While one is written there is one fewer, so that the disk holds no more than
            these (`rlhf.preflight.hardware`).

    Raises:
        UserError: the checkpoints in `out` were written by another number of ranks, or belong to
            another user.
    """
    output_dir = Path(trainer.args.output_dir or "")
    assert output_dir.resolve() == out.resolve(), "the Trainer must save where we look"
    problem = "old checkpoints are removed here, before a new one is written"
    assert trainer.args.save_total_limit is None, problem
    trainer.add_callback(_Sealer(out, num_checkpoints))
    checkpoint = find_checkpoint(out)
    if checkpoint is None:
        trainer.train()
        return
    _log.warning("going on from %s", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint))


def find_checkpoint(out: Path) -> Path | None:
    """The newest sealed checkpoint whose files have their checksums; deletes torn and damaged ones.

    Every rank calls this; all get the same answer.
    """
    problem = on_rank_zero(partial(_clean, out))
    # Raised on all ranks: the others would else wait for rank 0 until their process group gives up.
    if problem:
        raise UserError(problem)
    for checkpoint in on_rank_zero(partial(_checkpoints, out)):
        # `_clean` has left only those whose seal can be read.
        expected = on_rank_zero(partial(_read_seal, checkpoint))["files"]
        digests = _digests(checkpoint)
        if digests == expected:
            return checkpoint
        damaged = []
        for name in sorted(expected.keys() | digests.keys()):
            if expected.get(name) != digests.get(name):
                damaged.append(name)
        _log.warning("%s is damaged (%s): deleted, using the one before", checkpoint, ", ".join(damaged))
        on_rank_zero(partial(_remove, checkpoint))
    return None


class _Sealer(TrainerCallback):
    """Makes room for each checkpoint before it is written, and seals it after all ranks wrote it."""

    def __init__(self, out: Path, num_checkpoints: int) -> None:
        self.out = out
        self.num_checkpoints = num_checkpoints

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Called on every rank when it is decided whether this step's checkpoint is written.

        None of the last step: the finished model is exported right after it.
        """
        if state.global_step >= state.max_steps:
            control.should_save = False
        if control.should_save:
            on_rank_zero(partial(_make_room, self.out, self.num_checkpoints))
        return control

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Called on every rank when its part of the checkpoint is written."""
        # Else a slower rank would write its part after the digests were taken.
        barrier()
        checkpoint = self.out / f"checkpoint-{state.global_step}"
        digests = _digests(checkpoint)
        on_rank_zero(partial(self._seal, checkpoint, digests))

    def _seal(self, checkpoint: Path, digests: dict[str, Any]) -> None:
        # The files are on the disk already; now their names, and the seal last of all.
        fsync_dir(checkpoint)
        for path in checkpoint.rglob("*"):
            if path.is_dir():
                fsync_dir(path)
        fsync_dir(self.out)
        seal = {"world_size": world_size(), "files": digests}
        write_atomic(checkpoint / SEAL, sealed(seal))


def _make_room(out: Path, num_checkpoints: int) -> None:
    """Delete old checkpoints before a new one is written: they are several times as large as the model.

    One that is sealed is left, to go on from when the new one is not finished.
    """
    for older in _checkpoints(out)[num_checkpoints - 1 :]:
        _remove(older)


def _clean(out: Path) -> str | None:
    """Delete unsealed checkpoints; say what is wrong where a sealed one cannot be used."""
    for checkpoint in _checkpoints(out):
        seal = _read_seal(checkpoint)
        if seal is None:
            _log.warning("%s was not finished, or its seal is damaged: deleted", checkpoint)
            _remove(checkpoint)
            continue
        # Every rank holds a part of the optimizer's states, cut for just so many ranks.
        num_ranks = seal["world_size"]
        if num_ranks != world_size():
            return (
                f"{checkpoint} was written by {num_ranks} training ranks, and {world_size()} are running "
                "now; a started training goes on only with as many ranks as it began with. Either set "
                f"compute.num_training_ranks={num_ranks} (where GPUs train, {num_ranks} of them are needed; "
                "what began on a CPU goes on with compute.device=cpu too), "
                f"or delete {out} to begin this training again."
            )
        # The checksums do not help here: who can write the files can also write a seal.
        foreign = _foreign(checkpoint)
        if foreign is not None:
            return (
                f"{foreign}: a link, or another user's file. Optimizer states can run code when loaded, so "
                "only your own are. Make it yours (chown) if you trust it, or delete "
                f"{out} to begin this training again."
            )
    return None


def _foreign(checkpoint: Path) -> Path | None:
    """A file that is a link or not this user's."""
    user = os.getuid()
    for path in [checkpoint, *sorted(checkpoint.rglob("*"))]:
        if path.is_symlink():
            return path
        # Root's files in a container may be anyone's.
        if user != 0 and path.lstat().st_uid != user:
            return path
    return None


def _read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """World size and checksums of a finished checkpoint, None for one that is not.

    Example:
        {"world_size": 2, "files": {"trainer_state.json": {"size": 1204, "sha256": "9f2c…"}}}
    """
    try:
        return unsealed((checkpoint / SEAL).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    checkpoints = []
    for path in out.glob("checkpoint-*"):
        if path.is_dir() and _step_text(path).isdigit():
            checkpoints.append(path)
    # By number: as text, checkpoint-10 would come before checkpoint-9.
    return sorted(checkpoints, key=lambda path: int(_step_text(path)), reverse=True)


def _step_text(checkpoint: Path) -> str:
    """What stands behind the last dash of `checkpoint-N`."""
    return checkpoint.name.rpartition("-")[2]


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its seal first, so that half of it is never taken for the whole."""
    if (checkpoint / SEAL).exists():
        (checkpoint / SEAL).unlink()
        fsync_dir(checkpoint)
    shutil.rmtree(checkpoint)


def _digests(checkpoint: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file but the seal, once it is on the disk; ranks share the work.

    Example:
        {"trainer_state.json": {"size": 1204, "sha256": "9f2c…"}}
    """
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SEAL]
    names = []
    for path in files[own_rank() :: world_size()]:
        # DeepSpeed and torch do not do it, and a seal must not outlive the bytes it vouches for.
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        names.append(path.relative_to(checkpoint).as_posix())
    digests: dict[str, Any] = {}
    for name, entry in digest_files(checkpoint, names).items():
        # Under the names of old seals.
        digests[name] = {"size": entry["bytes"], "sha256": entry["sha256"]}
    if not dist.is_initialized():
        return digests
    digests_by_rank: list[dict[str, Any]] = [{} for _ in range(world_size())]
    dist.all_gather_object(digests_by_rank, digests)
    merged: dict[str, Any] = {}
    for part in digests_by_rank:
        merged |= part
    return merged
