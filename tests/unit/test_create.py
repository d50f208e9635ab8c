"""Making a COW device ready: what is refused, what is written in which order, and taking it back."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapd.blockdev.device import FileDevice, open_device
from snapd.blockdev.sync import pread
from snapd.errors import FormatError, Refused
from snapd.exstore import create as module
from snapd.exstore import signature as signatures
from snapd.exstore.check import check
from snapd.exstore.create import check_free, check_geometry, create, undo
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.units import KIB, MIB
from tests.support.disks import attached, can_attach

VOLUME = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
STORE = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"
SIDECAR = Sidecar(VOLUME, STORE, "s1", 64 * MIB, 1)
CHUNK = 16 * KIB
ORIGIN = "file:0:0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDevice]:
    path = tmp_path / "cow"
    path.touch()
    os.truncate(path, 8 * MIB)
    device = open_device(str(path), exclusive=False)
    yield device
    device.close()


def put(device: FileDevice, offset: int, data: bytes) -> None:
    with open(device.path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def report(device: FileDevice) -> object:
    return check(lambda offset, length: pread(device, offset, length), device.size)


def free(device: FileDevice, force: bool = False) -> None:
    check_free(device, ORIGIN, VOLUME, force)


def test_a_device_of_zeros_is_free(disk: FileDevice) -> None:
    """A fresh LUN is taken without being told to."""
    free(disk)


@pytest.mark.parametrize("offset", [0, 1, 511, 512, 4096, MIB - 1])
def test_a_byte_in_the_first_mib_is_foreign(disk: FileDevice, offset: int) -> None:
    """Any byte that is not zero is somebody's; the message names device, offset and value. Force overrides."""
    put(disk, offset, b"\x07")
    with pytest.raises(Refused, match=f"{disk.path}: foreign content: byte 0x07 at offset {offset}, expected zeros"):
        free(disk)
    free(disk, force=True)


def test_behind_the_first_mib_bytes_without_a_signature_do_not_count(disk: FileDevice) -> None:
    """What is left of an old LUN far behind its beginning is no reason to refuse."""
    put(disk, MIB, b"\x07")
    free(disk)


@pytest.mark.parametrize("kind", ["ext4", "swap", "gpt"])
def test_a_signature_is_foreign_and_named(disk: FileDevice, kind: str) -> None:
    """What libblkid sees is named; ext4's first sector is zero, so the kernel's own rule would overwrite it."""
    if kind == "gpt":
        put(disk, 0, gpt(disk.size))
    else:
        command = ["mkswap", disk.path] if kind == "swap" else ["mkfs.ext4", "-q", "-F", disk.path]
        subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(Refused, match=f"foreign content: signature '{kind}'"):
        free(disk)
    free(disk, force=True)


def test_a_signature_at_the_end_counts(disk: FileDevice) -> None:
    """RAID metadata of version 1.0 lies at the device's end: the first MiB being zero is not enough."""
    put(disk, disk.size - 8 * KIB, md_superblock(disk.size - 8 * KIB))
    with pytest.raises(Refused, match="signature 'linux_raid_member'"):
        free(disk)


def test_the_origin_is_never_free(disk: FileDevice) -> None:
    """Not with force either, by whatever path it was named: the identity tells."""
    with pytest.raises(Refused, match="this is the origin itself"):
        check_free(disk, disk.identity, VOLUME, True)


