"""A server that is killed in the middle of its imports."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
