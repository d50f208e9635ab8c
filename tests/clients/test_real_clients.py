"""The clients that people use, against a real worker: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, libnbd's Python module.

On logical blocks of 512 and 4096 bytes, with chunks smaller, equal and much larger than their requests.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd.units import KIB, MIB
from tests.support.nbd_client import NbdClient
from tests.support.served import Served, Shape, run, served, shapes
from tests.support.worker_process import VOLUME_UUID

SHAPES = shapes()
SYSTEM_PYTHON = "/usr/bin/python3"  # libnbd's module is a Debian package


@pytest.fixture(params=SHAPES, ids=str)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Served]:
    """One shape, where the shape cannot matter."""
    with served(tmp_path, Shape(512, 16 * KIB)) as made:
        yield made


def test_nbdinfo_lists_every_export(volume: Served) -> None:
    """--list shows the origin and each snapshot, newest first, with block sizes and what can be done with them."""
    volume.snapshot("old")
    volume.snapshot("new", writable=True)
    exports = json.loads(run("nbdinfo", "--list", "--json", volume.uri()))["exports"]
    assert [export["export-name"] for export in exports] == ["origin", "snapshot/new", "snapshot/old"]
    for export in exports:
        assert export["export-size"] == volume.shape.size
        assert export["block_size_minimum"] == volume.shape.block
        assert export["block_size_preferred"] == volume.shape.chunk
        assert export["block_size_maximum"] == 32 * MIB
        assert export["can_multi_conn"] and export["can_flush"] and export["can_fua"]
        assert export["contexts"] == ["base:allocation"]
    assert [export["is_read_only"] for export in exports] == [False, False, True]
    assert [export["can_zero"] for export in exports] == [True, True, False]


def test_nbdinfo_of_one_export_and_its_map(volume: Served) -> None:
    """--json of the origin, which names its volume, and of a snapshot; --map, which asks for the block status of all of
    it: one allocated extent."""
    volume.snapshot()
    (export,) = json.loads(run("nbdinfo", "--json", volume.uri("origin")))["exports"]
    assert export["description"] == f"origin of volume vol, cluster_uuid {VOLUME_UUID}"
    (export,) = json.loads(run("nbdinfo", "--json", volume.uri("snapshot/s1")))["exports"]
    assert export["description"] == "snapshot s1, active"
    extents = json.loads(run("nbdinfo", "--map", "--json", volume.uri("snapshot/s1")))
    assert sum(extent["length"] for extent in extents) == volume.shape.size
    assert {extent["type"] for extent in extents} == {0}


def test_nbdcopy_both_ways(volume: Served, tmp_path: Path) -> None:
    """What is copied in is copied out, with many requests at once; the snapshot shows what was there before."""
    volume.snapshot()
    new = tmp_path / "new"
    new.write_bytes(volume.content[::-1])
    run("nbdcopy", "--flush", str(new), volume.uri())
    assert volume.fetch("origin") == volume.content[::-1]
    assert volume.origin_file.read_bytes() == volume.content[::-1]
    assert volume.fetch("snapshot/s1") == volume.content


def test_qemu_img(volume: Served, tmp_path: Path) -> None:
    """info, convert and compare, of the origin and of a snapshot."""
    volume.snapshot()
    info = json.loads(run("qemu-img", "info", "--output=json", volume.uri("snapshot/s1")))
    assert info["virtual-size"] == volume.shape.size
    saved, other = tmp_path / "saved.raw", tmp_path / "other.qcow2"
    saved.write_bytes(volume.content)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", volume.uri(), str(other))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", volume.uri("snapshot/s1"), str(other))
    with NbdClient(volume.worker.socket) as client:
        assert client.write(3 * MIB, bytes(64 * KIB)) == 0
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(saved), volume.uri("snapshot/s1"))
    differs = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(saved), volume.uri()], capture_output=True, text=True
    )
    assert differs.returncode == 1 and f"offset {3 * MIB}" in differs.stdout
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(saved), volume.uri())
    assert volume.fetch("origin") == volume.content


def test_qemu_io_on_the_origin(volume: Served) -> None:
    """Writes within, across and over many chunks, zeroes, discard, flush and FUA: read back, snapshot unchanged."""
    volume.snapshot()
    chunk, block = volume.shape.chunk, 4096
    writes = [
        (f"write -P 1 {chunk - block} {2 * block}", 1, chunk - block, 2 * block),
        (f"write -P 2 -f {3 * chunk + block} {block}", 2, 3 * chunk + block, block),
        (f"write -P 3 {4 * chunk} {chunk}", 3, 4 * chunk, chunk),
        (f"write -P 4 {6 * chunk - block} {5 * chunk}", 4, 6 * chunk - block, 5 * chunk),
        (f"write -z {8 * chunk} {2 * chunk - block}", 0, 8 * chunk, 2 * chunk - block),
        (f"write -z -f {MIB // 2} {MIB // 2 + block}", 0, MIB // 2, MIB // 2 + block),
    ]
    if block % volume.shape.block == 0 and volume.shape.block == 512:
        writes.append(("write -P 5 5632 512", 5, 5632, 512))
    expected = bytearray(volume.content)
    commands = []
    for command, pattern, offset, length in writes:
        expected[offset : offset + length] = bytes([pattern]) * length
        commands += [command, f"read -P {pattern} {offset} {length}"]
    commands += ["flush", f"discard {chunk} {chunk}", f"aio_write -P 7 {11 * MIB} 64k", "aio_flush"]
    expected[11 * MIB : 11 * MIB + 64 * KIB] = bytes([7]) * 64 * KIB
    run("qemu-io", "-f", "raw", *(part for command in commands for part in ("-c", command)), volume.uri())
    assert volume.fetch("origin") == bytes(expected)
    assert volume.fetch("snapshot/s1") == volume.content


def test_qemu_io_on_a_writable_snapshot(volume: Served) -> None:
    """A write to a snapshot changes neither the origin nor the older snapshot; both were changed before, too."""
    volume.snapshot("old")
    volume.snapshot("new", writable=True)
    chunk = volume.shape.chunk
    run("qemu-io", "-f", "raw", "-c", f"write -P 9 {chunk} {2 * chunk}", volume.uri())
    command = ["-c", f"write -P 8 -f {chunk - 4096} {4 * chunk}", "-c", f"write -z {7 * chunk} {chunk}", "-c", "flush"]
    run("qemu-io", "-f", "raw", *command, volume.uri("snapshot/new"))
    changed = bytearray(volume.content)
    changed[chunk - 4096 : 5 * chunk - 4096] = bytes([8]) * 4 * chunk
    changed[7 * chunk : 8 * chunk] = bytes(chunk)
    origin = bytearray(volume.content)
    origin[chunk : 3 * chunk] = bytes([9]) * 2 * chunk
    assert volume.fetch("snapshot/new") == bytes(changed)
    assert volume.fetch("snapshot/old") == volume.content
    assert volume.fetch("origin") == bytes(origin)


@pytest.mark.parametrize("with_snapshot", [False, True], ids=["no-snapshot", "snapshot"])
def test_fio_verifies_what_it_wrote(volume: Served, with_snapshot: bool) -> None:
    """Random writes of mixed sizes at depth 16, each verified by its checksum; the snapshot never changes."""
    stop = threading.Event()
    readings: list[bool] = []
    if with_snapshot:
        volume.snapshot()

        def keep_reading() -> None:
            while not stop.is_set():
                readings.append(volume.fetch("snapshot/s1") == volume.content)

        thread = threading.Thread(target=keep_reading)
        thread.start()
    try:
        run(
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={volume.uri()}", "--rw=randwrite", "--iodepth=16",
            f"--size={8 * MIB}", "--bsrange=4k-96k", "--bs_unaligned=0", "--blockalign=4k", "--verify=crc32c",
            "--do_verify=1", "--verify_fatal=1", "--fsync=64", "--randseed=3", "--offset=1m", "--allow_file_create=0",
        )  # fmt: skip
    finally:
        stop.set()
        if with_snapshot:
            thread.join()
    if with_snapshot:
        assert readings and all(readings)
        assert volume.fetch("snapshot/s1") == volume.content
    assert volume.fetch("origin")[9 * MIB :] == volume.content[9 * MIB :]


LIBNBD = """
import nbd, sys, errno
origin, snapshot, block = sys.argv[1], sys.argv[2], int(sys.argv[3])
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(origin)
size = h.get_size()
assert h.get_protocol() == "newstyle-fixed" and h.get_structured_replies_negotiated()
assert h.can_multi_conn() and h.can_fua() and h.can_zero() and h.can_trim() and not h.is_read_only()
assert h.get_block_size(nbd.SIZE_MINIMUM) == block
h.set_strict_mode(0)
before = h.pread(65536, 4096)
h.pwrite(b"a" * block, 0, nbd.CMD_FLAG_FUA)
h.zero(2 * block, block)
h.trim(block, size - block, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4 * block, 0) == b"a" * block + bytes(2 * block) + h.pread(block, 3 * block)
found = []
h.block_status(size, 0, lambda context, offset, entries, error: found.extend(entries))
assert sum(found[::2]) == size and set(found[1::2]) == {0}, found
bad = {"misaligned": (1, 1), "beyond": (block, size), "over the end": (2 * block, size - block)}
for what, (length, offset) in bad.items():
    try:
        h.pread(length, offset)
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, (what, error.string)
    else:
        raise AssertionError(what)
