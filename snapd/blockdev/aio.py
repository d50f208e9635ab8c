"""The engine on Linux AIO: io_setup, io_submit, io_getevents and an eventfd, through ctypes.

    read, write, ...    pack an iocb, put its address on a list        (no system call)
    kick                one io_submit for all of them
    reap                one io_getevents for all that has completed; done(arg, error) for each

An operation is a *slot*: a number that indexes its iocb, its iovecs, its ``done``, ``arg`` and expected result;
the completion carries it back. No object is made for an operation that finds a free slot.

Two lanes, writes and the rest, each with its own slots and its own queue behind them: writes that a shut gate
holds back take nothing from reads and flushes. In a batch writes come first, next after the gate was looked at.

A short transfer is EIO: O_DIRECT is cut short by the end of the device (checked before) or by a failing medium,
and asking for the rest would only find that failure's number. Alignment and range are checked here because the
page cache accepts what O_DIRECT refuses, and a regular file would grow: EINVAL and EIO, by the next ``reap``.

The kernel signals the eventfd once for each completion, after the completion can be seen. ``reap`` keeps the
difference *owed* = reaped - read from the eventfd: while that is positive the eventfd is (or will be) readable
for nothing and is read; were it negative, a wake-up would have been swallowed, so reap goes round again.

Each operation is counted and timed, from the io_submit that took it to the reap that found it, with one clock a
kick and one a reap. A slot remembers its kick, a list that holds its time once it has been, and its device's row of the
counters page. What completes together and was handed over together is counted together (what that costs:
docs/performance.md).

What was found on Linux 6.18, 6.1 alike by source: AIO FDSYNC and RWF_DSYNC work on ext4, tmpfs, loop and block
devices; a kernel or file system that refuses RWF_DSYNC answers EOPNOTSUPP (EINVAL before 4.13), and the write
is repeated as a write and a flush. AIO on a file that is not open with O_DIRECT is done inside io_submit.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from errno import EAGAIN, EBADE, EFAULT, EINVAL, EIO, EOPNOTSUPP
from struct import Struct
from typing import Any

from snapd import counters
from snapd.blockdev.arena import Arena
from snapd.blockdev.base import Done
from snapd.clock import Clock, boottime
from snapd.counters import BUCKETS, HISTOGRAM, SUM

SETUP, DESTROY, SUBMIT, GETEVENTS = (206, 207, 209, 208) if platform.machine() == "x86_64" else (0, 1, 2, 4)
"""System call numbers: x86_64's own, and the generic ones of aarch64 and riscv64."""

PREAD, PWRITE, FDSYNC, PWRITEV = 0, 1, 3, 8
RWF_DSYNC = 2

IOCB_BYTES = 64
IOCB = Struct("<QIIHhIQQqQII")  # data, key, rw_flags, opcode, priority, fd, address, length, offset, 0, flags, eventfd
IOCB_FLAG_RESFD = 1
CALL = Struct("<IHhIQQq")  # the part of an iocb that differs from call to call: rw_flags ... offset
CALL_AT = 12
IOVEC = Struct("<QQ")
MAX_PIECES = 16
EVENT = Struct("<QQqq")  # data, iocb, result, result2

HEAD, TAIL, MAGIC = 2, 3, 4  # words of the completion ring that io_setup maps: empty when head == tail
RING_MAGIC = 0xA10A10A1
UNKNOWN_RING = (0, 0, 0, 1)
"""Stands for a ring that is not as we know it: taken to be never empty, at one more system call a reap."""
CLOSED_RING = (0, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(*argtypes: Any) -> Callable[..., int]:
    """Return ``syscall`` for a number and arguments of these types; -1 is an error, in ctypes.get_errno()."""
    function = _libc["syscall"]  # a new object for each set of types
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long, *argtypes]
    return function


