"""A port on which a process that starts later can listen."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15_000  # services that people start by hand lie below, with few exceptions
_TRIES = 100


def free_port() -> int:
    """A TCP port that nobody listens on, and that the kernel gives to nobody by itself.

    Rank 0 of a training listens only after its imports, which take seconds. A port that the kernel chose
    (bind to 0) may by then be the near end of anybody's outgoing connection; one below its ephemeral
    range can only be taken by another listener.
    """
    low, high = _LOWEST, _lowest_ephemeral()
    if high - low < _TRIES:
        # Somebody gave the kernel nearly every port: then its own choice is as good as any.
        return _bound(0)
    for _ in range(_TRIES):
        # From the system's source, not from the seeded one: two runs with one seed may start side by side.
        port = random.SystemRandom().randrange(low, high)
        with contextlib.suppress(OSError):  # somebody has it
            return _bound(port)
    return _bound(0)


def _bound(port: int) -> int:
    """The port, if it can be bound on every address of this machine; 0: the one that the kernel chooses.

    Raises:
        OSError: somebody listens there.
    """
    with socket.socket() as probe:
        # Every address: that is where torch's store listens, and another's listener may be on one of them.
        probe.bind(("", port))
        return int(probe.getsockname()[1])


def _lowest_ephemeral() -> int:
    """The first port that the kernel gives to outgoing connections by itself; 32768 is Linux's default."""
    try:
        return int(_EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
