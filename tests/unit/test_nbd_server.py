"""The NBD server over real sockets, its clock and its volume in the test's hand: limits on time, memory, order."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd import counters
from snapd.errors import Refused
from snapd.nbd import server, wire
from snapd.nbd.listener import listen
from snapd.nbd.server import NEGOTIATION_LIMIT, PATIENCE, PAYLOAD_LIMIT, STOP_LIMIT
from snapd.units import KIB, MIB, SECOND
from tests.support.nbd_peer import info, option, request, write
from tests.support.ram_volume import RamExport, RamServer

GO = wire.CLIENT_FLAGS.pack(3) + option(wire.OPT_GO, info("origin"))
HELLO = wire.GREETING.size + 2 * wire.OPTION_REPLY.size + 12 + 14 + wire.OPTION_REPLY.size
"""Bytes of the greeting and of the three replies to GO."""


class Rig:
    """A server with few buffers, and clients that are plain sockets."""

    def __init__(self, directory: Path, small: int = 4, large: int = 4) -> None:
        self.now = SECOND
        self.path = str(directory / "nbd.sock")
        self.server = RamServer(self.path, [RamExport("origin", 64 * MIB)], lambda: self.now, small, large)
        self.clients: list[socket.socket] = []

    def connect(self, send: bytes = GO) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        self.clients.append(client)
        client.connect(self.path)
        client.sendall(send)
        self.turns()
        return client

    def ready(self) -> socket.socket:
        """A client in its transmission phase."""
        client = self.connect()
        assert len(client.recv(HELLO, socket.MSG_WAITALL)) == HELLO
        return client

    def turns(self, count: int = 5) -> None:
        for _ in range(count):
            self.server.turn(0)

    def tick(self, later: int = 0) -> None:
        self.now += later
        self.server.server.tick(self.now)
        self.turns()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()
        self.turns()
        self.server.server.tick(self.now + STOP_LIMIT)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def answered(client: socket.socket, length: int = 0) -> tuple[int, int]:
    """Receive one simple reply with its data; return (cookie, error)."""
    magic, error, cookie = struct.unpack(">IIQ", client.recv(16, socket.MSG_WAITALL))
    assert magic == wire.SIMPLE_REPLY_MAGIC
    if length and not error:
        assert len(client.recv(length, socket.MSG_WAITALL)) == length
    return cookie, error


def closed(client: socket.socket) -> bool:
    client.settimeout(0.05)
    try:
        while client.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


def test_a_client_that_does_not_negotiate_is_ended(rig: Rig) -> None:
    """After the limit, and not before; one that has negotiated may be idle for ever."""
    mute, idle = rig.connect(b""), rig.ready()
    rig.tick(NEGOTIATION_LIMIT - 1)
    assert rig.server.words[counters.CONNECTIONS] == 2
    rig.tick(1)
    assert closed(mute) and rig.server.words[counters.CONNECTIONS] == 1
    rig.tick(3600 * SECOND)
    idle.sendall(request(wire.CMD_READ, 0, 512, 1))
    rig.turns()
    assert answered(idle, 512) == (1, 0)


def test_newcomers_wait_while_the_exports_change(rig: Rig) -> None:
    """Whoever connects while the table is being changed is let in afterwards, and finds what is new."""
    early = rig.ready()
    rig.server.volume.changing = True
    rig.turns()
    late = rig.connect()
    assert rig.server.words[counters.CONNECTIONS] == 1
    early.sendall(request(wire.CMD_READ, 0, 512, 1))
    rig.turns()
    assert answered(early, 512) == (1, 0)
    rig.server.volume.changing = False
    rig.turns()
    assert len(late.recv(HELLO, socket.MSG_WAITALL)) == HELLO


def test_replies_that_nobody_takes_give_their_memory_to_those_who_wait(rig: Rig) -> None:
    """The slow client's replies are moved out of the buffers, and still arrive."""
    slow, other = rig.ready(), rig.ready()
    slow.sendall(b"".join(request(wire.CMD_READ, 0, 4 * MIB, index) for index in range(2)))
    rig.turns()
    other.sendall(request(wire.CMD_READ, 0, 4 * MIB, 9))
    rig.turns()
    assert rig.server.slots.out == 4
    rig.tick(PATIENCE)
    other.settimeout(0.05)
    received = b""
    while len(received) < 4 * MIB + 16:
        rig.turns()
        received += other.recv(1 << 20)
    got = 0
    while got < 2 * (4 * MIB + 16):
        rig.turns()
        got += len(slow.recv(1 << 20))
    rig.turns()
    assert rig.server.slots.out == 0


