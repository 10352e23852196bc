"""Every error a user can meet.

RlhfError
├── UserError            exit 2: the input or the request is wrong
│   ├── ConfigError      a config value, alone or with others
│   ├── DataError        a file of prompts, preferences or candidates
│   ├── ModelError       a model, tokenizer or chat template
│   │   ├── TemplateRefuses  a chat template takes no conversation of this form
│   │   │   ├── TemplateChanges     it writes an answer as another text
│   │   │   └── SpellsSpecialToken  a content would become a control token
│   │   └── TemplateHangs    a chat template does not come to an end
│   ├── RunChanged       a finished stage was made with other settings or inputs, or is damaged
│   │   └── FilesRemoved  files of it were removed to make room, and have to be read
│   ├── StorageError     a folder cannot be written
│   │   └── DiskFull     a disk is full, or a quota or limit is reached
│   ├── SmallerBatches   memory ran out; the driver starts the stage again, with fewer tokens at a time
│   └── RunInUse         another driver holds the run folder
├── WorkerFailed         exit 1: a stage process died or raised
└── Stopped              exit 129, 130 or 143: a signal asked us to stop

A message says what is wrong, where, the value found, and every way out.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Control characters but for tab and line feed, line separators, marks that turn the direction of writing or
# that nobody sees, and lone surrogates, which no encoding can write.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


def printable(text: str) -> str:
    """Text fit for a terminal or a log: control characters escaped but line ends, no password in a URL."""
    return visible(_CREDENTIALS.sub("***@", text))


def visible(text: str) -> str:
    """Text with all that would act on a terminal, turn the direction of writing or be seen by nobody as
    escapes; line ends stay.
    """
    return _UNSEEN.sub(_escape, text)


def one_line(text: object) -> str:
    r"""Text from outside, fit for a place in a line of ours: as `printable`, and line ends are escaped too.

    A line of its own could pass for one of ours. What goes into a message by `!r` needs this no more.

    Example:
        one_line("mine" + "\n" + "✓ all is well") gives r"mine\n✓ all is well"
    """
    without_credentials = _CREDENTIALS.sub("***@", str(text))
    shown = []
    for character in without_credentials:
        if not character.isprintable():
            character = character.encode("unicode_escape").decode()
        shown.append(character)
    return "".join(shown)


def _escape(match: re.Match[str]) -> str:
    escaped = match[0].encode("unicode_escape")
    return escaped.decode()


class RlhfError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code = 1


class UserError(RlhfError):
    """The user's input or request is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A config value is wrong, alone or together with others."""


class DataError(UserError):
    """A file of prompts, preferences or candidates cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or chat template cannot be used."""


class TemplateRefuses(ModelError):
    """A chat template takes no conversation of this form, such as two turns of one role in a row."""

    # What rows that are dropped for it are counted as.
    reason = "refused_by_template"


class TemplateChanges(TemplateRefuses):
    """A chat template writes an answer as another text, such as one without its reasoning."""

    reason = "changed_by_template"


class SpellsSpecialToken(TemplateRefuses):
    """A content spells a special token, and the tokenizer cannot read it as text."""

    reason = "spells_special_token"


class TemplateHangs(ModelError):
    """A chat template does not come to an end."""


class RunChanged(UserError):
    """A stage on disk was made with other settings or inputs than are asked for now, or is damaged."""


class FilesRemoved(RunChanged):
    """Files of a finished stage were removed to make room, and something has to read them."""


class StorageError(UserError):
    """A folder cannot be written, or a disk is full."""


class DiskFull(StorageError):
    """A disk is full, a quota is used up, or a file is larger than this user may write."""


class SmallerBatches(UserError):
    """Memory ran out in a stage, and its next attempt will take fewer tokens at a time."""


class RunInUse(UserError):
    """Another driver works on this run folder."""


class WorkerFailed(RlhfError):
    """A stage process died or raised something that is not the user's fault."""


class Stopped(RlhfError):
    """A signal asked the driver to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; the same command goes on from here")
        # A shell's convention: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM.
        self.exit_code = 128 + signal_number


# EFBIG is a limit set by `ulimit -f`: the disk has room, this user has not.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_GB = 1.0
"""A file that did not fit has left its beginning: little is free then."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def writing(path: Path | None = None) -> Iterator[None]:
    """Make a StorageError, with the ways out, of a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_FORBIDDEN):
            raise
        if path is None:
            path = Path(os.fsdecode(error.filename or "."))
        path = path.absolute()
        if error.errno in _FULL:
            raise disk_full(path, os.strerror(error.errno)) from error
        folder = _folder_of(path)
        raise StorageError(
            f"{path} cannot be written: {error.strerror} ({_free_gb(folder):.1f} GB are free there). Get the "
            f"right to write in {folder}, remove what is in the way, or choose another folder; then the same "
            "command goes on from what is finished."
        ) from error


def disk_full(path: Path, why: str) -> DiskFull:
    """The error of a file or folder for which there is no room, with the ways out."""
    folder = _folder_of(path)
    return DiskFull(
        f"{path} cannot be written: {why} ({_free_gb(folder):.1f} GB are free there, on the file system of "
        f"{mount_of(folder)}). Make room, or raise the quota or the limit on file sizes (ulimit -f); then "
        "the same command goes on from what is finished."
    )


@contextmanager
def writing_by_libraries(folder: Path) -> Iterator[None]:
    """Make a DiskFull of what libraries raise in words of their own when they write into a full folder.

    Safetensors has "No space left on device (os error 28)" in an error that is no OSError, and torch no more
    than that its writer failed. Such a word counts where that folder has no room, or where a quota or limit
    says so: other places may be full too, such as /dev/shm.
    """
    try:
        yield
    except (RlhfError, OSError):
        raise
    except Exception as error:
        why = _full_in_words(str(error), folder)
        if why is None:
            raise
        raise disk_full(folder / "…", why) from error


def _full_in_words(message: str, folder: Path) -> str | None:
    for number in (errno.EDQUOT, errno.EFBIG):
        if f"(os error {number})" in message or os.strerror(number) in message:
            return os.strerror(number)
    words = (f"(os error {errno.ENOSPC})", os.strerror(errno.ENOSPC), "PytorchStreamWriter failed writing")
    is_said = any(word in message for word in words)
    if is_said and _free_gb(_folder_of(folder)) < _NO_ROOM_GB:
        return os.strerror(errno.ENOSPC)
    return None


def _folder_of(path: Path) -> Path:
    """The nearest folder that is there: that of a file may be what could not be made."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _free_gb(folder: Path) -> float:
    return shutil.disk_usage(folder).free / 1e9


def mount_of(path: Path) -> Path:
    """Where the file system that holds a path is mounted."""
    place = path.absolute()
    while not os.path.ismount(place):
        place = place.parent
    return place


# A worker sends its error to the driver as a name and a message; this gives the driver the class again.
USER_ERRORS: dict[str, type[UserError]] = {
    error_type.__name__: error_type
    for error_type in (
        UserError,
        ConfigError,
        DataError,
        ModelError,
        TemplateRefuses,
        TemplateChanges,
        SpellsSpecialToken,
        TemplateHangs,
        RunChanged,
        FilesRemoved,
        StorageError,
        DiskFull,
        SmallerBatches,
        RunInUse,
    )
}
