"""On what kind of file system a folder lies, and whether the kernel's locks reach all who may use it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
_LOCAL = {
    "apfs",
    "aufs",
    "bcachefs",
    "btrfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fuseblk",  # a disk of this machine, such as NTFS, that a program mounts
    "hfs",
    "hfsplus",
    "jfs",
    "msdos",
    "nilfs2",
    "ntfs",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "rootfs",
    "tmpfs",
    "ufs",
    "vfat",
    "xfs",
    "zfs",
}
"""Of one kernel: whoever works on such a folder asks the same kernel for its lock. All others (nfs, lustre,
gpfs, cifs, 9p, virtiofs, fuse.…) may be shared by machines that do not see each other's locks.
"""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class FileSystem:
    """What a folder lies on: its type as the kernel names it, such as "ext4" or "nfs4", and where it is
    mounted, "" where that is not known.
    """

    kind: str
    mount_point: str = ""
    is_local: bool = False
    """Whether the kernel's lock decides who works on the folder."""


def file_system_of(folder: Path) -> FileSystem:
    """The file system that a folder, which must exist, lies on.

    Where the kernel does not tell of mounts (no Linux), its locks are taken at their word.
    """
    try:
        mounts = (_PROC / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return FileSystem(UNKNOWN, is_local=True)
    found = _found(mounts, _mount_id(folder), os.path.realpath(folder))
    if found is None:
        return FileSystem(UNKNOWN)
    mount_point, kind = found
    return FileSystem(kind, mount_point, kind in _LOCAL)


def _mount_id(folder: Path) -> str | None:
    """The number of a folder's mount; None where the kernel does not say it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # a folder that may be written in and not read
        return None
    try:
        text = (_PROC / "fdinfo" / str(descriptor)).read_text(encoding="utf-8")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    found = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return found[1] if found else None


def _found(mounts: str, mount_id: str | None, folder: str) -> tuple[str, str] | None:
    """Mount point and type, by the mount's number, else by the longest mount point above the folder.

    Args:
        mounts: lines such as `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`.
        mount_id: the first word of the line that is wanted.
        folder: without links.
    """
    longest = None
    for line in mounts.splitlines():
        place, separator, source = line.partition(" - ")
        words = place.split(" ")
        if not separator or len(words) < 5:
            continue
        mount_point, kind = _unescaped(words[4]), source.split(" ")[0]
        if mount_id is not None and words[0] == mount_id:
            return mount_point, kind
        is_above = folder == mount_point or folder.startswith(f"{mount_point.rstrip('/')}/")
        # Of equally long ones the last: it was mounted over the others.
        if is_above and (longest is None or len(mount_point) >= len(longest[0])):
            longest = mount_point, kind
    # Under a root of its own (chroot) a process may see other mounts and not the one that it works on.
    return longest if mount_id is None else None


def _unescaped(path: str) -> str:
    r"""A path as mountinfo writes it, where a space is `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
