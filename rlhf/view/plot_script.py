"""Write the script that draws plots to standard output: a process of `report_library`."""

from __future__ import annotations

import sys

import vl_convert

if __name__ == "__main__":
    sys.stdout.buffer.write(vl_convert.javascript_bundle(None).encode())