def test_a_payload_that_does_not_come_is_given_up_when_others_need_its_memory(rig: Rig) -> None:
    """A client that is silent in the middle of a WRITE is ended after the limit; alone it may be slow."""
    slow = rig.ready()
    slow.sendall(write(0, bytes(4 * MIB), 1)[:1000])
    rig.turns()
    rig.tick(PAYLOAD_LIMIT * 10)
    assert rig.server.slots.out == 4
    other = rig.ready()
    other.sendall(request(wire.CMD_READ, 0, 4 * MIB, 9))
    rig.turns()
    rig.tick(PAYLOAD_LIMIT * 10)
    assert closed(slow)
    received = 0
    while received < 4 * MIB + 16:
        rig.turns()
        received += len(other.recv(1 << 20))


def test_who_waits_for_memory_is_served_in_order(rig: Rig) -> None:
    """Nobody passes those who wait; each has its turn."""
    rig.server.volume.hold = True
    clients = [rig.ready() for _ in range(6)]
    for client in clients:
        client.sendall(b"".join(request(wire.CMD_READ, 0, 40 * KIB, index) for index in range(4)))
        rig.turns()
    order = []
    while rig.server.volume.held:
        order.append(rig.server.volume.held[0].done.__self__)
        rig.server.volume.release(1)
        rig.turns()
    assert len(order) == 24
    first_seen = list(dict.fromkeys(order))
    assert len(first_seen) == 6
    for client in clients:
        assert [answered(client, 40 * KIB)[0] for _ in range(4)] == [0, 1, 2, 3]


def test_a_small_request_does_not_wait_for_a_large_one(rig: Rig) -> None:
    """A request of 4 MiB that finds no memory does not stop small ones of others."""
    rig.server.volume.hold = True
    large, another, small = rig.ready(), rig.ready(), rig.ready()
    large.sendall(request(wire.CMD_READ, 0, 3 * MIB, 1))
    rig.turns()
    another.sendall(request(wire.CMD_READ, 0, 4 * MIB, 2))
    rig.turns()
    small.sendall(request(wire.CMD_READ, 0, 512, 3))
    rig.turns()
    assert [held.length for held in rig.server.volume.held] == [3 * MIB, 512]


def test_what_waits_for_memory_is_not_overwritten_by_what_others_send(rig: Rig) -> None:
    """A write waits with all that fits the server's one receive buffer; the next client's bytes go there, too. What was
    kept was once a view of that buffer: the next client's request was then executed again, for the one that waited."""
    holder, writer, other = rig.ready(), rig.ready(), rig.ready()
    rig.server.volume.hold = True
    holder.sendall(request(wire.CMD_READ, 32 * MIB, 4 * MIB, 1))
    rig.turns()
    data = b"w" * MIB
    whole = write(0, data, 2)
    received = len(rig.server.server.scratch)
    writer.sendall(whole[:received])
    rig.turns()
    other.sendall(write(16 * MIB, b"o" * 60 * KIB, 3))
    rig.turns()
    rig.server.volume.hold = False
    rig.server.volume.release()
    rig.turns()
    assert answered(other) == (3, 0)
    rig.tick(PATIENCE)  # the holder does not take its reply: the writer gets the memory
    position = received
    writer.setblocking(False)
    while position < len(whole):
        rig.turns()
        position += writer.send(whole[position : position + 64 * KIB])
    rig.turns()
    writer.settimeout(20)
    assert answered(writer) == (2, 0)
    assert bytes(rig.server.volume.contents["origin"][:MIB]) == data


