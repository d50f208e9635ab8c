"""What only the AIO engine can show: the kernel's refusals, FUA's fallback, a kernel that takes less than it gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from errno import EAGAIN, EBADF, EIO, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from snapd import counters
from snapd.blockdev import aio
from snapd.blockdev.aio import AioEngine
from snapd.blockdev.arena import Arena
from snapd.blockdev.base import Done
from snapd.blockdev.device import open_device
from snapd.units import MIB
from tests.support.disks import attached, can_attach, can_mount, file_disk, mounted
from tests.support.engine_rig import Rig, on_disk, page
from tests.support.engine_rig import rig as make_rig

BLOCK = 4096


class UnknownFlag(AioEngine):
    """Asks for FUA with a flag that no kernel knows, and notes its flushes."""

    FUA = 1 << 30

    def __init__(self, arena: Arena, depth: int) -> None:
        super().__init__(arena, depth)
        self.flushed: set[Any] = set()  # a flush that finds no slot is offered again

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        self.flushed.add(arg)
        super().flush(device, done, arg)


class Kernel:
    """io_submit as the real one, but in answers that the test chooses: how many it takes, or an errno below 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[int]) -> None:
        self._real = aio._submit_call
        self.answers = answers
        monkeypatch.setattr(aio, "_submit_call", self.submit)

    def submit(self, number: int, context: int, count: int, pointers: int) -> int:
        answer = self.answers.pop(0) if self.answers else count
        if answer < 0:
            aio.ctypes.set_errno(-answer)
            return -1
        return self._real(number, context, min(answer, count), pointers)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with make_rig(on_disk(file_disk)) as made:
        yield made


def reads(rig: Rig, count: int) -> None:
    """Queue reads into memory of their own: they may complete before writes that were queued earlier are done."""
    where = rig.arena.allocate(BLOCK)
    for number in range(count):
        rig.engine.read(rig.device, where, BLOCK, number * BLOCK, rig.done, number)


def open_descriptors() -> list[str]:
    return [entry.name for entry in Path("/proc/self/fd").iterdir()]


def test_fua_falls_back_to_write_and_flush(rig: Rig) -> None:
    """Where the kernel refuses RWF_DSYNC a write with fua is a write with a flush behind it, from then on at once."""
    engine = UnknownFlag(Arena(MIB), 8)
    other = Rig(engine, rig.device, page())
    where = other.put(b"f" * BLOCK)
    for number in range(20):
        engine.write(rig.device, where, BLOCK, number * BLOCK, other.done, number, True)
    assert sorted(other.settle()) == [(number, 0) for number in range(20)]
    engine.close()
    assert engine.flushed == set(range(20))
    assert not rig.device.fua  # type: ignore[union-attr]
    assert rig.read_now(0, 20 * BLOCK) == b"f" * 20 * BLOCK


def test_fua_is_not_given_up_for_other_errors() -> None:
    """A write with fua that fails for a reason of its own keeps its error, and the next one is tried with fua."""
    with make_rig(on_disk(file_disk)) as rig:
        reader = open_device(rig.device.path, exclusive=False, read_only=True)
        rig.engine.write(reader, 0, BLOCK, 0, rig.done, "fua", True)
        assert rig.settle() == [("fua", EBADF)]
        assert reader.fua
        reader.close()


def test_one_bad_operation_in_a_batch(rig: Rig) -> None:
    """An operation that io_submit refuses (a write to a device opened for reading) fails alone, wherever it stands."""
    reader = open_device(rig.device.path, exclusive=False, read_only=True)
    where = rig.put(b"w" * BLOCK)
    for number in range(9):
        device = reader if number % 4 == 0 else rig.device
        rig.engine.write(device, where, BLOCK, number * BLOCK, rig.done, number)
    reads(rig, 3)
    assert sorted(rig.settle()) == sorted(
        [(number, EBADF if number % 4 == 0 else 0) for number in range(9)] + [(number, 0) for number in range(3)]
    )
    reader.close()


def test_kernel_takes_less_than_offered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation is handed over once, however few the kernel takes; the gate is asked before each call."""
    Kernel(monkeypatch, [1, 3, 2, 1])
    where = rig.put(b"p" * BLOCK)
    for number in range(5):
        rig.engine.write(rig.device, where, BLOCK, (10 + number) * BLOCK, rig.done, 10 + number)
    reads(rig, 5)
    rig.engine.kick()
    assert rig.asked == 3  # before those that carried writes: 1, 3 and 1 of them
    assert sorted(rig.settle()) == [(number, 0) for number in (*range(5), *range(10, 15))]
    assert rig.read_now(10 * BLOCK, 5 * BLOCK) == b"p" * 5 * BLOCK


def test_gate_that_shuts_between_two_submits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel did not take before the gate shut stays queued."""
    kernel = Kernel(monkeypatch, [2])
    for number in range(5):
        rig.engine.write(rig.device, 0, BLOCK, number * BLOCK, rig.done, number)
    monkeypatch.setattr(rig, "gate", lambda: bool(kernel.answers))
    rig.until(lambda: len(rig.results) == 2)
    assert sorted(rig.results) == [(0, 0), (1, 0)] and rig.engine.inflight == 3


