"""Whose a file or folder is: code that only another user's files bring is not run."""

from __future__ import annotations

import grp
import os
import pwd
import stat


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
