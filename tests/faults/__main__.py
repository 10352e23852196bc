"""The long form: `python -m tests.faults kills=200 [loop=100] [seed=0] [folder=…]`, or `make test-faults
kills=200`.

Half of the kills (or all but `loop`) strike the boundaries of a small run, the others the whole loop. The
last line has the figures; exit code 1 when a bar is missed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.boundaries import suite
from tests.faults.loop import Victim, prepare

KILLS_OF_A_LIFE = 12


def main(arguments: dict[str, str]) -> int:
    """Run both parts; 1 when a bar is missed."""
    kills, seed, started = (
        int(arguments.get("kills", "200")),
        int(arguments.get("seed", "0")),
        time.monotonic(),
    )
    in_loop = int(arguments.get("loop", kills - kills // 2))
    with tempfile.TemporaryDirectory(dir=arguments.get("folder")) as name:
        folder = Path(name)
        tally = suite(folder / "small", kills - in_loop, seed)
        print(f"boundaries of a small run: {tally.line()}", flush=True)
        victim = Victim(folder / "loop", [], random.Random(seed), tally)
        victim.folder.mkdir()
        victim.overrides = prepare(victim.folder)
        victim.undisturbed()
        print(
            f"the whole loop: {victim.longest:.0f} s undisturbed, {victim.boundaries} boundaries", flush=True
        )
        while tally.kills < kills:
            victim.life(min(KILLS_OF_A_LIFE, kills - tally.kills))
            print(f"{time.monotonic() - started:6.0f} s  {tally.line()}", flush=True)
        print("\n".join(f"{mode:<24}{number:>5}" for mode, number in sorted(victim.modes.items())))
        again = sum("made again" in each for each in tally.missed)
        print(
            f"shards and checkpoints finished in the loop {victim.pieces}, lives in which one was "
            f"made again {again}"
        )
        print(f"slowest clean stop      {victim.slowest_stop:5.1f} s")
    print("\n".join([*tally.missed, tally.line()]))
    return tally.code()


if __name__ == "__main__":
    sys.exit(main(dict(argument.split("=", 1) for argument in sys.argv[1:])))
