"""Clients that share a worker: many of them, slow ones, hostile ones; errors and memory go where they belong."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from errno import EIO
from pathlib import Path

import pytest

from snapd import counters
from snapd.nbd import wire
from snapd.nbd.server import PRIVATE_LIMIT
from snapd.units import KIB, MIB
from tests.support.disks import attached, can_attach, can_mount, mounted
from tests.support.nbd_client import NbdClient
from tests.support.served import Served, Shape, served
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

CHUNK = 16 * KIB


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, Shape(512, CHUNK)) as made:
        yield made


if can_attach():

    def test_a_devices_errors_reach_exactly_the_requests_they_belong_to(tmp_path: Path) -> None:
        """A disk whose second half fails: reads and writes there get EIO, all others in between are done."""
        file = tmp_path / "origin"
        file.write_bytes(b"o" * 4 * MIB)
        with attached(str(file)) as path, WorkerProcess(tmp_path, path) as worker, NbdClient(worker.socket) as client:
            os.truncate(file, 2 * MIB)
            offsets = [index * 128 * KIB for index in range(32)]
            random.Random(1).shuffle(offsets)
            reads = {client.send(wire.CMD_READ, offset, 4096): offset for offset in offsets}
            for number, offset in reads.items():
                reply = client.answer(number)
                assert reply.error == (EIO if offset >= 2 * MIB else 0), offset
                assert reply.data == (b"" if reply.error else b"o" * 4096)
            across = client.answer(client.send(wire.CMD_READ, 2 * MIB - 4096, 8192))
            assert across.error == EIO
            assert worker.words[counters.IO_ERRORS["origin", "read", "EIO"]] == 17


if can_mount():

    def test_a_failing_cow_device_costs_the_snapshot_and_no_origin_request(tmp_path: Path) -> None:
        """The COW device takes no more writes under two writers: theirs are done, the snapshot is lost, unreadable."""
        file = tmp_path / "origin"
        file.write_bytes(b"o" * 4 * MIB)
        with ExitStack() as stack:
            full = stack.enter_context(mounted("tmpfs", "size=1m"))
            worker = stack.enter_context(WorkerProcess(tmp_path, file))
            worker.take(make_cow(Path(full) / "cow", "s1", 4 * MIB, CHUNK, 8 * MIB))
            clients = [stack.enter_context(NbdClient(worker.socket)) for _ in range(2)]
            reader = stack.enter_context(NbdClient(worker.socket, "snapshot/s1"))
            numbers = [
                (client, client.send(wire.CMD_WRITE, (2 * index + which) * CHUNK, data=b"n" * 512))
                for index in range(100)
                for which, client in enumerate(clients)
            ]
            assert [client.answer(number).error for client, number in numbers] == [0] * 200
            assert worker.overflowed()
            assert reader.answer(reader.send(wire.CMD_READ, 0, 512)).error == EIO


def test_several_clients_write_and_read_at_once(volume: Served) -> None:
    """Eight clients in the same chunks, a snapshot taken in their midst: each reads what it wrote."""
    failures: list[str] = []
    half_way = threading.Barrier(9)

    def work(me: int) -> None:
        rng = random.Random(me)
        with NbdClient(volume.worker.socket) as client:
            mine = {}
            for turn in range(120):
                if turn == 40:
                    half_way.wait(20)
                offset = rng.randrange(0, 4 * MIB // 4096) * 4096 + me * 512
                mine[offset] = bytes([me + 1]) * 256 + turn.to_bytes(4, "little") * 64
                if client.write(offset, mine[offset], rng.choice((0, wire.CMD_FLAG_FUA))):
                    failures.append(f"write of {me} at {offset}")
            for offset, data in mine.items():
                if client.read(offset, 512) != data:
                    failures.append(f"{me} at {offset}")

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    half_way.wait(20)
    volume.snapshot()
    first = volume.fetch("snapshot/s1")
    for thread in threads:
        thread.join()
    assert not failures
    assert volume.fetch("snapshot/s1") == first != volume.fetch("origin")


def test_a_client_that_does_not_take_its_replies_stops_nobody(volume: Served) -> None:
    """One asks for far more than all buffers hold and reads nothing; another's requests are answered all the same."""
    with NbdClient(volume.worker.socket) as slow, NbdClient(volume.worker.socket) as other:
        numbers = [slow.send(wire.CMD_READ, index * MIB % (8 * MIB), 4 * MIB) for index in range(40)]
        for index in range(20):
            assert other.write(index * CHUNK, b"n" * 512) == 0
            other.read(0, 8 * MIB)
        for number in numbers:
            assert len(slow.answer(number).data) == 4 * MIB


def test_a_client_that_stops_in_the_middle_of_a_payload_stops_nobody(volume: Served) -> None:
    """Half a WRITE of 32 MiB occupies every large buffer: when others need them its connection is ended."""
    with NbdClient(volume.worker.socket) as half, NbdClient(volume.worker.socket) as other:
        head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, bytes(8), 0, 8 * MIB)
        for _ in range(5):
            with NbdClient(volume.worker.socket) as another:
                another.sock.sendall(head + bytes(100))
        half.sock.sendall(head + bytes(1000))
        started = time.monotonic()
        assert len(other.read(0, 8 * MIB)) == 8 * MIB
        assert time.monotonic() - started < 10
    assert volume.origin_file.read_bytes() == volume.content


