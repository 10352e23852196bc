"""Training checkpoints that are whole or are not used.

The Hugging Face Trainer writes `checkpoint-N` in place and resumes from the highest N, torn or not. Here a checkpoint
counts once `sealed.json` stands in it: written last, with the size and SHA-256 of every file. Resuming reads those
checksums first, so DeepSpeed unpickles nothing that this package did not write itself.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.data.digest import digest_file, sealed, unsealed
from rlhf.data.shards import fsync_dir, write_atomic
from rlhf.errors import UserError

SEAL = "sealed.json"
KEEP = 2
"""Sealed checkpoints kept: the newest, and the one before it in case the newest is damaged."""

_log = logging.getLogger(__name__)


def train_resumable(trainer: Trainer, out: Path) -> None:
    """Train to the end, going on from the newest whole checkpoint in `out` if there is one.

    Every rank calls this. Interrupted at any moment and called again with the same number of ranks, it ends with the
    same weights, bit for bit on a CPU in fp32. The checkpoints stay until the stage is committed.

    Raises:
        UserError: the checkpoints in `out` were written by another number of ranks, or belong to another user.
    """
    assert Path(trainer.args.output_dir or "").resolve() == out.resolve(), "the Trainer must save where we look"
    assert trainer.args.save_total_limit is None, "old checkpoints are removed here, after the new one is sealed"
    trainer.add_callback(_Sealer(out))
    checkpoint = find_checkpoint(out)
    if checkpoint is not None:
        _log.warning("going on from %s", checkpoint.name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def find_checkpoint(out: Path) -> Path | None:
    """The newest sealed checkpoint whose files have their checksums; deletes torn and damaged ones.

    Every rank calls this; all get the same answer.
    """
    problem = _on_rank_zero(lambda: _clean(out))
    if problem:
        raise UserError(problem)
    for checkpoint in _on_rank_zero(lambda: _checkpoints(out)):
        sealed = _on_rank_zero(partial(_read_seal, checkpoint))["files"]
        found = _digests(checkpoint)
        if found == sealed:
            return checkpoint
        damaged = sorted(name for name in sealed.keys() | found.keys() if sealed.get(name) != found.get(name))
        _log.warning("%s is damaged (%s): deleted, using the one before", checkpoint, ", ".join(damaged))
        _on_rank_zero(partial(_remove, checkpoint))
    return None


class _Sealer(TrainerCallback):
    """Seals each checkpoint after all ranks wrote it, then removes older ones."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """No checkpoint of the last step: the finished model is exported right after it."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called on every rank when its part of the checkpoint is written."""
        _barrier()
        checkpoint = self.out / f"checkpoint-{state.global_step}"
        digests = _digests(checkpoint)
        _on_rank_zero(lambda: self._seal(checkpoint, digests))

    def _seal(self, checkpoint: Path, digests: dict[str, Any]) -> None:
        for folder in {checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())}:
            fsync_dir(folder)
        fsync_dir(self.out)
        seal = {"world_size": _world_size(), "files": digests}
        write_atomic(checkpoint / SEAL, sealed(seal))
        for old in _checkpoints(self.out)[KEEP:]:
            _remove(old)


def _clean(out: Path) -> str | None:
    """Delete unsealed checkpoints; say what is wrong when the sealed ones belong to another number of ranks."""
    for checkpoint in _checkpoints(out):
        seal = _read_seal(checkpoint)
        if seal is None:
            _log.warning("%s was not finished, or its seal is damaged: deleted", checkpoint)
            _remove(checkpoint)
        elif (saved := seal["world_size"]) != _world_size():
            return (
                f"{checkpoint} was written by {saved} training ranks, and {_world_size()} are running now; a started "
                f"training goes on only with as many ranks as it began with. Either set "
                f"compute.num_training_ranks={saved}, or delete {out} to begin this training again."
            )
        elif foreign := _foreign(checkpoint):
            return (
                f"{foreign}: a link, or another user's file. Optimizer states can run code when loaded, so only your "
                f"own are. Make it yours (chown) if you trust it, or delete {out} to begin this training again."
            )
    return None


def _foreign(checkpoint: Path) -> Path | None:
    """A file that is a link or not this user's; for root, whose files in a container may be anyone's, only a link."""
    me = os.getuid()
    paths = [checkpoint, *sorted(checkpoint.rglob("*"))]
    return next((path for path in paths if path.is_symlink() or (me and path.lstat().st_uid != me)), None)


def _read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """World size and checksums of a finished checkpoint, None for one that is not."""
    try:
        return unsealed((checkpoint / SEAL).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in out.glob("checkpoint-*") if p.is_dir() and p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its seal first, so that half of it is never taken for the whole."""
    if (checkpoint / SEAL).exists():
        (checkpoint / SEAL).unlink()
        fsync_dir(checkpoint)
    shutil.rmtree(checkpoint)


def _digests(checkpoint: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file but the seal, once it is on the disk; ranks share the work."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    rank = dist.get_rank() if dist.is_initialized() else 0
    mine: dict[str, Any] = {}
    for path in files[rank :: _world_size()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        mine[path.relative_to(checkpoint).as_posix()] = {"size": path.stat().st_size, "sha256": digest_file(path)}
    if not dist.is_initialized():
        return mine
    parts: list[dict[str, Any]] = [{} for _ in range(_world_size())]
    dist.all_gather_object(parts, mine)
    return {name: entry for part in parts for name, entry in part.items()}


def _on_rank_zero(action: Callable[[], Any]) -> Any:
    """Do something on rank 0 while the others wait; all get its result."""
    if not dist.is_initialized():
        return action()
    box = [action() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
