"""What every engine promises: the AIO engine on every kind of disk to be had here, and the in-memory twin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from errno import EFAULT, EINVAL, EIO
from typing import Any

import pytest

from snapd import counters
from tests.support.engine_rig import Make, Rig, makers
from tests.support.engine_rig import rig as make_rig

BLOCK = 4096  # a multiple of every logical block
MAKERS = makers()


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Make:
    chosen: Make = request.param
    return chosen


@pytest.fixture
def rig(make: Make) -> Iterator[Rig]:
    with make_rig(make) as made:
        yield made


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK // 4)


def test_reads_what_was_written(rig: Rig) -> None:
    """A read finds the bytes of a write that was done, and zeros around them."""
    rig.write_now(2 * BLOCK, block(7))
    assert rig.read_now(BLOCK, 3 * BLOCK) == bytes(BLOCK) + block(7) + bytes(BLOCK)


def test_smallest_transfer(rig: Rig) -> None:
    """One logical block at the very end of the device, and at its begin, can be written and read."""
    size, unit = rig.device.size, rig.device.logical_block
    for offset in (0, size - unit):
        rig.write_now(offset, b"s" * unit)
        assert rig.read_now(offset, unit) == b"s" * unit


def test_large_transfer(rig: Rig) -> None:
    """A transfer of 1 MiB arrives whole."""
    data = b"".join(block(number) for number in range(256))
    rig.write_now(BLOCK, data)
    assert rig.read_now(BLOCK, len(data)) == data


@pytest.mark.parametrize("count", [1, 2, 16])
def test_gather(rig: Rig, count: int) -> None:
    """Pieces scattered in memory become one run on the device, in the order given."""
    wheres = [rig.put(block(number)) for number in range(count)][::-1]
    rig.engine.write_gather(rig.device, wheres, BLOCK, 3 * BLOCK, rig.done, "gather")
    assert rig.settle() == [("gather", 0)]
    assert rig.read_now(3 * BLOCK, count * BLOCK) == b"".join(block(number) for number in reversed(range(count)))


def test_gather_of_too_many_or_none(rig: Rig) -> None:
    """17 pieces, or none, are refused and nothing is written."""
    where = rig.put(block(1))
    rig.engine.write_gather(rig.device, [where] * 17, BLOCK, 0, rig.done, "many")
    rig.engine.write_gather(rig.device, [], BLOCK, 0, rig.done, "none")
    assert rig.settle() == [("many", EINVAL), ("none", EINVAL)]
    assert rig.read_now(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("wrong", ["offset", "length", "where"])
@pytest.mark.parametrize("operation", ["read", "write", "gather"])
def test_misaligned(rig: Rig, operation: str, wrong: str) -> None:
    """An offset, length or address off the logical block fails that operation alone, even if the disk would take it."""
    where = rig.put(block(1) * 2)
    off = {name: rig.device.logical_block // 2 if name == wrong else 0 for name in ("offset", "length", "where")}
    arguments = (where + off["where"], BLOCK + off["length"], off["offset"], rig.done, "bad")
    rig.engine.read(rig.device, where, BLOCK, BLOCK, rig.done, "good")
    if operation == "gather":
        rig.engine.write_gather(rig.device, [arguments[0]], *arguments[1:])
    else:
        getattr(rig.engine, operation)(rig.device, *arguments)
    rig.engine.read(rig.device, where, BLOCK, BLOCK, rig.done, "too")
    assert sorted(rig.settle()) == [("bad", EINVAL), ("good", 0), ("too", 0)]
    assert rig.read_now(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("operation", ["read", "write", "gather"])
def test_out_of_range(rig: Rig, operation: str) -> None:
    """A transfer that reaches beyond the end fails alone; nothing of it happens and a file does not grow."""
    where, offset = rig.put(block(1) * 2), rig.device.size - BLOCK
    if operation == "gather":
        rig.engine.write_gather(rig.device, [where, where], BLOCK, offset, rig.done, "bad")
    else:
        getattr(rig.engine, operation)(rig.device, where, 2 * BLOCK, offset, rig.done, "bad")
    rig.engine.write(rig.device, where, BLOCK, 0, rig.done, "good")
    assert sorted(rig.settle()) == [("bad", EIO), ("good", 0)]
    assert rig.read_now(offset, BLOCK) == bytes(BLOCK)


def test_outside_the_arena(rig: Rig) -> None:
    """Memory beyond the arena is refused, never touched."""
    end = len(rig.arena.view)
    rig.engine.read(rig.device, end - BLOCK, 2 * BLOCK, 0, rig.done, "read")
    rig.engine.write(rig.device, end, BLOCK, 0, rig.done, "write")
    rig.engine.write_gather(rig.device, [0, end], BLOCK, 0, rig.done, "gather")
    assert rig.settle() == [("read", EFAULT), ("write", EFAULT), ("gather", EFAULT)]


def test_refused_without_a_kick(rig: Rig) -> None:
    """What is refused is told by the next reap, not inside the call, and the descriptor wakes the loop for it."""
    rig.engine.read(rig.device, 1, BLOCK, 0, rig.done, "bad")
    assert rig.results == [] and rig.engine.inflight == 1 and rig.readable()
    assert rig.engine.reap() == 1
    assert rig.results == [("bad", EINVAL)] and rig.engine.inflight == 0 and not rig.readable()


def test_more_than_depth(make: Make) -> None:
    """Five times as many operations as fit all complete, each with its own data."""
    with make_rig(make, depth=8) as rig:
        wheres = [rig.put(block(number)) for number in range(40)]
        for number, where in enumerate(wheres):
            rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, number)
        assert rig.engine.inflight == 40
        assert sorted(rig.settle()) == [(number, 0) for number in range(40)]
        fresh = [rig.arena.allocate(BLOCK) for _ in range(40)]
        for number, where in enumerate(fresh):
            rig.engine.read(rig.device, where, BLOCK, number * BLOCK, rig.done, number)
            rig.engine.flush(rig.device, rig.done, 100 + number)
        assert len(rig.settle()) == 80
        assert [rig.get(where, BLOCK) for where in fresh] == [block(number) for number in range(40)]


def test_nothing_happens_before_the_kick(rig: Rig) -> None:
    """Operations wait for the kick; reap finds nothing."""
    rig.engine.read(rig.device, rig.put(block(1)), BLOCK, 0, rig.done, "read")
    assert rig.engine.reap() == 0 and rig.engine.inflight == 1
    assert rig.settle() == [("read", 0)]


def test_done_may_start_more(rig: Rig) -> None:
    """A done may queue the next operation, as a state machine does."""
    where = rig.put(block(5))

    def step(arg: Any, error: int) -> None:
        rig.done(arg, error)
        if arg < 50:
            rig.engine.write(rig.device, where, BLOCK, arg * BLOCK, step, arg + 1)

    step(0, 0)
    assert rig.settle() == [(number, 0) for number in range(51)]


def test_shut_gate_holds_writes_only(rig: Rig) -> None:
    """While the gate is shut writes of both kinds stay queued; reads and flushes complete; open, the writes follow."""
    rig.open = False
    where = rig.put(block(3))
    rig.engine.write(rig.device, where, BLOCK, 0, rig.done, "write")
    rig.engine.write_gather(rig.device, [where], BLOCK, BLOCK, rig.done, "gather")
    rig.engine.write(rig.device, where, BLOCK, 2 * BLOCK, rig.done, "fua", True)
    fresh = rig.arena.allocate(3 * BLOCK)
    rig.engine.read(rig.device, fresh, 3 * BLOCK, 0, rig.done, "read")
    rig.engine.flush(rig.device, rig.done, "flush")
    rig.until(lambda: len(rig.results) == 2)
    assert sorted(rig.results) == [("flush", 0), ("read", 0)]
    assert rig.get(fresh, 3 * BLOCK) == bytes(3 * BLOCK) and rig.engine.inflight == 3
    rig.results.clear()
    rig.open = True
    assert sorted(rig.settle()) == [("fua", 0), ("gather", 0), ("write", 0)]
    assert rig.read_now(0, 3 * BLOCK) == block(3) * 3


def test_held_writes_leave_room_for_reads(make: Make) -> None:
    """More writes than fit, held by the gate, keep no read or flush from running."""
    with make_rig(make, depth=8) as rig:
        rig.open = False
        where = rig.put(block(9))
        for number in range(30):
            rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, "write")
        for _ in range(30):
            rig.engine.read(rig.device, where, BLOCK, 0, rig.done, "read")
            rig.engine.flush(rig.device, rig.done, "flush")
        rig.until(lambda: rig.engine.inflight == 30)
        assert "write" not in dict(rig.results)
        rig.results.clear()
        rig.open = True
        assert rig.settle() == [("write", 0)] * 30


def test_gate_is_asked_once_and_only_for_writes(rig: Rig) -> None:
    """One kick asks the gate once for all its writes; without writes not at all."""
    where = rig.put(block(1))
    rig.engine.read(rig.device, where, BLOCK, 0, rig.done, "read")
    rig.engine.kick()
    assert rig.asked == 0
    for number in range(5):
        rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, "write")
    rig.engine.kick()
    assert rig.asked == 1
    assert len(rig.settle()) == 6 and rig.asked == 1


def test_fua_and_flush(rig: Rig) -> None:
    """Writes with fua and flushes complete without an error and in any mixture."""
    where = rig.put(block(4))
    for number in range(8):
        rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, ("write", number), number % 2 == 0)
        rig.engine.flush(rig.device, rig.done, ("flush", number))
    expected = [((kind, number), 0) for kind in ("flush", "write") for number in range(8)]
    assert sorted(rig.settle()) == expected
    assert rig.read_now(0, 8 * BLOCK) == block(4) * 8


def test_abort_queued(rig: Rig) -> None:
    """What was queued fails at once with the given error and does not happen; what was handed over completes."""
    where, other = rig.put(block(1)), rig.put(block(2))
    rig.engine.write(rig.device, where, BLOCK, 0, rig.done, "handed")
    rig.engine.kick()
    rig.open = False
    rig.engine.write(rig.device, other, BLOCK, BLOCK, rig.done, "held", True)
    rig.engine.write_gather(rig.device, [other], BLOCK, BLOCK, rig.done, "gather")
    rig.engine.kick()
    rig.engine.read(rig.device, other, BLOCK, BLOCK, rig.done, "read")
    rig.engine.flush(rig.device, rig.done, "flush")
    rig.engine.abort_queued(EIO)
    assert sorted(rig.results) == [("flush", EIO), ("gather", EIO), ("held", EIO), ("read", EIO)]
    rig.results.clear()
    assert rig.settle() == [("handed", 0)]
    rig.open = True
    assert rig.read_now(0, 2 * BLOCK) == block(1) + bytes(BLOCK)


def test_abort_queued_beyond_depth(make: Make) -> None:
    """Operations that waited for a slot are aborted too, each once."""
    with make_rig(make, depth=8) as rig:
        rig.open = False
        where = rig.put(block(1))
        for number in range(20):
            rig.engine.write(rig.device, where, BLOCK, 0, rig.done, number)
            rig.engine.write_gather(rig.device, [where], BLOCK, 0, rig.done, 100 + number)
            rig.engine.read(rig.device, where, BLOCK, 0, rig.done, 200 + number)
            rig.engine.flush(rig.device, rig.done, 300 + number)
        rig.engine.abort_queued(EIO)
        assert sorted(rig.results) == [(base + number, EIO) for base in (0, 100, 200, 300) for number in range(20)]
        assert rig.engine.inflight == 0


def test_descriptor(rig: Rig) -> None:
    """The descriptor is readable when something can be reaped, and not any more when all was."""
    assert not rig.readable()
    for number in range(3):
        rig.engine.read(rig.device, rig.put(block(1)), BLOCK, number * BLOCK, rig.done, number)
    rig.engine.kick()
    rig.until(lambda: rig.engine.inflight == 0)
    rig.engine.reap()  # a signal that came after its completion was seen
    assert len(rig.results) == 3 and not rig.readable()


def test_drain(rig: Rig) -> None:
    """Drain waits for what runs and what follows from it, and leaves what the gate holds."""
    where = rig.put(block(1))

    def again(arg: Any, error: int) -> None:
        rig.done(arg, error)
        rig.engine.read(rig.device, where, BLOCK, 0, rig.done, "second")

    rig.open = False
    rig.engine.write(rig.device, where, BLOCK, 0, rig.done, "held")
    rig.engine.read(rig.device, where, BLOCK, 0, again, "first")
    rig.engine.drain()
    assert rig.results == [("first", 0), ("second", 0)] and rig.engine.inflight == 1


def test_close_ends_what_runs(rig: Rig) -> None:
    """Close returns only when no transfer touches memory any more; closing twice is harmless."""
    where = rig.put(bytes(64 * BLOCK))
    for number in range(64):
        rig.engine.read(rig.device, where + number * BLOCK, BLOCK, number * BLOCK, rig.done, number)
    rig.engine.kick()
    rig.engine.close()
    rig.engine.close()
    assert rig.results == []


# ---- counting


def counted(rig: Rig, operation: str) -> int:
    """How many of these were counted; the histogram must agree."""
    row = counters.BACKEND["cow", operation]
    histogram = rig.words[row + counters.HISTOGRAM : row + counters.ROW].tolist()
    assert sum(histogram) == rig.words[row]
    return rig.words[row]


def test_every_operation_is_counted_once_in_its_row(rig: Rig) -> None:
    """Reads, writes of all kinds and flushes, mixed in one turn and one by one; none of them as the origin's."""
    where = rig.put(block(1))
    for number in range(20):
        rig.engine.read(rig.device, where, BLOCK, 0, rig.done, "read")
        if number % 2:
            rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, "write")
        if number % 5 == 0:
            rig.engine.flush(rig.device, rig.done, "flush")
    rig.settle()
    rig.engine.write_gather(rig.device, [where] * 2, BLOCK, 0, rig.done, "gather")
    rig.settle()
    rig.read_now(0, BLOCK)
    assert [counted(rig, operation) for operation in counters.BACKEND_OPERATIONS] == [21, 11, 4]
    assert not any(rig.words[counters.BACKEND["origin", operation]] for operation in counters.BACKEND_OPERATIONS)


