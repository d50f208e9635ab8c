"""A flipped bit in every field of header, sidecar and areas: found, wherever the format can tell.

It can tell: anything in the first 512 bytes (magic, version, valid, chunk size, sidecar), a chunk number that is out of
range, on a metadata area or used twice, an entry that is missing from a list whose length is known. It has no checksum
over the areas: a flip that makes a chunk number another legal one is not found. These tests say which flips those are,
that there are no others, and that each spoils at most two chunks of the snapshot and nothing else.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import replace
from errno import EIO

import pytest

from snapd.errors import CsnapError
from snapd.exstore.base import StoreConfig
from snapd.exstore.check import check
from snapd.exstore.persistent import Persistent
from snapd.messages import Overflow, Serving
from snapd.units import KIB, SECTOR
from snapd.volume.cow import Expected, verify
from snapd.volume.request import READ
from tests.crash.history import SPEC, Image, Shape, entries_of, first_truth, fresh, open_rig, record
from tests.crash.oracle import Opener, UndoableDevice
from tests.crash.recorder import Recorder, SharedDevice
from tests.support.worker_rig import VOLUME_UUID, Rig

SHAPE = Shape()
TRUTH = first_truth(SHAPE)


def flipped(data: bytes, byte: int, bit: int) -> bytes:
    """``data`` with one bit the other way round."""
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


@pytest.fixture(scope="module")
def sound() -> Image:
    """A device with entries in two areas, and its origin."""
    history = record(SHAPE, fresh(SHAPE, random.Random(11)), 2, 11, 260)
    device = SharedDevice(SHAPE.cow * SHAPE.chunk, SECTOR, SPEC.path)
    device.poke(0, history.before.cow)
    for write in history.recorder.of(SPEC.path):
        device.poke(write.offset, write.data)
    origin = bytearray(history.before.origin)
    for write in history.recorder.of("origin"):
        origin[write.offset : write.offset + len(write.data)] = write.data
    image = Image(bytes(device.data), bytes(origin), len(history.entries))
    assert SHAPE.layout.epa + 8 < image.count < 2 * SHAPE.layout.epa and content(image.cow, image.origin) == TRUTH
    return image


def content(cow: bytes, origin: bytes) -> bytes:
    """The snapshot, from the raw devices."""
    data, chunk = bytearray(origin), SHAPE.chunk
    for old, new in entries_of(SHAPE, cow):
        data[old * chunk : (old + 1) * chunk] = cow[new * chunk : (new + 1) * chunk]
    return bytes(data)


# ---- header and sidecar


def test_every_bit_of_the_first_sector_counts(sound: Image) -> None:
    """Each of its 4096 bits flipped: refused by whoever opens the device, but for the one that says invalid; and
    ``check`` names a problem, or an invalid store."""
    origin = SharedDevice(len(sound.origin), SECTOR, "origin")
    expected = Expected(VOLUME_UUID, origin, SHAPE.chunk)
    device = SharedDevice(len(sound.cow), SECTOR, SPEC.path)
    verify(expected, SPEC, device, sound.cow[:SECTOR])
    outcomes: Counter[str] = Counter()
    for byte in range(SECTOR):
        for bit in range(8):
            image = flipped(sound.cow, byte, bit)
            report = check(lambda offset, length, image=image: image[offset : offset + length], len(image))  # type: ignore[misc]
            try:
                verify(expected, SPEC, device, image[:SECTOR])
            except CsnapError as error:
                assert str(error).startswith(f"{SPEC.path}: "), "which device?"
                outcomes[str(error).split(": ")[1]] += 1
                assert report.problems, f"byte {byte}, bit {bit}: check finds nothing"
            else:
                outcomes["valid=0"] += 1
                assert (byte, bit) == (4, 0), f"byte {byte}, bit {bit}: not found"
                assert report.image is not None and report.image.status == "Invalid"
    print(f"\nfirst sector: {sum(outcomes.values())} flips, {dict(outcomes)}")
    assert sum(outcomes.values()) == 8 * SECTOR and outcomes["valid=0"] == 1


def test_the_rest_of_the_first_chunk_is_nobodys(sound: Image) -> None:
    """Nothing behind the first sector of chunk 0 is ever read: a flip there changes nothing."""
    for byte in range(SECTOR, SHAPE.chunk, 37):
        store = Opener(SHAPE).load(UndoableDevice(flipped(sound.cow, byte, byte % 8), SECTOR))
        assert store is not None and store.count == sound.count


# ---- areas


def place(index: int) -> int:
    """Where entry ``index`` lies."""
    area, slot = divmod(index, SHAPE.layout.epa)
    return SHAPE.layout.area_chunk(area) * SHAPE.chunk + 16 * slot


def legal(entries: list[tuple[int, int]], index: int, old: int, new: int, counted: bool) -> bool:
    """Whether the format cannot tell that entry ``index`` was not always (old, new)."""
    layout = SHAPE.layout
    if new == 0:
        return not counted  # the end of the list, as far as anybody can see
    others = entries[:index] + entries[index + 1 :]
    return (
        old < SHAPE.origin
        and 2 <= new < layout.total_chunks
        and not layout.is_metadata(new)
        and old not in {each for each, _ in others}
        and new not in {each for _, each in others}
    )


def loads(opener: Opener, cow: bytes, count: int | None) -> bool:
    """Whether a store reads this without finding anything wrong. count: what the counter says, None: nothing."""
    device = UndoableDevice(cow, SECTOR)
    chunk = SHAPE.chunk // SECTOR
    image, zeros = 0, SHAPE.chunk
    assert len(opener.engine.arena.view) > 2 * SHAPE.chunk
    store = Persistent(StoreConfig(opener.engine, device, chunk, SHAPE.origin, image, -(-zeros // 4096) * 4096))
    errors: list[CsnapError | None] = []
    store.reread(count, errors.append)
    opener.engine.drain()
    return errors == [None]


@pytest.mark.parametrize("counted", [True, False], ids=["counter-known", "counter-lost"])
def test_every_bit_of_every_entry(sound: Image, counted: bool) -> None:
    """All 128 bits of each: found exactly if it makes no legal number; what is not found spoils the chunks that the two
    numbers name, or, with the counter lost and the list cut at a ``new`` of 0, those behind the cut."""
    opener, entries = Opener(SHAPE), entries_of(SHAPE, sound.cow)
    outcomes: Counter[str] = Counter()
    for index in range(sound.count):
        at = place(index)
        for bit in range(128):
            field = "old_chunk" if bit < 64 else "new_chunk"
            cow = flipped(sound.cow, at + bit // 8, bit % 8)
            old, new = struct.unpack_from("<QQ", cow, at)
            undetected = loads(opener, cow, sound.count if counted else None)
            assert undetected == legal(entries, index, old, new, counted), (
                f"entry {index}: {entries[index]}, {old, new}"
            )
            outcomes[f"{field} {'undetected' if undetected else 'found'}"] += 1
            if undetected and bit % 3 == index % 3:
                spoilt = differing(content(cow, sound.origin))
                cut = {each for each, _ in entries[index:]} if new == 0 else set()
                outcomes["list cut"] += new == 0
                assert spoilt <= {entries[index][0], old} | cut
    print(f"\nentries, counter {'known' if counted else 'lost'}: {sum(outcomes.values())} flips, {dict(outcomes)}")
    assert outcomes["old_chunk found"] > 10 * outcomes["old_chunk undetected"] > 0
    assert outcomes["new_chunk found"] > 10 * outcomes["new_chunk undetected"] > 0


def differing(found: bytes) -> set[int]:
    """The chunks that are not as they were when the snapshot was taken."""
    chunk = SHAPE.chunk
    return {old for old in range(SHAPE.origin) if found[old * chunk :][:chunk] != TRUTH[old * chunk :][:chunk]}


def test_a_flip_behind_the_list(sound: Image) -> None:
    """An entry that comes out of zeros is no end of the list any more: out of range, twice or on metadata it is found;
    with a known counter it is not even looked at, and the next take-over or append writes over it."""
    opener = Opener(SHAPE)
    at = place(sound.count)
    for bit in range(128):
        cow = flipped(sound.cow, at + bit // 8, bit % 8)
        old, new = struct.unpack_from("<QQ", cow, at)
        assert loads(opener, cow, sound.count)
        assert loads(opener, cow, None) == (
            new == 0 or legal([*entries_of(SHAPE, sound.cow), (0, 0)], sound.count, old, new, False)
        )


# ---- a whole volume that finds it


def found_by_a_volume(image: Image) -> tuple[Rig, bool]:
    """Hosts that open the image; whether they serve."""
    rig = open_rig(SHAPE, Recorder(), image, hosts=2, seed=5)
    rig.run()
    refused = [
        message for host in rig.hosts for message in host.port.seen if isinstance(message, Serving) and message.error
    ]
    return rig, not refused


@pytest.mark.parametrize("case", ["out of range, old", "out of range, new", "twice, old", "on metadata, new", "valid"])
def test_the_origin_stays_up_when_the_snapshot_is_found_broken(sound: Image, case: str) -> None:
    """Two hosts take over a device with one impossible entry, or with valid=0: the snapshot is invalid on both, its
    reads are EIO, and the origin is read and written as ever."""
    entries = entries_of(SHAPE, sound.cow)
    at = place(5)
    entry = {
        "out of range, old": (entries[5][0] | 1 << 40, entries[5][1]),
        "out of range, new": (entries[5][0], entries[5][1] | 1 << 20),
        "twice, old": (entries[4][0], entries[5][1]),
        "on metadata, new": (entries[5][0], SHAPE.layout.area_chunk(1)),
    }.get(case)
    cow = (
        flipped(sound.cow, 4, 0)
        if entry is None
        else sound.cow[:at] + struct.pack("<QQ", *entry) + sound.cow[at + 16 :]
    )
    rig, serving = found_by_a_volume(replace(sound, cow=cow))
    assert serving
    assert any(isinstance(message, Overflow) for host in rig.hosts for message in host.port.seen)
    assert rig.locks.snapshots[0].state == "invalid"
    for host in rig.hosts:
        errors: list[int] = []
        host.submit(host.export("snapshot/s1"), READ, 0, KIB, lambda error, _, errors=errors: errors.append(error))  # type: ignore[misc]
        rig.run()
        assert errors == [EIO]
        assert rig.write(host, "origin", 0, bytes(3 * KIB)) == 0
        assert rig.read_all(host, "origin") == bytes(3 * KIB) + sound.origin[3 * KIB :]


@pytest.mark.parametrize("byte", [0, 4, 8, 12, 16, 30, 45, 57, 66, 72, 73, 300, 510])
def test_a_running_host_does_not_look_at_the_header_again(sound: Image, byte: int) -> None:
    """A flip in magic, valid, version, chunk size or sidecar under running hosts: origin and snapshot go on, from both.
    Who opens the device anew refuses it by name, and serves nothing until it is put right or the snapshot deleted."""
    rig, serving = found_by_a_volume(sound)
    assert serving
    device = rig.devices[SPEC.path]
    bit = 1
    device.poke(byte, flipped(device.peek(byte, 1), 0, bit))
    for number, host in enumerate(rig.hosts):
        assert rig.write(host, "origin", (10 + 50 * number) * KIB, b"\xfe" * KIB) == 0
        assert rig.read_all(host, "snapshot/s1") == TRUTH
    assert rig.locks.snapshots[0].state == "active"
    _, serving = found_by_a_volume(Image(bytes(device.data), bytes(rig.origin.data), 0))
    assert not serving
