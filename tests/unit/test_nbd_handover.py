"""Clients that one NBD server leaves to the next: the state as bytes, and what each of two servers does."""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from errno import EINVAL, ESHUTDOWN
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd import counters
from snapd.errors import FormatError
from snapd.nbd import wire
from snapd.nbd.handover import HEAD, LENGTH, MAGIC, VERSION, ClientState, ExportFacts, Handover
from snapd.nbd.transmission import DEPTH
from snapd.units import KIB, MIB, SECOND
from tests.support import examples as _examples  # noqa: F401
from tests.support.nbd_peer import info, option, request, write
from tests.support.ram_volume import RamExport, RamServer

# ---- the state as bytes

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.integers(0, (1 << 63) - 1)
FACTS = st.builds(ExportFacts, TEXT, TEXT, NUMBER, st.booleans(), NUMBER)
SKIP = st.integers(0, wire.MAX_REQUEST)
CLIENT = st.builds(
    ClientState, NUMBER, FACTS, st.booleans(), st.integers(0, 1), SKIP, st.binary(max_size=40), st.binary(max_size=40)
)


@st.composite
def handovers(draw: st.DrawFn) -> Handover:
    clients = draw(st.lists(CLIENT, max_size=4, unique_by=lambda client: client.socket))
    listener = draw(NUMBER.filter(lambda number: number not in [client.socket for client in clients]))
    return Handover(draw(TEXT), draw(TEXT), listener, (draw(NUMBER), draw(NUMBER)), tuple(clients))


EXPORT = ExportFacts("origin", "", 16 * MIB, False, 512)
WHOLE = Handover("v", "b", 1, (2, 3), (ClientState(4, EXPORT, True, 1, 0, b"unread", b"unsent"),))


@given(handovers())
def test_what_is_written_is_read(handover: Handover) -> None:
    """Any state comes back as it was."""
    assert Handover.from_bytes(handover.to_bytes()) == handover


def test_a_byte_that_is_changed_missing_or_too_many_is_seen() -> None:
    """Each byte of it changed, each length cut off, one added: refused, never half believed."""
    data = WHOLE.to_bytes()
    for position in range(len(data)):
        for changed in (bytes([data[position] ^ 0x10]), b""):
            with pytest.raises(FormatError):
                Handover.from_bytes(data[:position] + changed + data[position + 1 :])
        with pytest.raises(FormatError):
            Handover.from_bytes(data[:position])
    with pytest.raises(FormatError, match="bytes, expected"):
        Handover.from_bytes(data + b"\0")


def test_another_version_is_named() -> None:
    """What an older or newer csnap has left is refused by its version, before anything else of it is believed."""
    data = bytearray(WHOLE.to_bytes())
    struct.pack_into(">I", data, len(MAGIC), VERSION + 1)
    with pytest.raises(FormatError, match=f"version {VERSION + 1}, expected {VERSION}"):
        Handover.from_bytes(bytes(data))


def sealed(facts: Any, blobs: bytes = b"") -> bytes:
    """Bytes with a right checksum, whatever is in them."""
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    rest = LENGTH.pack(len(text)) + text + blobs
    return HEAD.pack(MAGIC, VERSION, len(rest), zlib.crc32(rest)) + rest


ROW = [4, "origin", "", 16 * MIB, False, 512, True, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "facts",
    [
        b"", b"\xff", b"[" * 100_000, {}, [], ["v", "b", 1, 2, 3], ["v", "b", 1, 2, 3, [ROW], 7],
        ["v", "b", -1, 2, 3, []], ["v", "b", True, 2, 3, []], ["v", "b", 1.0, 2, 3, []],
        ["v", "b", 4, 2, 3, [ROW]], ["v", "b", 1, 2, 3, [ROW, ROW]],
        ["v", "b", 1, 2, 3, [ROW[:-1]]], ["v", "b", 1, 2, 3, [[*ROW, 1]]], ["v", "b", 1, 2, 3, [7]],
        ["v", "b", 1, 2, 3, [[*ROW[:-1], 9]]], ["v", "b", 1, 2, 3, [[*ROW[:-2], 3, 3]]],
        ["v", "b", 1, 2, 3, [[*ROW[:8], 1 << 32, 0, 0]]], ["v", "b", 1, 2, 3, [[*ROW[:7], 2, 0, 0, 0]]],
        ["v", "b", 1, 2, 3, [[index, *ROW[1:]] for index in range(4, 2000)]], ["v" * 5000, "b", 1, 2, 3, []],
        ["v", "b", 1, 2, 3, []],
    ],
)  # fmt: skip
def test_nonsense_with_a_right_checksum_is_refused(facts: Any) -> None:
    """Each field that is missing, of another kind, or beyond its bounds; bytes that belong to nobody: FormatError."""
    with pytest.raises(FormatError):
        Handover.from_bytes(sealed(facts, b"12345"))