def test_without_libblkid_a_device_is_refused(disk: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is said, not taken for "nothing there"."""
    with pytest.raises(Refused, match=r"libnothing\.so\.1: .*without it nobody can tell"):
        signatures.signature(disk, "libnothing.so.1")


def test_what_a_delete_leaves_is_free(disk: FileDevice) -> None:
    """Our header with valid=0 and this volume's sidecar: the device is reused without force, stale data and all."""
    create(disk, CHUNK, SIDECAR)
    put(disk, 2 * CHUNK, b"old data" * 100)
    with pytest.raises(Refused, match="the exceptions of snapshot 's1' of volume"):
        free(disk)
    undo(disk, STORE)
    free(disk)


def test_what_another_volume_left_is_foreign(disk: FileDevice) -> None:
    """A deleted store of another volume is not ours to overwrite."""
    create(disk, CHUNK, Sidecar(STORE, STORE, "s1", 64 * MIB, 1))
    undo(disk, STORE)
    with pytest.raises(Refused, match=f"of volume {STORE}"):
        free(disk)


def test_a_left_device_that_somebody_wrote_to_is_foreign(disk: FileDevice) -> None:
    """A byte behind the sidecar in chunk 0 says that the device is used for something else now."""
    create(disk, CHUNK, SIDECAR)
    undo(disk, STORE)
    put(disk, 1024 + 56, b"\x53\xef")
    with pytest.raises(Refused, match="foreign content"):
        free(disk)


def test_a_store_that_the_kernel_invalidated_is_foreign(disk: FileDevice) -> None:
    """The kernel drops the sidecar: nothing ties the device to this volume any more."""
    put(disk, 0, Header(False, 32).to_bytes())
    with pytest.raises(Refused, match="foreign content"):
        free(disk)


def test_a_created_store_is_empty_and_sound_whatever_was_there(disk: FileDevice) -> None:
    """Stale bytes everywhere: only header, sidecar and first area count, and they are ours."""
    put(disk, 0, b"\xaa" * disk.size)
    create(disk, CHUNK, SIDECAR)
    found = report(disk)
    assert found.problems == [] and found.image.exceptions == [] and found.image.sidecar == SIDECAR  # type: ignore[attr-defined]
    assert found.image.status == f"64/{disk.size // 512} 64"  # type: ignore[attr-defined]


def test_the_area_is_stable_before_the_header_is_written(disk: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Area, flush, chunk 0, flush: a crash in between leaves no header over stale entries."""
    steps: list[object] = []

    def noted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(device: FileDevice, *rest: object) -> None:
            steps.append((name, rest[0]) if rest else name)
            real(device, *rest)

        return call

    monkeypatch.setattr(module, "pwrite", noted("write", module.pwrite))
    monkeypatch.setattr(module, "fsync", noted("flush", module.fsync))
    create(disk, CHUNK, SIDECAR)
    assert steps == [("write", CHUNK), "flush", ("write", 0), "flush"]


def test_undo_keeps_the_sidecar_and_leaves_other_content_alone(disk: FileDevice) -> None:
    """valid becomes 0 and nothing else changes; without a header of ours nothing is written."""
    create(disk, CHUNK, SIDECAR)
    before = pread(disk, 0, CHUNK)
    undo(disk, STORE)
    after = pread(disk, 0, CHUNK)
    assert [at for at in range(CHUNK) if before[at] != after[at]] == [4] and after[4] == 0
    put(disk, 0, b"foreign!" * 64)
    undo(disk, STORE)
    assert pread(disk, 0, 512) == b"foreign!" * 64


def test_undo_leaves_another_hosts_store_alone(disk: FileDevice) -> None:
    """Two hosts made the same device theirs, one lost: it must not invalidate what the other one has now."""
    create(disk, CHUNK, SIDECAR)
    before = pread(disk, 0, CHUNK)
    undo(disk, VOLUME)
    assert pread(disk, 0, CHUNK) == before


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_device_without_room_for_one_exception_is_refused(tmp_path: Path, chunks: int) -> None:
    """Header, area, one chunk: anything smaller is refused before a byte is written."""
    path = tmp_path / "small"
    path.write_bytes(bytes(chunks * CHUNK))
    device = open_device(str(path), exclusive=False)
    with pytest.raises(Refused, match=f"too small.* expected at least {3 * CHUNK}"):
        create(device, CHUNK, SIDECAR)
    device.close()
    assert path.read_bytes() == bytes(chunks * CHUNK)


def test_the_smallest_device_holds_one_exception(tmp_path: Path) -> None:
    """Three chunks are enough, and the list keeps its terminator (trap 1)."""
    path = tmp_path / "small"
    path.write_bytes(bytes(3 * CHUNK))
    device = open_device(str(path), exclusive=False)
    create(device, CHUNK, SIDECAR)
    assert check_geometry(device, CHUNK).capacity == 1
    device.close()


def test_a_logical_block_larger_than_the_origins_is_refused(tmp_path: Path) -> None:
    """A client's smallest request is the origin's block, for snapshots too."""
    path = tmp_path / "cow"
    path.write_bytes(bytes(MIB))
    device = open_device(str(path), exclusive=False, logical_block=4096)
    with pytest.raises(Refused, match="logical block of 4096 bytes, expected the origin's, 512, at most"):
        check_geometry(device, CHUNK, 512)
    with pytest.raises(Refused, match="expected one that divides a chunk, 2048"):
        check_geometry(device, 2048)
    device.close()


def test_a_bad_name_is_refused_before_anything_is_written(disk: FileDevice) -> None:
    """The sidecar is made first; a name that fits none changes nothing."""
    with pytest.raises(FormatError, match="snapshot name"):
        create(disk, CHUNK, Sidecar(VOLUME, STORE, "no/slash", 64 * MIB, 1))
    assert pread(disk, 0, 2 * CHUNK) == bytes(2 * CHUNK)


@pytest.mark.skipif(not can_attach(), reason="no loop devices here")
@pytest.mark.parametrize("block", [512, 4096])
def test_a_block_device_is_probed_and_formatted(disk: FileDevice, block: int) -> None:
    """The same on a loop device, whose page cache may be stale and whose logical block may be 4096."""
    with attached(disk.path, block) as path:
        device = open_device(path, exclusive=True)
        free(device)
        create(device, CHUNK, SIDECAR)
        assert report(device).problems == []  # type: ignore[attr-defined]
        with pytest.raises(Refused):
            free(device)
        undo(device, STORE)
        free(device)
        device.close()


def gpt(size: int) -> bytes:
    """The protective MBR and primary header of a partition table without partitions."""
    import zlib

    last = size // 512 - 1
    entries = bytes(128 * 128)
    mbr = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last) + bytes(48) + b"\x55\xaa"
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 33, b"csnap-test-disk!", 2, 128, 128]
    packed = struct.Struct("<8sIIIIQQQQ16sQIII")
    head = packed.pack(*fields, zlib.crc32(entries))
    fields[3] = zlib.crc32(head)
    return mbr + packed.pack(*fields, zlib.crc32(entries)).ljust(512, b"\0") + entries


def md_superblock(at: int) -> bytes:
    """An md superblock of version 1.0 for a device on which it lies at ``at``."""
    block = bytearray(256 + 2)
    struct.pack_into("<III", block, 0, 0xA92B4EFC, 1, 0)
    struct.pack_into("<Q", block, 144, at // 512)  # super_offset
    struct.pack_into("<I", block, 220, 1)  # max_dev
    total = sum(struct.unpack(f"<{len(block) // 4}I", block[: len(block) // 4 * 4])) + block[256] + block[257] * 256
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    return bytes(block)