_setup_call = _system_call(ctypes.c_long, ctypes.c_void_p)
_destroy_call = _system_call(ctypes.c_ulong)
_submit_call = _system_call(ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
_getevents_call = _system_call(ctypes.c_ulong, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _memory(size: int) -> tuple[memoryview, int]:
    """Return zeroed memory and its address."""
    memory = bytearray(size)
    return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _nobody(arg: Any, error: int) -> None:
    """The ``done`` of a slot that was never used."""


def _setup(depth: int) -> int:
    context = ctypes.c_ulong(0)
    if _setup_call(SETUP, depth, ctypes.addressof(context)):
        error = ctypes.get_errno()
        raise OSError(error, f"io_setup of {depth}: {os.strerror(error)} (see /proc/sys/fs/aio-max-nr)")
    return context.value


class AioEngine:
    """See the module and ``base.Engine``. ``depth`` operations run at most, half of them writes.

    gate: asked once immediately before each io_submit that would carry writes; False keeps them queued.
    words: the counters page; without one, what is counted is not seen.
    """

    FUA = RWF_DSYNC

    def __init__(
        self,
        arena: Arena,
        depth: int = 512,
        gate: Callable[[], bool] = lambda: True,
        words: memoryview | None = None,
        clock: Clock = boottime,
    ) -> None:
        self.arena = arena
        self.on_conflict: Callable[[], None] = lambda: None
        self._words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q") if words is None else words
        self._clock = clock
        self._base = arena.address
        self._limit = arena.size
        self._gate = gate
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._owed = 0
        self._handed = 0
        try:
            self._context = _setup(depth)
        except OSError:
            os.close(self._eventfd)
            raise
        self._make_slots(depth)
        ring = memoryview((ctypes.c_uint * 8).from_address(self._context)).cast("B").cast("I")
        self._ring: Sequence[int] = ring if ring[MAGIC] == RING_MAGIC else UNKNOWN_RING

    def _make_slots(self, depth: int) -> None:
        half = depth // 2
        self._free = list(range(half))
        self._free_writes = list(range(half, depth))
        self._slots = depth
        self._queue: list[int] = []  # iocb addresses, not handed over
        self._write_queue: list[int] = []
        self._waiting: deque[tuple[Any, ...]] = deque()  # calls that found no slot
        self._waiting_writes: deque[tuple[Any, ...]] = deque()
        self._refused: list[tuple[Done, Any, int]] = []  # what failed before or in io_submit
        self._kick = [0]  # the next one that takes reads and flushes
        self._write_kick = [0]  # ... and writes, which a shut gate may hold back
        self._calls: list[tuple[Done, Any, int, list[int], int]] = [(_nobody, None, 0, self._kick, 0)] * depth
        self._device: list[Any] = [None] * depth  # of writes with FUA
        self._iocbs, self._iocbs_at = _memory(depth * IOCB_BYTES)
        self._iovecs, self._iovecs_at = _memory(depth * MAX_PIECES * IOVEC.size)
        self._events, events_at = _memory(depth * EVENT.size)
        pointers, pointers_at = _memory(depth * 8)
        self._pointers = pointers.cast("Q")
        for slot in range(depth):
            common = (slot, 0, 0, 0, 0, 0, 0, 0, 0, 0, IOCB_FLAG_RESFD, self._eventfd)
            IOCB.pack_into(self._iocbs, slot * IOCB_BYTES, *common)
        self._pointers_at, self._events_at = pointers_at, events_at

    # ---- operations

    def read(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        """Queue a read."""
        if (
            (offset | length | where) & (device.logical_block - 1)
            or offset + length > device.size
            or where + length > self._limit
        ):
            self._refuse(device, where, length, offset, done, arg)
        elif self._waiting or not self._free:
            self._waiting.append((self.read, device, where, length, offset, done, arg))
        else:
            slot = self._free.pop()
            self._calls[slot] = done, arg, length, self._kick, device.read_row
            at = slot * IOCB_BYTES
            CALL.pack_into(self._iocbs, at + CALL_AT, 0, PREAD, 0, device.fd, self._base + where, length, offset)
            self._queue.append(self._iocbs_at + at)

    def write(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any, fua: bool = False) -> None:
        """Queue a write."""
        if (
            (offset | length | where) & (device.logical_block - 1)
            or offset + length > device.size
            or where + length > self._limit
        ):
            self._refuse(device, where, length, offset, done, arg)
        elif self._waiting_writes or not self._free_writes:
            self._waiting_writes.append((self.write, device, where, length, offset, done, arg, fua))
        else:
            flags = 0
            if fua:
                if device.fua:
                    flags = self.FUA
                else:
                    done, arg = self._then_flush, (device, done, arg)
            slot = self._free_writes.pop()
            self._calls[slot] = done, arg, length, self._write_kick, device.write_row
            if flags:
                self._device[slot] = device
            at = slot * IOCB_BYTES
            CALL.pack_into(self._iocbs, at + CALL_AT, flags, PWRITE, 0, device.fd, self._base + where, length, offset)
            self._write_queue.append(self._iocbs_at + at)

    def write_gather(self, device: Any, wheres: Sequence[int], piece: int, offset: int, done: Done, arg: Any) -> None:
        """Queue a write of several pieces of memory to one run of the device."""
        length, bits = len(wheres) * piece, piece
        for where in wheres:
            bits |= where
        if not 0 < len(wheres) <= MAX_PIECES:
            self._fail(done, arg, EINVAL)
        elif (
            (offset | bits) & (device.logical_block - 1)
            or offset + length > device.size
            or max(wheres) + piece > self._limit
        ):
            self._refuse(device, bits, length, offset, done, arg)
        elif self._waiting_writes or not self._free_writes:
            self._waiting_writes.append((self.write_gather, device, wheres, piece, offset, done, arg))
        else:
            slot = self._free_writes.pop()
            self._calls[slot] = done, arg, length, self._write_kick, device.write_row
            base, iovecs = self._base, self._iovecs
            first = at = slot * MAX_PIECES * IOVEC.size
            for where in wheres:
                IOVEC.pack_into(iovecs, at, base + where, piece)
                at += IOVEC.size
            at = slot * IOCB_BYTES
            call = (0, PWRITEV, 0, device.fd, self._iovecs_at + first, len(wheres), offset)
            CALL.pack_into(self._iocbs, at + CALL_AT, *call)
            self._write_queue.append(self._iocbs_at + at)

    def flush(self, device: Any, done: Done, arg: Any) -> None:
        """Queue a flush."""
        if self._waiting or not self._free:
            self._waiting.append((self.flush, device, done, arg))
            return
        slot = self._free.pop()
        self._calls[slot] = done, arg, 0, self._kick, device.flush_row
        at = slot * IOCB_BYTES
        CALL.pack_into(self._iocbs, at + CALL_AT, 0, FDSYNC, 0, device.fd, 0, 0, 0)
        self._queue.append(self._iocbs_at + at)

    def _refuse(self, device: Any, where: int, length: int, offset: int, done: Done, arg: Any) -> None:
        """Answer what must not reach the kernel."""
        misaligned = (offset | length | where) & (device.logical_block - 1)
        outside = offset + length > device.size
        self._fail(done, arg, EINVAL if misaligned else EIO if outside else EFAULT)

    def _fail(self, done: Done, arg: Any, error: int) -> None:
        self._refused.append((done, arg, error))
        os.eventfd_write(self._eventfd, 1)

    # ---- to the kernel

    def kick(self, now: int = 0) -> None:
        """Hand over what is queued; writes only if the gate is open now. now: the engine's clock, if just read."""
        if self._waiting or self._waiting_writes:
            self._refill(self._waiting, self._free)
            self._refill(self._waiting_writes, self._free_writes)
        reads, writes = self._queue, self._write_queue
        while reads or writes:
            gated = len(writes) if writes and self._gate() else 0
            batch = writes + reads if gated else reads
            count = len(batch)
            if not count:
                return
            self._pointers[:count] = array("Q", batch)
            self._kick[0] = now or self._clock()
            if gated:
                self._write_kick[0] = self._kick[0]
                self._write_kick = [0]
            self._kick = [0]
            taken = _submit_call(SUBMIT, self._context, count, self._pointers_at)
            if taken == count:
                self._handed += taken
                if gated:
                    writes.clear()
                reads.clear()
                return
            if taken < 0:
                error = ctypes.get_errno()
                if error == EAGAIN:  # the ring is full, or so the kernel counts: after the next reap
                    self._restamp(batch)
                    return
                self._rejected(batch[0], error)
                taken = 1
            else:
                self._handed += taken
            from_writes = min(taken, gated)
            del writes[:from_writes]
            del reads[: taken - from_writes]
            self._restamp(batch[taken:])

    def _restamp(self, addresses: list[int]) -> None:
        """These were not taken: the next kick takes them."""
        for address in addresses:
            slot = (address - self._iocbs_at) // IOCB_BYTES
            done, arg, want, _, row = self._calls[slot]
            self._calls[slot] = done, arg, want, self._kick if slot < self._slots // 2 else self._write_kick, row

    @staticmethod
    def _refill(waiting: deque[tuple[Any, ...]], free: list[int]) -> None:
        """Give slots to calls that wait for one, in their order."""
        calls = [waiting.popleft() for _ in range(min(len(waiting), len(free)))]
        rest = list(waiting)
        waiting.clear()  # or these calls would queue behind the others again
        for call in calls:
            call[0](*call[1:])
        waiting.extend(rest)

    def _rejected(self, address: int, error: int) -> None:
        """The kernel did not accept one operation: it alone fails."""
        slot = (address - self._iocbs_at) // IOCB_BYTES
        self._release(slot)
        if not self._without_fua(slot, -error):
            done, arg, *_ = self._calls[slot]
            self._fail(done, arg, error)

    def _release(self, slot: int) -> None:
        (self._free if slot < self._slots // 2 else self._free_writes).append(slot)

    # ---- from the kernel

    def reap(self) -> int:
        """Call ``done`` for what has completed; return how many completions there were."""
        total = 0
        while True:
            if self._ring[HEAD] != self._ring[TAIL]:
                total += self._collect()
            if self._refused:
                refused, self._refused = self._refused, []
                self._owed += len(refused)
                total += len(refused)
                for done, arg, error in refused:
                    done(arg, error)
            if self._owed <= 0:
                return total
            try:
                self._owed -= os.eventfd_read(self._eventfd)
            except BlockingIOError:  # the completion was seen before its signal
                return total
            if self._owed >= 0:
                return total

    def _collect(self) -> int:
        count = _getevents_call(GETEVENTS, self._context, 0, self._slots, self._events_at, None)
        if count <= 0:
            return 0
        self._owed += count
        self._handed -= count
        calls, half, now = self._calls, self._slots // 2, self._clock()
        free, free_writes = self._free, self._free_writes
        kick, row, same = self._kick, 0, 0
        for slot, _, result, _ in EVENT.iter_unpack(self._events[: count * 32]):
            if slot < half:
                free.append(slot)
            else:
                free_writes.append(slot)
            done, arg, want, its_kick, its_row = calls[slot]
            if its_kick is kick and its_row == row:
                same += 1
            else:
                if same:
                    self._count(row, same, now - kick[0])
                kick, row, same = its_kick, its_row, 1
            if result == want:
                done(arg, 0)
            elif not self._without_fua(slot, result):
                if result == -EBADE:
                    self.on_conflict()
                done(arg, -result if result < 0 else EIO)
        self._count(row, same, now - kick[0])
        return count

    def _count(self, row: int, operations: int, took: int) -> None:
        """Count what was handed over and has completed together (counters.note_together, written out)."""
        if row:
            words, bucket = self._words, took.bit_length()
            words[row] += operations
            words[row + SUM] += operations * took
            words[row + HISTOGRAM + (bucket if bucket < BUCKETS else BUCKETS - 1)] += operations

    def _without_fua(self, slot: int, result: int) -> bool:
        """If ``result`` says that the device does not know RWF_DSYNC: queue the write anew, with a flush behind it."""
        flags, _, _, _, address, length, offset = CALL.unpack_from(self._iocbs, slot * IOCB_BYTES + CALL_AT)
        if not flags or -result not in (EOPNOTSUPP, EINVAL):
            return False
        device = self._device[slot]
        device.fua = False
        done, arg, *_ = self._calls[slot]
        self.write(device, address - self._base, length, offset, done, arg, True)
        return True

    def _then_flush(self, then: tuple[Any, Done, Any], error: int) -> None:
        device, done, arg = then
        if error:
            done(arg, error)
        else:
            self.flush(device, done, arg)

    # ---- the end

    def abort_queued(self, error: int) -> None:
        """Complete with ``error`` what was not handed over; what a ``done`` queues meanwhile stays queued."""
        queued = self._queue + self._write_queue
        self._queue.clear()
        self._write_queue.clear()
        waiting = [*self._waiting, *self._waiting_writes]
        self._waiting.clear()
        self._waiting_writes.clear()
        ended = []
        for address in queued:
            slot = (address - self._iocbs_at) // IOCB_BYTES
            self._release(slot)
            ended.append(self._calls[slot][:2])
        for call in waiting:
            ended.append(call[2:4] if call[0] == self.flush else call[5:7])
        for done, arg in ended:
            done(arg, error)

    @property
    def inflight(self) -> int:
        """Operations whose ``done`` has not been called."""
        used = self._slots - len(self._free) - len(self._free_writes)
        return used + len(self._waiting) + len(self._waiting_writes) + len(self._refused)

    def publish(self) -> None:
        """Now and then: since when the oldest operation is in flight, for each backend, into the counters page."""
        oldest: dict[str, int] = {}
        for slot in set(range(self._slots)).difference(self._free, self._free_writes):
            _, _, _, kick, row = self._calls[slot]
            if kick[0] and row:
                backend = counters.BACKEND_OF[row]
                oldest[backend] = min(kick[0], oldest.get(backend, kick[0]))
        for backend, at in counters.BACKEND_OLDEST.items():
            self._words[at] = oldest.get(backend, 0)

    def arguments(self) -> list[Any]:
        """The ``arg`` of each of them."""
        used = set(range(self._slots)).difference(self._free, self._free_writes)
        calls = [self._calls[slot][:2] for slot in used]
        calls += [call[2:4] if call[0] == self.flush else call[5:7] for call in (*self._waiting, *self._waiting_writes)]
        calls += [refused[:2] for refused in self._refused]
        return [arg[2] if done == self._then_flush else arg for done, arg in calls]

    def fileno(self) -> int:
        """The eventfd: readable when something can be reaped."""
        return self._eventfd

    def drain(self) -> None:
        """Wait for everything that was handed over and what follows from it; what the gate holds stays queued."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        self.kick()
        while self._handed or self._refused:
            poll.poll()
            self.reap()
            self.kick()

    def close(self) -> None:
        """Wait until no transfer touches the arena any more and end; no further ``done`` is called."""
        if self._eventfd >= 0:
            self._ring = CLOSED_RING  # its memory goes now
            _destroy_call(DESTROY, self._context)
            os.close(self._eventfd)
            self._eventfd = -1
