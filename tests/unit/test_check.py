"""csnap check and dump over images: each problem is named by where, what and what was expected."""

from __future__ import annotations

import json
import struct

import pytest

from snapd.errors import Corrupt, DeviceError, FormatError, StoreInvalid
from snapd.exstore.base import StatusKind
from snapd.exstore.check import PROBLEMS, SOUND, Report, check
from snapd.exstore.content import Content
from snapd.exstore.image import Image
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from tests.support.mem_engine import MemoryDevice
from tests.support.store_rig import CHUNK, EPA, VOLUME_UUID, StoreRig, cow_device, data_chunks

STORE = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"


def checked(device: MemoryDevice, origin_size: int | None = None) -> Report:
    return check(device.peek, device.size, origin_size)


def only_problem(device: MemoryDevice, origin_size: int | None = None) -> str:
    report = checked(device, origin_size)
    assert len(report.problems) == 1 and report.verdict == PROBLEMS, [str(problem) for problem in report.problems]
    return str(report.problems[0])


def poke_header(device: MemoryDevice, field: int, value: int) -> None:
    device.poke(4 * field, struct.pack("<I", value))


def test_a_sound_store_has_no_problems() -> None:
    """Two areas of exceptions, stale bytes everywhere a reader does not look: sound."""
    report = checked(cow_device(2000, list(zip(range(EPA + 7), data_chunks(EPA + 7), strict=True))))
    assert report.problems == [] and report.verdict == SOUND
    assert report.to_json()["exceptions"] == EPA + 7


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (0, 0, "header: magic 0x00000000, expected 0x70416e53"),
        (0, 0x70416E54, "header: magic 0x70416e54, expected 0x70416e53"),
        (1, 2, "header: valid 2, expected 0 or 1"),
        (2, 2, "header: version 2, expected 1"),
        (3, 0, "header: chunk_size 0 sectors, expected a power of two"),
        (3, 12, "header: chunk_size 12 sectors, expected a power of two"),
    ],
)
def test_a_bad_header_is_named(field: int, value: int, words: str) -> None:
    """Magic, valid, version and chunk size: the field, what it is, what it should be; and there is no dump."""
    device = cow_device(100)
    poke_header(device, field, value)
    assert only_problem(device) == words
    with pytest.raises(FormatError, match="header"):
        Image.load(device.peek, device.size)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_device_too_small_for_its_chunks_is_named(chunks: int) -> None:
    """A header that promises chunks for which the device has no room."""
    device = cow_device(8)
    del device.data[chunks * CHUNK :]
    device.size = chunks * CHUNK
    assert "too small for one chunk" in only_problem(device)


@pytest.mark.parametrize("length", [1, 16, 511])
def test_a_device_without_room_for_a_header_is_named(length: int) -> None:
    """Not even a sector: said, not stumbled over."""
    device = MemoryDevice(length)
    assert only_problem(device) == f"device: {length} bytes, expected at least a header of 512"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((7, 3), "area 0, entry 1 (7 -> 3): old chunk 7 has entry 0 already, expected one entry a chunk"),
        ((8, 2), "area 0, entry 1 (8 -> 2): new chunk 2 is used by entry 0, expected each used once"),
        ((8, 258), "area 0, entry 1 (8 -> 258): new chunk 258 is a metadata area, expected a data chunk"),
        ((8, 1), "area 0, entry 1 (8 -> 1): new chunk 1 is a metadata area, expected a data chunk"),
        ((8, 600), "area 0, entry 1 (8 -> 600): new chunk 600 lies behind the device's end, expected 599 at most"),
        ((50, 3), "area 0, entry 1 (50 -> 3): old chunk 50 is out of range, expected less than 50"),
    ],
)
def test_a_bad_entry_is_named(entry: tuple[int, int], words: str) -> None:
    """Duplicate old, duplicate new, on metadata, behind the device's end, beyond the origin."""
    device = cow_device(600, [(7, 2), entry])
    assert only_problem(device, 50 * CHUNK) == words
    with pytest.raises(Corrupt, match=r"area 0, entry 1"):
        Content([(device.peek, device.size)], (device.peek, 50 * CHUNK))


