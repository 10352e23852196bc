"""Write the script that draws plots to standard output; `report_library` runs this in a process of its own."""

from __future__ import annotations

import sys

import vl_convert

if __name__ == "__main__":
    sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())
