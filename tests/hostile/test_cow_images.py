"""COW devices that hold anything: check, dump, reading in an emergency, a store that loads, looking for a free disk.

A device is built from its parts (header, sidecar, areas, entries) and then damaged, so that what is damaged lies deep.
"""

from __future__ import annotations

import hashlib
import json
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapd.blockdev.device import FileDevice, open_device
from snapd.errors import Corrupt, CsnapError, DeviceError, FormatError, Refused, StoreInvalid
from snapd.exstore.check import PROBLEMS, SOUND, check
from snapd.exstore.content import Content
from snapd.exstore.create import check_free, check_geometry
from snapd.exstore.image import Image
from snapd.format.header import MAGIC, Header
from snapd.format.layout import ENTRY_BYTES
from snapd.format.sidecar import Sidecar
from snapd.messages import SnapshotSpec
from snapd.units import GIB, KIB, MIB, SECTOR
from snapd.volume.cow import Expected, verify
from tests.support import examples as _examples  # noqa: F401
from tests.support.mem_engine import MemoryDevice
from tests.support.store_rig import CHUNK, EPA, ORIGIN_CHUNKS, VOLUME_UUID, StoreRig

STORE_UUID = "11111111-2222-4333-8444-555555555555"
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
WORDS = st.one_of(
    st.integers(0, 40), st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, EPA, EPA + 1, EPA + 2, 1 << 32, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, ORIGIN_CHUNKS]),
)  # fmt: skip
HEADER_WORDS = st.sampled_from([0, 1, 2, 8, MAGIC, 1 << 22, 1 << 23, 3, 0xFFFFFFFF, 1 << 31])