def test_two_hundred_connections(volume: Served) -> None:
    """Each of two hundred clients is served; when they have gone, nothing of them is left."""
    volume.snapshot()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(NbdClient(volume.worker.socket, ("origin", "snapshot/s1")[index % 2]))
            for index in range(200)
        ]
        assert volume.worker.words[counters.CONNECTIONS] == 200
        numbers = [client.send(wire.CMD_READ, index * 4096, 4096) for index, client in enumerate(clients)]
        for index, (client, number) in enumerate(zip(clients, numbers, strict=True)):
            assert client.answer(number).data == volume.content[index * 4096 : (index + 1) * 4096]
    wait_until(lambda: volume.worker.words[counters.CONNECTIONS] == 0)
    wait_until(lambda: volume.worker.words[counters.INFLIGHT] == 0)
    descriptors = list(Path(f"/proc/{volume.worker.process.pid}/fd").iterdir())
    assert len(descriptors) < 25


def test_a_client_that_leaves_with_requests_under_way_harms_nobody(volume: Served) -> None:
    """Its buffers stay its own until their I/O has ended: what others write and read meanwhile is right."""
    volume.snapshot()
    rng = random.Random(5)
    with NbdClient(volume.worker.socket) as steady:
        for turn in range(60):
            leaving = NbdClient(volume.worker.socket)
            for _ in range(30):
                kind = rng.choice((wire.CMD_READ, wire.CMD_WRITE))
                offset, length = 8 * MIB + rng.randrange(64) * 4096, 4096 * rng.randrange(1, 20)
                data = b"\xee" * length if kind == wire.CMD_WRITE else b""
                leaving.send(kind, offset, length, data)
            leaving.close()
            offset = rng.randrange(1000) * 4096
            data = turn.to_bytes(4, "little") * 1024
            assert steady.write(offset, data) == 0
            assert steady.read(offset, 4096) == data
    wait_until(lambda: volume.worker.words[counters.INFLIGHT] == 0)
    assert volume.fetch("snapshot/s1") == volume.content
    tail = volume.fetch("origin")[8 * MIB + 90 * 4096 :]
    assert tail == volume.content[8 * MIB + 90 * 4096 :]


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 64,
        wire.CLIENT_FLAGS.pack(0xFFFFFFFF),
        wire.CLIENT_FLAGS.pack(3) + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0xFFFFFFFF),
        wire.CLIENT_FLAGS.pack(3) + wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, 0xFFFFFFFF) + b"x" * 100000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4,
    ],
    ids=["zeros", "flags", "name-length", "option-length", "http"],
)
def test_a_stranger_is_disconnected_and_counted(volume: Served, sent: bytes) -> None:
    """Without common ground the connection ends, nothing is touched, and the next client is served."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(20)
        stranger.connect(str(volume.worker.socket))
        stranger.recv(wire.GREETING.size)
        try:
            stranger.sendall(sent)
            assert stranger.recv(100) == b""
        except (ConnectionResetError, BrokenPipeError):
            pass
    wait_until(lambda: volume.worker.words[counters.PROTOCOL_ERRORS] == 1)
    with NbdClient(volume.worker.socket) as client:
        assert client.read(0, 512) == volume.content[:512]


def test_a_request_without_the_magic_ends_its_connection_only(volume: Served) -> None:
    """What was answered before is answered; the write that hides in the garbage is not done."""
    with NbdClient(volume.worker.socket) as bad, NbdClient(volume.worker.socket) as good:
        number = bad.send(wire.CMD_READ, 0, 512)
        assert bad.answer(number).data == volume.content[:512]
        bad.sock.sendall(
            struct.pack(">I", 0x12345678) + bytes(24)
            + wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, bytes(8), 0, 512) + bytes(512)
        )  # fmt: skip
        assert bad.gone()
        assert good.read(0, 512) == volume.content[:512]


@pytest.mark.parametrize("chunk", [CHUNK, MIB], ids=["16K", "1M"])
def test_memory_is_bounded(tmp_path: Path, chunk: int) -> None:
    """Every buffer in use, 200 clients, copies of every chunk: below 100 MiB and 64 bytes an exception.

    Replies that a client does not take while others wait for memory may cost PRIVATE_LIMIT more.
    """
    with ExitStack() as stack:
        volume = stack.enter_context(served(tmp_path, Shape(512, chunk)))
        volume.snapshot()
        clients = [stack.enter_context(NbdClient(volume.worker.socket)) for _ in range(200)]
        for round_ in range(3):
            numbers = []
            for index, client in enumerate(clients[:48]):
                offset = index * 256 * KIB % (12 * MIB)
                numbers.append((client, client.send(wire.CMD_WRITE, offset, data=bytes([round_]) * 256 * KIB)))
            for client in clients:
                numbers.append((client, client.send(wire.CMD_READ, 0, 60 * KIB)))
            for client, number in numbers:
                assert client.answer(number).error == 0
        numbers = [(client, client.send(wire.CMD_READ, 0, 11 * MIB)) for client in clients[:6]]
        assert not any(client.answer(number).error for client, number in numbers)
        exceptions = volume.worker.words[counters.COPIES]
        assert exceptions == 12 * MIB // chunk
        assert volume.worker.resident() < 100 * MIB + 64 * exceptions
        for _ in range(3):
            clients[0].send(wire.CMD_READ, 0, 11 * MIB)
        clients[1].read(0, 12 * MIB)
        assert volume.worker.resident() < 100 * MIB + 64 * exceptions + PRIVATE_LIMIT
