"""A folder in memory where there is one: most of the time of these tests would be a disk's fsync."""

import os
import tempfile
from pathlib import Path

import pytest

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def memory():
    """An empty folder."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        yield Path(folder)