@st.composite
def devices(draw: st.DrawFn) -> bytes:
    """A COW device of a few chunks of CHUNK bytes: sound, or damaged in the places where it says something."""
    chunks = draw(st.integers(3, 12))
    header = bytearray(Header(draw(st.booleans()), CHUNK // SECTOR).to_bytes())
    if draw(st.integers(0, 3)) == 0:
        struct.pack_into("<I", header, 4 * draw(st.integers(0, 3)), draw(HEADER_WORDS))
    sidecar = bytearray(Sidecar(VOLUME_UUID, STORE_UUID, "s1", ORIGIN_CHUNKS * CHUNK, 1).to_bytes(CHUNK // SECTOR))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(sidecar) - 5))
        sidecar[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
    if draw(st.booleans()):  # a checksum that holds: what lies behind it is looked at too
        struct.pack_into("<I", sidecar, len(sidecar) - 4, zlib.crc32((bytes(header) + sidecar[:-4])[4:]))
    first = (bytes(header) + bytes(sidecar if draw(st.booleans()) else bytes(len(sidecar)))).ljust(CHUNK, b"\0")
    entries = draw(st.lists(st.tuples(WORDS, WORDS), max_size=20))
    if draw(st.booleans()):  # an area that is full
        entries = [(index, index + 2) for index in range(EPA - len(entries))] + entries
    area = b"".join(struct.pack("<QQ", *entry) for entry in entries).ljust(CHUNK, b"\0")[:CHUNK]
    body = draw(st.sampled_from([b"\0", b"\xaa", b"\x01\0\0\0\0\0\0\0"]))
    data = (first + area + body * (chunks * CHUNK))[: chunks * CHUNK]
    garbage = draw(st.binary(max_size=64))
    at = draw(st.integers(0, 2 * CHUNK))
    return data[:at] + garbage + data[at + len(garbage) :] if draw(st.booleans()) else data


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """Reads like a device: all that was asked for, or an error; never more than the device has."""

    def read(offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > len(data):
            raise DeviceError(f"read of {length} at {offset}", 5)
        return data[offset : offset + length]

    return read


@QUICK
@given(devices() | st.binary(max_size=2000))
def test_check_reports_and_dump_shows_or_refuses_by_name(data: bytes) -> None:
    """A report that can be printed; the same exceptions from both; FormatError where there is no store at all."""
    report = check(reader(data), len(data))
    assert report.verdict in (SOUND, PROBLEMS)
    assert all(problem.where and problem.what and problem.expected for problem in report.problems)
    assert json.loads(json.dumps(report.to_json()))["sound"] == (not report.problems)
    try:
        image = Image.load(reader(data), len(data))
    except FormatError as error:
        assert report.image is None and str(error).split(":")[0] in ("header", "device")
        return
    assert json.loads(json.dumps(image.to_json()))["exceptions"] == [list(each) for each in image.exceptions]
    assert image == report.image or report.image is not None


@QUICK
@given(devices())
def test_reading_in_an_emergency_gives_the_content_or_an_error_by_name(data: bytes) -> None:
    """Every chunk of a small origin, or a refusal; never bytes of the header or of an area."""
    origin = bytes([7]) * (6 * CHUNK)
    try:
        content = Content([(reader(data), len(data))], (reader(origin), len(origin)))
        chunks = list(content.chunks())
    except (Corrupt, StoreInvalid, Refused):
        return
    assert sum(map(len, chunks)) == len(origin)


@QUICK
@given(devices())
def test_a_store_loads_what_is_sound_and_names_what_is_not(data: bytes) -> None:
    """The store of a running volume over the same bytes: loaded, or an error of its own; the device is not written."""
    device = MemoryDevice(len(data))
    device.poke(0, data)
    rig = StoreRig(device)
    errors: list[CsnapError | None] = []
    store = rig.persistent()
    store.resume(errors.append)
    rig.run()
    assert len(errors) == 1 and (errors[0] is None or isinstance(errors[0], CsnapError))
    assert device.peek(0, len(data)) == data
    if errors[0] is None:
        layout = store.layout
        for old, new in store.map.items():
            assert old < ORIGIN_CHUNKS and 2 <= new < layout.total_chunks and not layout.is_metadata(new)
        report = check(reader(data), len(data), ORIGIN_CHUNKS * CHUNK)
        assert report.image is not None and dict(report.image.exceptions) == dict(store.map.items())
        store.reserve(100)
        taken = [store.prepare(0) for _ in range(store.available)]
        used = set(dict(store.map.items()).values())
        assert not any(layout.is_metadata(new) or new in used or new >= layout.total_chunks for new in taken)


@QUICK
@given(devices())
def test_opening_a_cow_device_accepts_only_the_right_one(data: bytes) -> None:
    """Refused by name for all but a header and a sidecar that say exactly what the table says."""
    origin, device = MemoryDevice(CHUNK * 8), MemoryDevice(len(data))
    spec = SnapshotSpec("s1", STORE_UUID, "/dev/x", "active", False, 1)
    origin.identity, device.identity = "origin", "cow"
    try:
        verify(Expected(VOLUME_UUID, origin, CHUNK), spec, device, data[:SECTOR])
    except Refused:
        return
    raise AssertionError("its origin has another size, so no such device fits")


# ---- files


@dataclass
class Disk:
    path: Path
    device: FileDevice


@contextmanager
def disk(data: bytes, size: int = 0) -> Iterator[Disk]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "cow"
        with open(path, "wb") as file:
            file.write(data)
            file.truncate(max(size, -(-len(data) // 4096) * 4096 or 4096))
        device = open_device(str(path), exclusive=False, read_only=True)
        try:
            yield Disk(path, device)
        finally:
            device.close()


@settings(max_examples=60)
@given(devices() | st.binary(max_size=2000))
def test_looking_for_a_free_device_says_free_or_whose_and_writes_nothing(data: bytes) -> None:
    """Refused by name, or free: then it is zero, or what a delete of this very volume leaves."""
    with disk(data) as made:
        before = hashlib.sha256(made.path.read_bytes()).digest()
        try:
            check_free(made.device, "origin", VOLUME_UUID, False)
            check_geometry(made.device, CHUNK, 512)
        except Refused as error:
            assert str(error).startswith(f"{made.path}: ")
        else:
            left = UUID(VOLUME_UUID).bytes in data[:SECTOR] and data[4:8] == b"\0\0\0\0"
            assert left or not any(data)
        assert hashlib.sha256(made.path.read_bytes()).digest() == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
from snapd.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
MEMORY = 512 * MIB
"""Address space of a check or dump: an interpreter takes some 40 MiB."""


def limited(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run csnap with little memory and little time."""
    command = [sys.executable, "-c", LIMITED, str(MEMORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def huge(header: Header, sidecar: bool = False) -> bytes:
    named = Sidecar(VOLUME_UUID, STORE_UUID, "s1", GIB, 1).to_bytes(header.chunk_size) if sidecar else b""
    return header.to_bytes() + named


@pytest.mark.parametrize("command", ["check", "dump"])
@pytest.mark.parametrize("chunk_sectors", [1 << 22, 1 << 21, 1 << 16], ids=["2G", "1G", "32M"])
def test_regression_a_header_that_claims_huge_chunks_costs_no_memory(command: str, chunk_sectors: int) -> None:
    """A sparse file of 16 GiB whose chunks are said to have 2 GiB: an area was read whole, and every entry kept."""
    arguments = [command, "--json"]
    with disk(huge(Header(True, chunk_sectors)), 16 * GIB) as made:
        done = limited(*arguments, str(made.path))
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout)["exceptions"] in (0, [])


@pytest.mark.parametrize("command", ["check", "dump"])
def test_regression_stale_garbage_behind_the_list_is_counted_not_kept(command: str) -> None:
    """48 MiB of it in one area: a problem in check, nothing in dump, and neither takes a gigabyte for it."""
    header = Header(True, 64 * MIB // SECTOR)
    with disk(huge(header), 256 * MIB) as made:
        with open(made.path, "r+b") as file:
            file.seek(64 * MIB + 4096)
            for _ in range(48):
                file.write(b"\xaa" * MIB)
        done = limited(command, "--json", str(made.path))
    found = json.loads(done.stdout)
    assert not done.stderr
    if command == "check":
        assert done.returncode == PROBLEMS and "stale entries" in found["problems"][0]["what"]
    else:
        assert done.returncode == 0 and found["exceptions"] == []


@pytest.mark.parametrize("command", ["check", "dump"])
def test_regression_more_entries_than_the_device_has_chunks_are_refused(command: str) -> None:
    """An area of 64 MiB full of entries on a device of four chunks: no list, whatever it is."""
    header = Header(True, 64 * MIB // SECTOR)
    with disk(huge(header), 256 * MIB) as made:
        with open(made.path, "r+b") as file:
            file.seek(64 * MIB)
            for _ in range(64):
                file.write(b"\xaa" * MIB)
        done = limited(command, "--json", str(made.path))
    assert done.returncode == 1
    assert "entries" in (done.stdout + done.stderr) and "Traceback" not in done.stderr


def test_regression_a_deleted_store_with_huge_chunks_is_looked_at_in_pieces() -> None:
    """Is it free? Its header says valid=0, its sidecar is this volume's, and its chunk 0 has 2 GiB of zeros."""
    header = Header(False, 1 << 22)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with disk(huge(header, True), 8 * GIB) as made:
        check_free(made.device, "origin", VOLUME_UUID, False)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * KIB
    assert grown < 64 * MIB


def test_an_image_is_never_written_by_check_or_dump() -> None:
    """The file is opened read-only: not even its times of modification change."""
    with disk(huge(Header(True, 8), True), MIB) as made:
        before = made.path.stat()
        for command in ("check", "dump"):
            assert limited(command, str(made.path), "--json").returncode == 0
        after = made.path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    assert ENTRY_BYTES * EPA == CHUNK
