"""Whose a file or folder is: code that only another user's files bring is not run."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.errors import UserError
from rlhf.models.folder import own_code


def not_own(status: os.stat_result) -> str | None:
    """Why a file or folder is not this user's alone; None where it is. Root is a user like any other.

    Example:
        "belongs to nobody (uid 65534), and you are root (uid 0)"
    """
    user = os.geteuid()
    if status.st_uid != user:
        return f"belongs to {_named(status.st_uid)}, and you are {_named(user)}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everyone"
    if status.st_mode & stat.S_IWGRP and not _has_no_other_member(status.st_gid):
        return f"can be written by its group (gid {status.st_gid})"
    return None


def require_own_code(artifact: Path, cfg: Config) -> None:
    """Refuse to take an artifact of another user that brings Python code which this run would let run.

    Raises:
        UserError: it holds a model with code of its own, `trust_remote_code` is on, and whoever may write the
            folder may have written that code.
    """
    trusted = [cfg.model.trust_remote_code, cfg.reward_model.trust_remote_code]
    trusted += [judge.trust_remote_code for judge in cfg.reward_model.others.values()]
    if not any(trusted):
        return
    for model in sorted({file.parent for file in artifact.rglob("*config.json")}):
        code = own_code(model)
        places = (artifact, model, *sorted(model.iterdir())) if code else ()
        for place in places:
            reason = not_own(place.stat())
            if reason is not None:
                raise UserError(
                    f"reuse: {artifact} has a model with Python code of its own, {', '.join(code.values())}, "
                    f"and {place} {reason}. trust_remote_code trusts the model that you named, not what "
                    "another user made of it; nothing was taken. Ways out: leave that run out of reuse; or "
                    "read the code, copy that run (cp -r) and name the copy in reuse."
                )


def _has_no_other_member(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, named as that user."""
    try:
        group = grp.getgrgid(gid)
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def _named(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:  # of another machine, or of a container
        return f"uid {uid}"
