"""Every error a user can meet.

RlhfError
├── UserError            exit 2: the input or the request is wrong
│   ├── ConfigError      a config value, alone or with others
│   ├── DataError        a file of prompts, preferences or candidates
│   ├── ModelError       a model, tokenizer or chat template
│   │   └── TemplateRefuses  a chat template takes no conversation of this form
│   ├── RunChanged       a finished stage was made with other settings or inputs
│   └── RunInUse         another driver holds the run folder
├── WorkerFailed         exit 1: a stage process died or raised
└── Stopped              exit 130 or 143: a signal asked us to stop

A message says what is wrong, where, the value found, and every way out.
"""

from __future__ import annotations

import re

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


def printable(text: str) -> str:
    """Text as a terminal or a log may have it: control characters escaped but for line ends, no password in a URL."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), _CREDENTIALS.sub("***@", text))


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
    """A chat template takes no conversation of this form: a system turn, say, or two turns of one role in a row."""


class RunChanged(UserError):
    """A stage on disk was made with other settings or inputs than are asked for now."""


class RunInUse(UserError):
    """Another driver works on this run folder."""


class WorkerFailed(RlhfError):
    """A stage process died or raised something that is not the user's fault."""


class Stopped(RlhfError):
    """A signal asked the driver to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; the same command goes on from here")
        self.exit_code = 128 + signal_number


USER_ERRORS: dict[str, type[UserError]] = {
    cls.__name__: cls for cls in (UserError, ConfigError, DataError, ModelError, TemplateRefuses, RunChanged, RunInUse)
}