def test_the_origins_size_is_taken_from_the_sidecar() -> None:
    """Without the origin at hand the sidecar says how many chunks it has, the last one partial."""
    device = cow_device(100, [(10, 2), (11, 3)])
    device.poke(16, Sidecar(VOLUME_UUID, STORE, "s1", 10 * CHUNK + 512, 1).to_bytes(CHUNK // 512))
    assert only_problem(device).startswith("area 0, entry 1 (11 -> 3): old chunk 11 is out of range")


def test_a_damaged_sidecar_is_named() -> None:
    """Its checksum covers it; the exceptions are shown all the same."""
    device = cow_device(100, [(1, 2)])
    device.poke(16, Sidecar(VOLUME_UUID, STORE, "s1", 100 * CHUNK, 1).to_bytes(CHUNK // 512))
    device.poke(100, b"X")
    words = only_problem(device)
    assert words.startswith("sidecar: checksum 0x") and ", expected 0x" in words
    assert checked(device).to_json()["exceptions"] == 1


def test_trap_1_a_full_last_area_without_terminator_is_named() -> None:
    """The kernel cannot open it; every exception is still shown."""
    device = cow_device(2 + EPA, list(zip(range(EPA), data_chunks(EPA), strict=True)))
    assert only_problem(device).startswith("end of list: the last area is full and has no terminator")
    assert len(Image.load(device.peek, device.size).exceptions) == EPA


def test_trap_2_stale_entries_behind_the_end_are_named_and_not_believed() -> None:
    """What a torn batch left is no exception, but would become one; the content can be read without it."""
    device = cow_device(100, [(1, 2)])
    device.poke(CHUNK + 5 * 16, struct.pack("<QQ", 4, 3))
    words = only_problem(device)
    assert words.startswith("area 0, entry 5: 1 stale entries behind the list's end (entry 1), first 4 -> 3")
    assert Image.load(device.peek, device.size).exceptions == [(1, 2)]
    origin = bytes(10 * CHUNK)
    content = Content([(device.peek, device.size)], (lambda at, length: origin[at : at + length], len(origin)))
    assert content.chunk(4) == bytes(CHUNK)


def test_every_problem_is_found_not_only_the_first() -> None:
    """Three bad entries, three problems."""
    assert len(checked(cow_device(100, [(1, 2), (1, 3), (2, 2), (3, 1)])).problems) == 3


def test_a_device_error_is_not_a_problem_of_the_format() -> None:
    """What cannot be read raises: exit code 2 is the caller's to give."""

    def failing(offset: int, length: int) -> bytes:
        raise DeviceError("cow", 5)

    with pytest.raises(DeviceError):
        check(failing, 100 * CHUNK)


def test_the_dump_is_the_agreed_value() -> None:
    """Exactly the six fields, ready for JSON, with the kernel's words."""
    value = Image.load((device := cow_device(512, [(9, 3), (4, 2)])).peek, device.size).to_json()
    assert json.loads(json.dumps(value)) == {
        "valid": True,
        "version": 1,
        "chunk_size": 8,
        "next_free": 4,
        "status": "32/4096 16",
        "exceptions": [[9, 3], [4, 2]],
    }


def test_an_invalid_store_is_dumped_with_its_exceptions() -> None:
    """valid=0: the kernel's word is Invalid, and the exceptions found are still listed. Its format is sound."""
    device = cow_device(100, [(9, 2)])
    device.poke(0, Header(False, CHUNK // 512).to_bytes())
    report = checked(device)
    assert report.verdict == SOUND and report.image is not None
    value = report.image.to_json()
    assert (value["valid"], value["status"], value["exceptions"]) == (False, "Invalid", [[9, 2]])
    with pytest.raises(StoreInvalid):
        Content([(device.peek, device.size)], (device.peek, CHUNK))


def test_dump_and_store_say_the_same() -> None:
    """Status and next free chunk are those of the persistent store that loads the same device."""
    for count in (0, 1, EPA - 1, EPA, EPA + 1, 2 * EPA):
        device = cow_device(2000, list(zip(range(count), data_chunks(count), strict=True)))
        store, image = StoreRig(device).loaded(), Image.load(device.peek, device.size)
        assert (store.status(StatusKind.INFO), store.next_free) == (image.status, image.next_free)
        assert sorted(store.map.items()) == sorted(image.exceptions)


def test_content_looks_in_the_own_store_then_in_newer_ones_then_on_the_origin() -> None:
    """A stack of two: the newest is over the origin, the older one over the newest."""
    size = 4 * CHUNK - 512  # the last chunk is partial
    origin = b"".join(bytes([ord("o"), chunk]) * (CHUNK // 2) for chunk in range(4))[:size]
    newest, older = cow_device(16, [(1, 2), (2, 3)]), cow_device(16, [(2, 2), (3, 3)])
    for device, mark in ((newest, b"n"), (older, b"p")):
        for new in (2, 3):
            device.poke(new * CHUNK, mark * CHUNK)
    stores = [(newest.peek, newest.size), (older.peek, older.size)]
    below = (lambda at, length: origin[at : at + length], size)
    assert [chunk[:1] for chunk in Content(stores, below).chunks()] == [b"o", b"n", b"p", b"p"]
    assert [chunk[:1] for chunk in Content(stores[:1], below).chunks()] == [b"o", b"n", b"n", b"o"]
    assert sum(map(len, Content(stores, below).chunks())) == size
