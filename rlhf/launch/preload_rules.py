"""Imported once by the process that a look's calls of rules are forked from: what these need, and no more.

A look takes half a second, in which `rlhf.launch.preload_light` would not be done with its imports.
"""

from __future__ import annotations

import contextlib
import importlib

from rlhf.launch.server import become_server

MODULES = ("rlhf.preflight.rules",)

become_server()

for name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(name)
