"""Disks that fail, fill, hang and shrink under a real worker: errors reach the requests they belong to, nobody else."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from snapd import counters
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.media.faulty import FaultyDisk, faulty_disk
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

SIZE = 4 * MIB
COW_SIZE = 8 * MIB
CHUNK = 16 * KIB
TRUTH = random.Random(3).randbytes(SIZE)
NEW = b"\xcd" * CHUNK


class Scene:
    """A worker with a snapshot s1, of whose chunks the first four are copied out; a client on each export."""

    def __init__(self, directory: Path, origin: Path, cow: Path) -> None:
        self.worker = WorkerProcess(directory, origin, CHUNK)
        self.expected = bytearray(TRUTH)
        try:
            self.spec = make_cow(cow, "s1", SIZE, CHUNK, 0)
            self.worker.take(self.spec)
            self.origin = NbdClient(self.worker.socket)
            self.snapshot = NbdClient(self.worker.socket, "snapshot/s1")
        except BaseException:
            self.worker.close()
            raise
        for chunk in range(4):
            assert self.write(chunk) == 0

    def write(self, chunk: int, data: bytes = NEW) -> int:
        """Overwrite a chunk of the origin."""
        error = self.origin.write(chunk * CHUNK, data)
        if not error:
            self.expected[chunk * CHUNK : chunk * CHUNK + len(data)] = data
        return error

    def read(self, chunk: int) -> tuple[int, bytes]:
        """Read a chunk of the snapshot: (error, data)."""
        reply = self.snapshot.answer(self.snapshot.send(wire.CMD_READ, chunk * CHUNK, CHUNK))
        return reply.error, reply.data

    def origin_is_right(self) -> None:
        assert self.origin.read(0, SIZE) == bytes(self.expected)

    def snapshot_is_right(self) -> None:
        assert self.snapshot.read(0, SIZE) == TRUTH

    def snapshot_is_lost(self) -> None:
        """It was given up in the table, every read of it is EIO, and the origin goes on."""
        self.worker.wait(lambda: self.worker.overflowed() and self.worker.locks.snapshots[0].state == "invalid")
        assert {self.read(chunk)[0] for chunk in (0, 3, 100, 255)} == {EIO}
        assert self.write(200) == 0 and self.write(0) == 0
        self.origin_is_right()


def plain(directory: Path, name: str, content: bytes | int) -> Path:
    path = directory / name
    path.write_bytes(bytes(content) if isinstance(content, int) else content)
    return path


@contextmanager
def on(directory: Path, origin: Path, cow: Path) -> Iterator[Scene]:
    scene = Scene(directory, origin, cow)
    try:
        with scene.origin, scene.snapshot:
            yield scene
    finally:
        scene.worker.close()


@contextmanager
def bad_origin(directory: Path, error: str = "EIO") -> Iterator[tuple[Scene, FaultyDisk]]:
    with (
        faulty_disk(TRUTH, error) as disk,
        on(directory, disk.path, plain(directory, "cow", COW_SIZE)) as scene,
    ):
        yield scene, disk


@contextmanager
def bad_cow(directory: Path, error: str = "EIO", delay: int = 0) -> Iterator[tuple[Scene, FaultyDisk]]:
    with (
        faulty_disk(COW_SIZE, error, delay) as disk,
        on(directory, plain(directory, "origin", TRUTH), disk.path) as scene,
    ):
        yield scene, disk


# ---- the origin fails


@pytest.mark.parametrize(("name", "number"), [("EIO", EIO), ("ENOSPC", ENOSPC)])
def test_a_failing_write_of_the_origin_fails_that_write(tmp_path: Path, name: str, number: int) -> None:
    """Its error is the device's; reads go on, the snapshot stays, and when the disk is well again so is everything."""
    with bad_origin(tmp_path, name) as (scene, disk):
        with disk.failing("write"):
            assert scene.write(1) == number
            assert scene.write(9) == number  # copied out before: the copy is true all the same
            scene.origin_is_right()
            scene.snapshot_is_right()
        assert scene.write(1) == 0 and scene.write(9) == 0
        scene.origin_is_right()
        scene.snapshot_is_right()
        assert not scene.worker.overflowed()


def test_a_failing_read_of_the_origin_fails_that_read(tmp_path: Path) -> None:
    """Reads of it, and reads of the snapshot that fall through to it; what the COW device has is read, and chunks that
    are copied out are written."""
    with bad_origin(tmp_path) as (scene, disk):
        with disk.failing("read"):
            assert scene.origin.answer(scene.origin.send(wire.CMD_READ, 0, CHUNK)).error == EIO
            assert scene.read(100)[0] == EIO
            assert scene.read(2) == (0, TRUTH[2 * CHUNK : 3 * CHUNK])
            assert scene.write(2) == 0
        scene.origin_is_right()
        scene.snapshot_is_right()
        assert not scene.worker.overflowed()


def test_a_chunk_that_cannot_be_read_for_its_copy_costs_the_snapshot(tmp_path: Path) -> None:
    """The origin's write succeeds: rewriting a bad sector is how it is healed. The snapshot is invalid."""
    with bad_origin(tmp_path) as (scene, disk):
        with disk.failing("read"):
            assert scene.write(50) == 0
        scene.snapshot_is_lost()


# ---- the COW device fails


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_cow_device_that_cannot_be_written_costs_the_snapshot_only(tmp_path: Path, name: str) -> None:
    """Many writes at once that need copies: none of them sees an error, the snapshot is lost, the origin goes on."""
    with bad_cow(tmp_path, name) as (scene, disk):
        disk.break_down("write")
        sent = [scene.origin.send(wire.CMD_WRITE, chunk * CHUNK, data=NEW) for chunk in range(20, 60)]
        assert {scene.origin.answer(cookie).error for cookie in sent} == {0}
        scene.expected[20 * CHUNK : 60 * CHUNK] = NEW * 40
        scene.snapshot_is_lost()