try:
    h.pwrite(b"x" * block, size)
except nbd.Error as error:
    assert error.errnum == errno.ENOSPC, error.string
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * block), 65536 + n * block) for n in range(40)]
while h.aio_in_flight():
    h.poll(-1)
assert h.pread(40 * block, 65536) == b"".join(bytes([n]) * block for n in range(40))
r = nbd.NBD()
r.connect_uri(snapshot)
r.set_strict_mode(0)
assert r.is_read_only() and r.get_size() == size
assert r.pread(65536, 4096) == before
for refused in (lambda: r.pwrite(b"x" * block, 0), lambda: r.zero(block, 0), lambda: r.trim(block, 0)):
    try:
        refused()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error.string
    else:
        raise AssertionError("a read-only snapshot took a change")
r.shutdown()
h.shutdown()
o = nbd.NBD()
o.set_request_structured_replies(False)
o.connect_uri(origin)
assert not o.get_structured_replies_negotiated() and o.pread(block, 0) == b"a" * block
o.shutdown()
n = nbd.NBD()
try:
    n.connect_uri(origin.replace("origin", "nobody"))
except nbd.Error as error:
    assert error.errnum == errno.ENOENT, error.string
else:
    raise AssertionError("an export that is not there was opened")
print("done")
"""


def test_libnbd(volume: Served) -> None:
    """Everything the protocol offers, and what it refuses, through libnbd's Python module."""
    volume.snapshot()
    program = ["-c", LIBNBD, volume.uri(), volume.uri("snapshot/s1"), str(volume.shape.block)]
    assert run(SYSTEM_PYTHON, *program) == "done\n"
    assert volume.fetch("snapshot/s1") == volume.content


def test_old_clients_that_only_know_the_export_name(plain: Served) -> None:
    """NBD_OPT_EXPORT_NAME, which has no room for block sizes or errors."""
    program = (
        "import nbd, sys\n"
        "h = nbd.NBD()\n"
        "h.set_handshake_flags(nbd.HANDSHAKE_FLAG_NO_ZEROES if sys.argv[2] == 'short' else 0)\n"
        "h.set_export_name('origin')\n"
        "h.connect_unix(sys.argv[1])\n"
        "assert h.get_protocol() == 'newstyle', h.get_protocol()\n"
        "print(h.pread(512, 1024).hex())\n"
    )
    for zeroes in ("short", "long"):
        text = run(SYSTEM_PYTHON, "-c", program, str(plain.worker.socket), zeroes)
        assert bytes.fromhex(text) == plain.content[1024:1536]


def test_the_default_export_is_the_origin(plain: Served) -> None:
    """A client that names nothing gets the origin."""
    run("qemu-io", "-f", "raw", "-c", "write -P 6 0 512", f"nbd+unix:///?socket={plain.worker.socket}")
    assert plain.origin_file.read_bytes()[:512] == b"\x06" * 512
