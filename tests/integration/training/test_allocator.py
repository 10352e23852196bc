"""Freed memory stays with a process that asks for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TAKE_AND_FREE = """
import resource, sys, torch
from rlhf.training.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints how many pages the system had to hand out for the same 64 MiB, 20 times."""


def pages_taken(word):
    command = [sys.executable, "-c", TAKE_AND_FREE, word]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this glibc refuses so large a threshold")
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_most_pages_are_taken_once():
    # Now and then a small object lies in the way of a large one, so that not every page is met again.
    assert pages_taken("keep") < pages_taken("plain") / 2