def test_stop_answers_what_runs_and_ends_the_rest(rig: Rig) -> None:
    """Running requests are answered, then the connection ends; idle and negotiating clients are ended at once."""
    rig.server.volume.hold = True
    busy, idle, new = rig.ready(), rig.ready(), rig.connect(b"")
    busy.sendall(request(wire.CMD_READ, 0, 512, 1))
    rig.turns()
    rig.server.stop()
    rig.turns()
    assert closed(idle) and closed(new) and not rig.server.done
    rig.server.volume.release()
    rig.turns()
    assert answered(busy, 512) == (1, 0) and closed(busy) and rig.server.done
    late = socket.socket(socket.AF_UNIX)
    rig.clients.append(late)
    with pytest.raises(ConnectionRefusedError):
        late.connect(rig.path)


def test_stop_does_not_wait_for_a_client_that_takes_nothing(rig: Rig) -> None:
    """Its replies are thrown away after the limit."""
    slow = rig.ready()
    slow.sendall(request(wire.CMD_READ, 0, 4 * MIB, 1))
    rig.turns()
    rig.server.stop()
    rig.turns()
    assert not rig.server.done
    rig.tick(STOP_LIMIT)
    assert rig.server.done and rig.server.slots.out == 0


def test_a_dropped_exports_clients_are_ended(rig: Rig) -> None:
    """The snapshot is gone: its connections too, with I/O under way, whose buffers come back when it ends."""
    client = rig.ready()
    rig.server.volume.hold = True
    client.sendall(request(wire.CMD_READ, 0, 512, 1))
    rig.turns()
    rig.server.server.drop_export(rig.server.volume.list[0])
    assert closed(client) and rig.server.slots.out == 1
    rig.server.volume.release()
    assert rig.server.slots.out == 0


def test_a_newcomer_beyond_the_limit_is_closed_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients must not use up the descriptors that devices need; those who were there first stay."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    first, _ = rig.ready(), rig.ready()
    assert closed(rig.connect(b""))
    first.sendall(request(wire.CMD_READ, 0, 512, 1))
    rig.turns()
    assert answered(first, 512) == (1, 0)


def test_half_closed_clients_get_their_answers(rig: Rig) -> None:
    """A client that says it will send no more is answered, then the connection ends."""
    client = rig.ready()
    rig.server.volume.hold = True
    client.sendall(request(wire.CMD_READ, 0, 512, 1))
    client.shutdown(socket.SHUT_WR)
    rig.turns()
    rig.server.volume.release()
    rig.turns()
    assert answered(client, 512) == (1, 0) and closed(client)


# ---- the listening socket


def test_a_path_that_is_too_long_is_refused_by_name(tmp_path: Path) -> None:
    """107 bytes fit, 108 do not; bytes, not characters."""
    with pytest.raises(Refused, match="its path has 108 bytes, at most 107 fit"):
        listen("/tmp/" + "ä" * 51 + "x", 0o600)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """It may be somebody's data."""
    path = tmp_path / "nbd.sock"
    path.write_text("precious")
    with pytest.raises(Refused, match="not a socket"):
        listen(str(path), 0o600)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(Refused, match=r"absent/nbd\.sock: No such file"):
        listen(str(tmp_path / "absent" / "nbd.sock"), 0o600)


def test_dead_sockets_are_replaced_and_live_ones_refused(tmp_path: Path) -> None:
    """The mode is the one asked for, whatever the umask."""
    path = str(tmp_path / "nbd.sock")
    first = listen(path, 0o660)
    assert Path(path).stat().st_mode & 0o777 == 0o660
    with pytest.raises(Refused, match="somebody listens"):
        listen(path, 0o660)
    first.close()
    assert os.path.lexists(path)
    listen(path, 0o600).close()
