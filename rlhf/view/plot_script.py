"""Write the script that draws plots to standard output: a process of `report_library`."""

from __future__ import annotations

import sys
from typing import Any

import vl_convert

if __name__ == "__main__":
    # Its stub asks for the argument that its function has a default for.
    library: Any = vl_convert
    sys.stdout.buffer.write(library.javascript_bundle().encode())
