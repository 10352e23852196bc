"""The folder for temporary files: refused where it cannot be used, under a short name where its own is long.

Processes talk over sockets that lie there, and the system takes no more than 107 bytes for the path of a
socket.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

from rlhf.errors import ConfigError

# Python looks at them in this order.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")
LONGEST = 107 - 48
"""Bytes of a folder's path: the longest that is put behind it is /UUID, of vLLM's sockets."""
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
# `multiprocessing` removes its own temporary folder at -100, and needs the short name for that.
_AFTER_MULTIPROCESSING = -200


def prepare_temporary_folder() -> None:
    """Make sure of the folder for temporary files, for this process and all that it starts.

    Raises:
        ConfigError: a variable names none that can be used, or none can be used at all.
    """
    for variable in _VARIABLES:
        if os.environ.get(variable):
            _check(variable, os.environ[variable])
            break
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(
            f"No folder for temporary files can be used ({error.strerror or error}). Make room in /tmp, or "
            "set TMPDIR to a folder that can be written."
        ) from None
    if len(os.fsencode(folder)) <= LONGEST:
        return
    place = _short_place(folder)
    Finalize(None, shutil.rmtree, args=(place,), exitpriority=_AFTER_MULTIPROCESSING)
    # A name, not another folder: large temporary files stay where the person wants them.
    short = Path(place) / "tmp"
    short.symlink_to(folder)
    os.environ["TMPDIR"] = str(short)
    # Python remembers what it has found once.
    tempfile.tempdir = None


def _check(variable: str, folder: str) -> None:
    # Python would take another folder, and say nothing.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise ConfigError(
            f"{variable}={folder}: temporary files cannot be written there ({error.strerror}). Make that "
            f"folder, get the right to write in it or make room, set {variable} to another one, or unset it."
        ) from None


def _short_place(folder: str) -> str:
    """A new folder whose path is short."""
    for place in _SHORT_PLACES:
        try:
            return tempfile.mkdtemp(prefix="rlhf-", dir=place)
        except OSError:
            continue
    raise ConfigError(
        f"TMPDIR={folder}: the path has {len(os.fsencode(folder))} bytes, and sockets that lie there may "
        f"have 107 with their names. Set TMPDIR to a folder whose path has at most {LONGEST} bytes."
    )