def test_a_failing_read_of_the_cow_device_fails_that_read(tmp_path: Path) -> None:
    """Hits are EIO, misses are answered from the origin; the snapshot is not lost: nothing of it has changed."""
    with bad_cow(tmp_path) as (scene, disk):
        with disk.failing("read"):
            assert [scene.read(chunk)[0] for chunk in range(6)] == [EIO] * 4 + [0, 0]
            assert scene.write(3) == 0 and scene.write(30) == 0
        scene.origin_is_right()
        scene.snapshot_is_right()
        assert not scene.worker.overflowed()


# ---- short


def test_a_cow_device_that_shrank(tmp_path: Path) -> None:
    """Short reads are EIO, of the hits behind the new end only; never the zeros of a file's hole."""
    cow = plain(tmp_path, "cow", COW_SIZE)
    with on(tmp_path, plain(tmp_path, "origin", TRUTH), cow) as scene:
        os.truncate(cow, 4 * CHUNK + CHUNK // 2)  # header, area, two chunks and a half
        errors = [scene.read(chunk)[0] for chunk in range(6)]
        assert errors == [0, 0, EIO, EIO, 0, 0]
        assert scene.write(0) == 0
        scene.origin_is_right()


def test_an_origin_that_shrank(tmp_path: Path) -> None:
    """Reads behind its new end are EIO; a request across the end is EIO as a whole; what is before it is served."""
    origin = plain(tmp_path, "origin", TRUTH)
    with on(tmp_path, origin, plain(tmp_path, "cow", COW_SIZE)) as scene:
        os.truncate(origin, 100 * CHUNK + CHUNK // 2)
        assert scene.origin.answer(scene.origin.send(wire.CMD_READ, 100 * CHUNK, CHUNK)).error == EIO
        assert scene.origin.answer(scene.origin.send(wire.CMD_READ, 200 * CHUNK, CHUNK)).error == EIO
        assert scene.read(100)[0] == scene.read(200)[0] == EIO
        assert scene.read(99) == (0, TRUTH[99 * CHUNK : 100 * CHUNK])
        assert scene.read(1) == (0, TRUTH[CHUNK : 2 * CHUNK])


# ---- slow


def test_a_slow_cow_device_slows_only_what_needs_it(tmp_path: Path) -> None:
    """Each request of it takes 30 ms: no error, nothing lost."""
    with bad_cow(tmp_path, delay=30) as (scene, _):
        sent = [scene.origin.send(wire.CMD_WRITE, chunk * CHUNK, data=NEW) for chunk in range(20, 40)]
        assert {scene.origin.answer(cookie).error for cookie in sent} == {0}
        scene.expected[20 * CHUNK : 40 * CHUNK] = NEW * 20
        scene.origin_is_right()
        scene.snapshot_is_right()


def test_a_cow_device_that_hangs_holds_up_only_what_needs_it(tmp_path: Path) -> None:
    """Writes that need a copy wait; reads and writes of chunks that are copied out do not. Then all goes on."""
    with bad_cow(tmp_path) as (scene, disk):
        with NbdClient(scene.worker.socket) as other:
            with disk.hanging():
                waiting = other.send(wire.CMD_WRITE, 50 * CHUNK, data=NEW)
                assert other.silent()
                assert scene.write(2) == 0
                scene.origin_is_right()
                assert scene.read(90) == (0, TRUTH[90 * CHUNK : 91 * CHUNK])
                assert other.silent()
            assert other.answer(waiting).error == 0
        scene.expected[50 * CHUNK : 51 * CHUNK] = NEW
        scene.origin_is_right()
        scene.snapshot_is_right()


def test_what_a_hanging_disk_reads_after_the_deadline_is_not_answered(tmp_path: Path) -> None:
    """The data comes when the lease is over: thrown away and read again when it stands again; writes wait for it."""
    with bad_cow(tmp_path) as (scene, disk):
        with disk.hanging():
            read = scene.snapshot.send(wire.CMD_READ, CHUNK, CHUNK)
            assert scene.snapshot.silent()
            scene.worker.lease(False)
        wait_until(lambda: scene.worker.words[counters.REJECTED_LATE_READS], "a late read is thrown away")
        write = scene.origin.send(wire.CMD_WRITE, 2 * CHUNK, data=NEW)
        assert scene.snapshot.silent() and scene.origin.silent()
        scene.worker.lease(True)
        reply = scene.snapshot.answer(read)
        assert (reply.error, reply.data) == (0, TRUTH[CHUNK : 2 * CHUNK])
        assert scene.origin.answer(write).error == 0
        scene.snapshot_is_right()


def test_a_write_that_hangs_beyond_the_deadline_lets_none_follow(tmp_path: Path) -> None:
    """A copy-out whose COW device hangs until the lease is over: its origin write is not begun before the lease stands
    again, and the origin's sectors are as they were."""
    with bad_cow(tmp_path) as (scene, disk):
        origin = tmp_path / "origin"
        with disk.hanging():
            write = scene.origin.send(wire.CMD_WRITE, 70 * CHUNK, data=NEW)
            assert scene.origin.silent()
            scene.worker.lease(False)
        assert scene.origin.silent(0.3)
        assert origin.read_bytes()[70 * CHUNK : 71 * CHUNK] == TRUTH[70 * CHUNK : 71 * CHUNK]
        scene.worker.lease(True)
        assert scene.origin.answer(write).error == 0
        scene.expected[70 * CHUNK : 71 * CHUNK] = NEW
        scene.origin_is_right()
        scene.snapshot_is_right()
