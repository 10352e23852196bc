"""How a benchmark takes a cost."""

from benchmarks.rows import Cost, Stopwatch, cost_in_a_process, memory_bytes

MEGABYTES = 2**20


def hold(size: int) -> Cost:
    """A process that has held so many bytes, and does no more."""
    watch = Stopwatch()
    held = bytearray(size)
    held[::4096] = b"\1" * len(held[::4096])
    del held
    return watch.cost()


def test_a_process_has_its_own_peak_and_not_that_of_who_started_it():
    ours = bytearray(300 * MEGABYTES)
    ours[::4096] = b"\1" * len(ours[::4096])
    assert memory_bytes("RssAnon") > 300 * MEGABYTES
    little = cost_in_a_process(hold, 0).peak_gigabytes * 1024
    much = cost_in_a_process(hold, 100 * MEGABYTES).peak_gigabytes * 1024
    assert little < 200
    assert 95 < much - little < 120, "what it gave back again counts"
    assert len(ours)