def test_kernel_says_try_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN fails nothing: the next kick offers the same again."""
    Kernel(monkeypatch, [-EAGAIN, 2, -EAGAIN])
    reads(rig, 5)
    rig.engine.kick()
    assert rig.engine.reap() == 0 and rig.engine.inflight == 5
    rig.engine.kick()
    assert sorted(rig.settle()) == [(number, 0) for number in range(5)]


def test_disk_that_became_shorter(rig: Rig) -> None:
    """A transfer that the kernel cuts short is EIO, for that operation alone."""
    os.truncate(rig.device.path, 2 * BLOCK + 512)
    reads(rig, 4)
    assert sorted(rig.settle()) == [(0, 0), (1, 0), (2, EIO), (3, EIO)]


if can_mount():

    def test_full_file_system() -> None:
        """Real errors go to exactly the writes they belong to: those that do not fit any more get ENOSPC."""

        @contextmanager
        def nearly_full() -> Iterator[str]:
            with mounted("tmpfs", "size=1m") as directory, file_disk(directory) as path:
                yield path

        with make_rig(on_disk(nearly_full)) as rig:
            data = rig.put(b"d" * MIB)
            for number in range(4):
                rig.engine.write(rig.device, data, MIB // 2, number * MIB, rig.done, number)
            results = sorted(rig.settle())
            assert [error for _, error in results].count(0) >= 1
            assert {error for _, error in results} <= {0, EIO, ENOSPC} and results[-1][1] in (EIO, ENOSPC)
            reads(rig, 3)
            assert [error for _, error in rig.settle()] == [0, 0, 0]


if can_attach():

    def test_failing_block_device() -> None:
        """A block device that fails some of its blocks fails exactly those reads (a loop device whose file was cut)."""
        with (
            file_disk() as backing,
            attached(backing) as path,
            make_rig(on_disk(lambda: nullcontext(path))) as rig,
        ):
            os.truncate(backing, 2 * BLOCK)
            reads(rig, 4)
            assert sorted(rig.settle()) == [(0, 0), (1, 0), (2, EIO), (3, EIO)]


def test_no_context_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """io_setup beyond the machine's limit says where that limit is, and leaves no descriptor open."""
    before = open_descriptors()
    with pytest.raises(OSError, match="aio-max-nr"):
        AioEngine(Arena(MIB), 1 << 30)
    assert open_descriptors() == before


def test_unknown_ring(rig: Rig) -> None:
    """Where the completion ring is not as expected, completions are found by the system call alone."""
    rig.engine._ring = aio.UNKNOWN_RING  # type: ignore[union-attr]
    reads(rig, 5)
    assert sorted(rig.settle()) == [(number, 0) for number in range(5)]
    assert not rig.readable()


def test_an_operation_that_hangs_is_timed_however_many_others_went_by() -> None:
    """A write that the gate has held back counts from its own io_submit; reads in between from theirs."""
    now, gate = [10], [False]
    with make_rig(on_disk(file_disk)) as rig:
        words = page()
        engine = AioEngine(Arena(MIB), 8, gate=lambda: gate[0], words=words, clock=lambda: now[0])
        other = Rig(engine, rig.device, words)
        engine.write(rig.device, 0, BLOCK, 0, other.done, -1)
        for number in range(50):
            now[0] = number + 100
            engine.read(rig.device, 0, BLOCK, 0, other.done, number)
            other.until(lambda: bool(other.results))
            other.results.clear()
        gate[0], now[0] = True, 1000
        engine.kick()
        now[0] = 3000
        other.until(lambda: bool(other.results))
        engine.close()
    assert words[counters.BACKEND["cow", "write"] + counters.SUM] == 2000
    assert words[counters.BACKEND["cow", "read"]] == 50 and words[counters.BACKEND["cow", "read"] + counters.SUM] == 0


def test_the_oldest_operation_in_flight_is_known_for_each_backend() -> None:
    """From its io_submit until it is reaped: what is only queued does not count, nor what the gate holds."""
    now, gate = [500], [False]
    with make_rig(on_disk(file_disk)) as rig:
        words = page()
        engine = AioEngine(Arena(MIB), 8, gate=lambda: gate[0], words=words, clock=lambda: now[0])
        other = Rig(engine, rig.device, words)
        at = counters.BACKEND_OLDEST["cow"]
        engine.write(rig.device, 0, BLOCK, 0, other.done, 1)
        engine.kick()
        engine.publish()
        assert words[at] == 0 and engine.arguments() == [1]
        engine.read(rig.device, 0, BLOCK, 0, other.done, 2)
        engine.kick()
        now[0], gate[0] = 600, True
        engine.kick()
        engine.publish()
        assert words[at] == 500 and sorted(engine.arguments()) == [1, 2]
        other.until(lambda: len(other.results) == 2)
        engine.publish()
        assert words[at] == 0 and words[counters.BACKEND_OLDEST["origin"]] == 0
        engine.close()
