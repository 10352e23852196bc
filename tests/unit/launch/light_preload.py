"""Takes the place of `rlhf.launch.preload` in tests: a server without the heavy imports."""

import os

from rlhf.launch.server import become_server

become_server(os.environ["RLHF_PRELOAD_LOG"])
