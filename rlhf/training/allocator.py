"""How memory is taken from the operating system."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1
"""What an int can say: 2 GiB."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next tensors; for those that compute in CPU memory.

    glibc gives blocks of more than 32 MiB back when they are freed. A step takes the same ones over and over,
    and each time the system would clear their pages anew: a twentieth of the time, much of it on one core.

    Returns:
        Whether the C library took it: others than glibc do not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # Older ones refuse so large a threshold. The other setting alone would fix the threshold where it is.
    if mallopt(_M_MMAP_THRESHOLD, _LARGEST) != 1:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST) == 1)
