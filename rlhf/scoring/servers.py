"""What all judges behind a server have in common: the key, which troubles may pass, what is quoted."""

from __future__ import annotations

import os

from rlhf.errors import ConfigError, one_line

_SHOWN_CHARS = 400
"""How much of a server's answer an error quotes."""
API_KEY = "RLHF_JUDGE_API_KEY"
"""The environment variable with the server's key, sent as a bearer token and written nowhere."""


def key_in(variable: str = API_KEY) -> str:
    """The key that an environment variable holds, "" for none.

    Raises:
        ConfigError: no header can hold it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        # At the first request the HTTP library would refuse it too, and show it.
        problem = "holds characters that no HTTP header takes"
        raise ConfigError(f"{variable}: {problem}. Set the variable anew.")
    return key


def quoted(text: str, key: str) -> str:
    """The beginning of a server's answer in one line, as a log may have it."""
    # Servers may repeat a request's headers in their errors. NUL stands in for no key: an empty text would
    # be found between any two characters.
    words = " ".join(text.replace(key or "\0", "***").split())
    return one_line(words[:_SHOWN_CHARS])


def may_pass(status_code: int) -> bool:
    """Whether a server that answers so may answer otherwise in a moment: time-outs, overload, its own
    failures.
    """
    return status_code >= 500 or status_code in (408, 429)