@given(st.recursive(st.none() | NUMBER | st.booleans() | TEXT | st.just(ROW), st.lists, max_leaves=12))
def test_any_json_is_a_state_or_refused(facts: Any) -> None:
    """Nothing but FormatError comes out of it."""
    try:
        Handover.from_bytes(sealed(facts))
    except FormatError:
        return


# ---- from one server to the next

GO = wire.CLIENT_FLAGS.pack(3) + option(wire.OPT_GO, info("origin"))
HELLO = wire.GREETING.size + 2 * wire.OPTION_REPLY.size + 12 + 14 + wire.OPTION_REPLY.size
PATTERN = bytes(range(256)) * (64 * KIB)


class Rig:
    """A first server, and the one that takes over from it; clients are plain sockets."""

    def __init__(self, directory: Path) -> None:
        self.now = SECOND
        self.directory = directory
        self.servers: list[RamServer] = []
        self.clients: list[socket.socket] = []
        self.first = self.server("first.sock")

    def server(self, name: str) -> RamServer:
        server = RamServer(
            str(self.directory / name),
            [RamExport("origin", 16 * MIB)],
            lambda: self.now,
            8,
            34,
            opened=not self.servers,
        )
        server.volume.contents["origin"][:] = PATTERN
        self.servers.append(server)
        return server

    def client(self, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        client.settimeout(20)
        client.connect(str(self.directory / "first.sock"))
        client.sendall(GO)
        turns(self.first)
        assert len(client.recv(HELLO, socket.MSG_WAITALL)) == HELLO
        return client

    def send(self, client: socket.socket, data: bytes) -> None:
        """All of it, to the server that is there now."""
        client.setblocking(False)
        while data:
            try:
                data = data[client.send(data) :]
            except BlockingIOError:
                self.servers[-1].turn(0)
        client.settimeout(20)
        turns(self.servers[-1])

    def hand_over(self) -> RamServer:
        """Quiesce the first, fail what waits, through bytes, to the next one, which is open."""
        self.first.server.quiesce()
        turns(self.first)
        refuse(self.first)
        turns(self.first)
        assert self.first.server.quiescent
        listener, given = self.first.server.hand_over()
        assert self.first.slots.out == 0 and not self.first.server._connections
        states = Handover("v", "b", 1, (0, 0), tuple(state for state, _ in given))
        read = Handover.from_bytes(states.to_bytes()).clients
        successor = self.server("next.sock")
        successor.server.inherit([(state, sock) for state, (_, sock) in zip(read, given, strict=True)])
        successor.refused = successor.server.open()
        turns(successor)
        listener.close()
        return successor

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.server.stop()
            turns(server)
            server.server.tick(self.now + 100 * SECOND)
            server.server._listener.close()


def turns(server: RamServer, count: int = 5) -> None:
    for _ in range(count):
        server.turn(0)


def refuse(server: RamServer) -> None:
    """As a volume does that is told to fail what waits."""
    while server.volume.held:
        held = server.volume.held.popleft()
        held.done(held, ESHUTDOWN)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def answered(client: socket.socket, length: int = 0) -> tuple[int, int, bytes]:
    magic, error, cookie = struct.unpack(">IIQ", client.recv(16, socket.MSG_WAITALL))
    assert magic == wire.SIMPLE_REPLY_MAGIC
    data = client.recv(length, socket.MSG_WAITALL) if length and not error else b""
    return cookie, error, data


def test_an_idle_client_goes_on(rig: Rig) -> None:
    """It sees nothing; requests that it sends while nobody reads are served by the next server."""
    client = rig.client()
    rig.first.server.quiesce()
    rig.send(client, request(wire.CMD_READ, 512, 512, 1))
    successor = rig.hand_over()
    assert answered(client, 512) == (1, 0, PATTERN[512:1024])
    assert successor.words[counters.CONNECTIONS] == 1 and successor.refused == []


def test_what_runs_is_answered_by_the_first(rig: Rig) -> None:
    """A request that the volume has begun ends there: there is no state to hand over before."""
    client = rig.client()
    rig.first.volume.hold = True
    rig.send(client, request(wire.CMD_READ, 0, 512, 1))
    turns(rig.first)
    rig.first.server.quiesce()
    turns(rig.first)
    assert not rig.first.server.quiescent
    rig.first.volume.release()
    turns(rig.first)
    assert rig.first.server.quiescent
    assert answered(client, 512) == (1, 0, PATTERN[:512])


def test_what_waits_is_served_by_the_next(rig: Rig) -> None:
    """READ, WRITE with its payload, FLUSH, WRITE_ZEROES that the volume refuses because it stops: answered once, by
    the next server, without an error."""
    client = rig.client()
    rig.first.volume.hold = True
    rig.send(
        client,
        request(wire.CMD_READ, 4096, 512, 1)
        + write(MIB, b"n" * 3 * MIB, 2)
        + request(wire.CMD_FLUSH, 0, 0, 3)
        + request(wire.CMD_WRITE_ZEROES, 0, 512, 4),
    )
    turns(rig.first, 40)
    assert len(rig.first.volume.held) == 4
    successor = rig.hand_over()
    replies = [answered(client, 512), *(answered(client) for _ in range(3))]
    found = {cookie: (error, data) for cookie, error, data in replies}
    assert found == {1: (0, PATTERN[4096:4608]), 2: (0, b""), 3: (0, b""), 4: (0, b"")}
    assert successor.volume.contents["origin"][: 4 * MIB] == bytes(512) + PATTERN[512:MIB] + b"n" * 3 * MIB
    assert rig.first.volume.contents["origin"][:] == PATTERN


@pytest.mark.parametrize("come", [10, 28, 29, 28 + 700 * KIB])
def test_a_request_that_is_not_all_here_is_completed_by_the_next(rig: Rig, come: int) -> None:
    """Cut in its header, behind it, or in the middle of its payload."""
    client = rig.client()
    whole = write(MIB, bytes(range(256)) * 4 * KIB, 7)
    rig.send(client, whole[:come])
    turns(rig.first, 40)
    successor = rig.hand_over()
    rig.send(client, whole[come:])
    turns(successor, 40)
    assert answered(client) == (7, 0, b"")
    assert successor.volume.contents["origin"][MIB : 2 * MIB] == bytes(range(256)) * 4 * KIB


def test_a_refused_payload_is_thrown_away_by_the_next(rig: Rig) -> None:
    """The rest of it comes after the hand-over, and is not taken for requests."""
    client = rig.client()
    whole = write(1, b"n" * MIB, 1)
    rig.send(client, whole[: 300 * KIB])
    turns(rig.first, 20)
    assert answered(client)[:2] == (1, EINVAL)
    successor = rig.hand_over()
    rig.send(client, whole[300 * KIB :] + request(wire.CMD_READ, 0, 512, 2))
    turns(successor, 40)
    assert answered(client, 512) == (2, 0, PATTERN[:512])


def test_replies_that_were_not_taken_are_sent_by_the_next(rig: Rig) -> None:
    """A client that does not read: the bytes that the first server could not send come from the second, in order."""
    client = rig.client()
    rig.send(client, b"".join(request(wire.CMD_READ, index * MIB, MIB, index) for index in range(12)))
    turns(rig.first, 40)
    rig.hand_over()
    for index in range(12):
        turns(rig.servers[-1], 3)
        cookie, error, data = pumped(rig.servers[-1], client, MIB)
        assert (cookie, error, data == PATTERN[index * MIB : (index + 1) * MIB]) == (index, 0, True)


def pumped(server: RamServer, client: socket.socket, length: int) -> tuple[int, int, bytes]:
    """One reply, while the server has its turns."""
    client.setblocking(False)
    data = bytearray()
    while len(data) < 16 + length:
        try:
            data += client.recv(16 + length - len(data))
        except BlockingIOError:
            server.turn(0)
    _, error, cookie = struct.unpack_from(">IIQ", data)
    return cookie, error, bytes(data[16:])


def test_more_than_may_run_at_a_time_is_handed_over(rig: Rig) -> None:
    """Everything that the first server had read waits: the next one serves it in portions, and the rest that was
    received behind it; nothing is lost and nothing is done twice."""
    client = rig.client()
    rig.first.volume.hold = True
    rig.send(client, b"".join(write(index * 512, bytes([index % 251]) * 512, index) for index in range(DEPTH + 60)))
    turns(rig.first, 40)
    assert len(rig.first.volume.held) == 8 + 34  # as many as there are slots
    successor = rig.hand_over()
    turns(successor, 100)
    cookies = [answered(client) for _ in range(DEPTH + 60)]
    assert sorted(cookies) == [(index, 0, b"") for index in range(DEPTH + 60)]
    expected = b"".join(bytes([index % 251]) * 512 for index in range(DEPTH + 60))
    assert successor.volume.contents["origin"][: len(expected)] == expected


def test_a_client_at_its_end_is_not_handed_over(rig: Rig) -> None:
    """One that has said DISC, one that hung up, one that still negotiates: closed."""
    polite, gone, new = rig.client(), rig.client(), socket.socket(socket.AF_UNIX)
    rig.clients.append(new)
    new.connect(str(rig.directory / "first.sock"))
    turns(rig.first)
    rig.send(polite, request(wire.CMD_DISC, 0, 0, 1))
    turns(rig.first)
    rig.first.server.quiesce()
    gone.close()
    turns(rig.first)
    successor = rig.hand_over()
    assert successor.words[counters.CONNECTIONS] == 0
    new.settimeout(1)
    assert new.recv(100)[:8] == b"NBDMAGIC" and new.recv(1) == b"" and polite.recv(1) == b""


@pytest.mark.parametrize(
    "other",
    [
        {"size": 8 * MIB}, {"minimum_block": 4096}, {"read_only": True}, {"identity": "another store"}, {"name": "x"},
    ],
)  # fmt: skip
def test_an_export_that_is_another_is_refused(rig: Rig, other: dict[str, Any]) -> None:
    """Its client is disconnected at once and named; it would go on with facts that are no longer true."""
    client = rig.client()
    rig.first.server.quiesce()
    (given,) = rig.first.server.hand_over()[1]
    successor = rig.server("next.sock")
    for key, value in other.items():
        setattr(successor.volume.list[0], key, value)
    successor.server.inherit([given])
    assert successor.server.open() == ["origin"]
    assert client.recv(1) == b""
    assert successor.words[counters.CONNECTIONS] == 0


def test_it_can_be_handed_on_unopened(rig: Rig) -> None:
    """A server that is stopped before it knew the exports hands on what it had inherited, as it was."""
    client = rig.client()
    rig.send(client, request(wire.CMD_READ, 0, 512, 1)[:20])
    turns(rig.first)
    rig.first.server.quiesce()
    (given,) = rig.first.server.hand_over()[1]
    between = rig.server("between.sock")
    between.server.inherit([given])
    between.server.quiesce()
    assert between.server.hand_over()[1] == [given]
    os.fstat(given[1].fileno())
    given[1].close()
    assert client.recv(1) == b""


def test_sockets_that_are_given_away_stay_open_until_they_are_sent(rig: Rig) -> None:
    """Descriptors are sent by their numbers, perhaps later, when the channel has room: nobody closes them before."""
    client = rig.client()
    rig.first.server.quiesce()
    numbers = [sock.fileno() for _, sock in rig.first.server.hand_over()[1]]
    gc.collect()
    (number,) = numbers
    os.fstat(number)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    for _, sock in rig.first.server._given:
        sock.close()


def test_a_server_that_stops_lets_go_of_what_it_has_not_opened(rig: Rig) -> None:
    """Told to stop, and not to hand over, while it does not know the exports yet: the clients learn of it at once."""
    client = rig.client()
    rig.first.server.quiesce()
    (given,) = rig.first.server.hand_over()[1]
    between = rig.server("between.sock")
    between.server.inherit([given])
    between.server.stop()
    assert between.server.open() == [] and between.server.idle
    assert client.recv(1) == b""
