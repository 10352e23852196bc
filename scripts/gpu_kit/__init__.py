"""The steps of `scripts/gpu_check.py`, a module each: `measure(kit)` adds one figure after another."""
