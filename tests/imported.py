"""Imported once by the process that test ranks and commands are forked from (`tests.forked`): all that a run
imports."""

import gc
import sys

# The first two are what a run's own servers import, and they import nearly everything else.
import rlhf.launch.preload
import rlhf.launch.preload_light
import rlhf.view.build_report
import tests.stage_runner

# A server of a run that is forked from here imports them again, in a moment: by that it becomes one.
del sys.modules["rlhf.launch.preload"], sys.modules["rlhf.launch.preload_light"]

# Out of the collections of all that is forked: an object that is looked at is a page that is copied.
gc.collect()
gc.freeze()

__all__ = ["rlhf", "tests"]