def test_what_waits_for_a_slot_or_the_gate_is_timed_from_the_kernels_having_it(make: Make) -> None:
    """A shut gate is a stall, not a slow disk: the time of writes it held back is that of the write alone."""
    with make_rig(make, depth=4) as rig:
        where = rig.put(block(1))
        rig.open = False
        for number in range(6):
            rig.engine.write(rig.device, where, BLOCK, number * BLOCK, rig.done, "write")
        for _ in range(3):  # reads go, and take nothing of the writes' time with them
            rig.engine.read(rig.device, where, BLOCK, 0, rig.done, "read")
            rig.until(lambda: bool(rig.results))
            rig.results.clear()
        begin = time.monotonic_ns()
        rig.readable(300)  # nothing comes: the writes are held
        held = time.monotonic_ns() - begin
        rig.open = True
        began = time.monotonic_ns()
        assert len(rig.settle()) == 6
        took = time.monotonic_ns() - began
        assert counted(rig, "write") == 6
        assert rig.words[counters.BACKEND["cow", "write"] + counters.SUM] <= 6 * took < 6 * took + held


def test_what_never_reached_the_device_is_not_counted(rig: Rig) -> None:
    """Refused before the kernel saw it, or aborted while it was queued: the disk had no part in it."""
    rig.engine.read(rig.device, 1, BLOCK, 0, rig.done, "misaligned")
    rig.engine.flush(rig.device, rig.done, "aborted")
    rig.engine.abort_queued(EIO)
    assert sorted(rig.settle()) == [("aborted", EIO), ("misaligned", EINVAL)]
    assert [counted(rig, operation) for operation in counters.BACKEND_OPERATIONS] == [0, 0, 0]


def test_a_device_of_no_kind_is_not_counted(rig: Rig) -> None:
    """Tools open devices too: what they do moves no word."""
    rig.device.read_row = rig.device.write_row = 0
    rig.write_now(0, block(1))
    rig.read_now(0, BLOCK)
    assert not any(rig.words.tolist())
