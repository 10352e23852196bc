"""Imported once by the process that the runs of `one_process` are forked from."""

from __future__ import annotations

import gc
import importlib

from one_process import IMPORTS

gc.disable()  # for the imports: it saves a fifth of their time
for name in IMPORTS:
    importlib.import_module(name)
# Out of every fork's collections, so that they stay shared.
gc.collect()
gc.freeze()
gc.enable()
