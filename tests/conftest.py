"""Tests run in the environment that stages run in; it has to be set before torch is imported."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from rlhf.launch.machine import starting_environment

os.environ.update(starting_environment("auto"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say what the tests ran on, after everything but the line that counts them."""
    result = yield
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    terminalreporter.write_line(f"Python {platform.python_version()} ({sys.executable}), {torch}")
    return result


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also tests that take minutes (marker `long`)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    for item in items:
        marker = item.get_closest_marker("long")
        if marker:
            item.add_marker(pytest.mark.skip(reason=f"long: {marker.args[0]} runs it"))


@pytest.fixture(autouse=True)
def _no_preload_log_is_left():
    """A launcher in a test's own process names the log of its forkserver in the environment.

    Every process that a later test starts would write there in place of its output.
    """
    yield
    os.environ.pop("RLHF_PRELOAD_LOG", None)
