"""Power fails while a device is created, sealed or given up: the header is the old one or the new one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from snapd.blockdev.device import FileDevice
from snapd.errors import CsnapError, FormatError
from snapd.exstore import create
from snapd.exstore.base import Action
from snapd.exstore.image import Image as CowImage
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.units import KIB, SECTOR
from tests.crash.history import SPEC, Shape, formatted, used_device
from tests.crash.images import Medium, subsets
from tests.crash.oracle import Opener, UndoableDevice, entries_of
from tests.crash.recorder import Recorder, SharedDevice
from tests.support.worker_rig import VOLUME_UUID

LIMIT = 10
OLD = Sidecar(VOLUME_UUID, "00000000-0000-4000-8000-000000000001", "old", 1, 1)


class Recorded:
    """A device for the synchronous functions, its writes and flushes recorded."""

    def __init__(self, content: bytes, logical_block: int) -> None:
        self.before = content
        self.device = SharedDevice(len(content), logical_block, "cow")
        self.device.poke(0, content)
        self.recorder = Recorder()

    def pread(self, device: Any, offset: int, length: int) -> bytes:
        return self.device.peek(offset, length)

    def pwrite(self, device: Any, offset: int, data: bytes) -> None:
        write = self.recorder.handed(self.device, offset, data, False)
        place = len(self.device.log)
        self.device.write(offset, data, False)
        self.recorder.completed(write, place)

    def fsync(self, device: Any) -> None:
        covered = len(self.device.log)
        self.device.flush(covered)
        self.recorder.flushed(self.device, covered)

    def do(self, call: Callable[[FileDevice], None]) -> None:
        """Call with the synchronous functions replaced."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("pread", "pwrite", "fsync"):
                patch.setattr(create, name, getattr(self, name))
            call(cast(FileDevice, self.device))

    def images(self) -> Iterator[tuple[bytes, bool]]:
        """Every content at every moment, and whether the moment is the last."""
        self.recorder.end()
        medium = Medium(self.before, self.recorder.of("cow"))
        for moment in range(self.recorder.now + 1):
            medium.advance(moment)
            for subset in subsets(medium.units, LIMIT, 300, random.Random(moment)):
                image = bytearray(medium.base)
                for unit in subset:
                    image[unit.sector * SECTOR : (unit.sector + 1) * SECTOR] = unit.data
                yield bytes(image), moment == self.recorder.now


def header_of(image: bytes) -> tuple[Header | None, Sidecar | None]:
    """What the first sector says, as far as it says anything."""
    try:
        header = Header.from_bytes(image[:SECTOR])
        return header, Sidecar.from_bytes(image[:SECTOR], header.chunk_size)
    except FormatError:
        return None, None


def contents(shape: Shape) -> dict[str, bytes]:
    """What may be on a device before."""
    used = used_device(shape, random.Random(1))
    header = Header(True, shape.chunk // SECTOR)
    live = header.to_bytes() + OLD.to_bytes(header.chunk_size)
    gone = Header(False, header.chunk_size).to_bytes() + live[16:]
    return {"zeros": bytes(len(used)), "another's": used, "live": live + used[512:], "deleted": gone + used[512:]}


@pytest.mark.parametrize("shape", [Shape(), Shape(cow=20, chunk=4 * KIB, logical_block=4 * KIB)], ids=["1K", "4K"])
@pytest.mark.parametrize("content", ["zeros", "another's", "live", "deleted"])
def test_power_may_fail_while_a_device_is_created(shape: Shape, content: str) -> None:
    """Our header is there only before an empty list; until then the first sector is the one that was there."""
    disk = Recorded(contents(shape)[content], shape.logical_block)
    sidecar = Sidecar(VOLUME_UUID, SPEC.store, SPEC.name, shape.origin * shape.chunk, 1)
    disk.do(lambda device: create.create(device, shape.chunk, sidecar))
    tried = 0
    for image, last in disk.images():
        tried += 1
        header, found = header_of(image)
        if found == sidecar:
            assert header is not None and header.valid
            assert not any(image[shape.chunk : 2 * shape.chunk])
            store = Opener(shape).load(UndoableDevice(image, shape.logical_block))
            assert store is not None and store.count == 0
        else:
            assert not last, "created, but not there"
            assert image[:SECTOR] == disk.before[:SECTOR], "neither the old header nor ours"
    assert tried > 3
    print(f"\n{content}: {tried} images")


def test_power_may_fail_while_a_creation_is_undone() -> None:
    """The store is ours and empty, or it is given up; its name stays readable."""
    shape = Shape()
    disk = Recorded(formatted(shape, used_device(shape, random.Random(1))), SECTOR)
    disk.do(lambda device: create.undo(device, SPEC.store))
    states = set()
    for image, last in disk.images():
        header, sidecar = header_of(image)
        assert header is not None and sidecar is not None and sidecar.store_uuid == SPEC.store
        states.add(header.valid)
        assert not (last and header.valid)
    assert states == {True, False}


def store_operation(shape: Shape, call: Callable[[Any, Callable[[CsnapError | None], None]], None]) -> Recorded:
    """Run an operation of a loaded store with entries, recorded."""
    opener = Opener(shape)
    disk = Recorded(formatted(shape, used_device(shape, random.Random(1))), shape.logical_block)
    store = opener.load(disk.device)
    assert store is not None
    opener.take_over(store)
    opener.append(store, [(old, store.prepare(old)) for old in range(20)])
    disk.before = bytes(disk.device.data)
    known = len(disk.device.log)
    errors: list[CsnapError | None] = []
    call(store, errors.append)
    opener.engine.drain()
    assert errors == [None]
    for place, (kind, offset, data) in enumerate(disk.device.log[known:], known):
        assert kind == "fua"
        disk.recorder.completed(disk.recorder.handed(disk.device, offset, data, True), place)
    return disk


SHAPES = pytest.mark.parametrize(
    "shape", [Shape(), Shape(cow=40, chunk=4 * KIB, logical_block=4 * KIB)], ids=["1K", "4K"]
)


@SHAPES
def test_power_may_fail_while_a_snapshot_is_deleted_or_invalidated(shape: Shape) -> None:
    """valid is 1 or 0, at the end 0; every entry and the sidecar are as they were."""
    disk = store_operation(shape, lambda store, done: store.modify(Action.INVALIDATE, done))
    states = set()
    for image, last in disk.images():
        header, sidecar = header_of(image)
        assert header is not None and sidecar is not None and sidecar.store_uuid == SPEC.store
        states.add(header.valid)
        assert image[4:8] in (b"\1\0\0\0", b"\0\0\0\0") and image[8:] == disk.before[8:]
        assert not (last and header.valid)
        assert entries_of(shape, image) == entries_of(shape, disk.before)
    assert states == {True, False}


@SHAPES
def test_power_may_fail_while_the_generation_is_raised(shape: Shape) -> None:
    """The sidecar's generation is the old one or the new one, under a right checksum, and nothing else changes."""
    disk = store_operation(shape, lambda store, done: store.seal(7, done))
    generations = set()
    _, before = header_of(disk.before)
    assert before is not None
    for image, last in disk.images():
        header, sidecar = header_of(image)
        assert header is not None and header.valid and sidecar is not None
        generations.add(sidecar.generation)
        assert sidecar == replace(before, generation=sidecar.generation) and image[SECTOR:] == disk.before[SECTOR:]
        assert not last or sidecar.generation == 7
    assert generations == {1, 7}
    assert CowImage.load(lambda offset, length: image[offset : offset + length], len(image)).header.valid
