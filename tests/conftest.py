"""Tests run in the environment that stages run in; it has to be set before torch is imported."""

import os

from rlhf.launch.machine import starting_environment

os.environ.update(starting_environment("auto"))
