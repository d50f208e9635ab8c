"""Clients of an NBD server that is replaced again and again, at any moment: each request is answered once, and truly.

Seeded, in one process, over real sockets. The volume is memory that keeps requests, answers them in any order, and
refuses what it still has when a server stops: so requests are handed on waiting, half received, half answered.
"""

from __future__ import annotations

import random
import socket
import struct
from errno import ESHUTDOWN
from pathlib import Path

import pytest

from snapd.nbd import wire
from snapd.nbd.handover import Handover
from snapd.units import MIB, SECOND
from tests.support.nbd_peer import info, option, request
from tests.support.ram_volume import RamExport, RamServer

BLOCK = 512
CLIENTS, SHARE = 4, 2048  # blocks of the export that one client uses
SIZE = CLIENTS * SHARE * BLOCK
GO = wire.CLIENT_FLAGS.pack(3) + option(wire.OPT_GO, info("origin"))
HELLO = wire.GREETING.size + 2 * wire.OPTION_REPLY.size + 12 + 14 + wire.OPTION_REPLY.size


class Client:
    """Sends requests in pieces, takes replies in pieces, and knows what its blocks hold."""

    def __init__(self, sock: socket.socket, first: int, rng: random.Random) -> None:
        self.sock, self.first, self.rng = sock, first, rng
        self.waiting: dict[int, tuple[int, range, bytes]] = {}  # by cookie: command, blocks, data
        self.answered = 0
        self._cookie = 0
        self._unsent, self._received = bytearray(), bytearray()
        self._holds: dict[int, bytes] = {}
        self._busy: set[int] = set()  # blocks of requests that are not answered: their order is nobody's promise

    def ask(self) -> None:
        rng = self.rng
        for _ in range(rng.randrange(12) if len(self.waiting) < rng.choice((1, 20, 200)) else 0):
            command = rng.choice((wire.CMD_READ, wire.CMD_WRITE, wire.CMD_WRITE, wire.CMD_WRITE_ZEROES, wire.CMD_FLUSH))
            count = 0 if command == wire.CMD_FLUSH else rng.choice((1, 8, 64, 128, 256, 1024))
            start = rng.randrange(SHARE - count)
            blocks = range(start, start + count)
            if self._busy.intersection(blocks):
                continue
            self._busy.update(blocks)
            self._cookie += 1
            data = bytes([rng.randrange(256) if command == wire.CMD_WRITE else 0]) * (count * BLOCK)
            offset = (self.first + start) * BLOCK if count else 0
            self._unsent += request(command, offset, count * BLOCK, self._cookie)
            self._unsent += data if command == wire.CMD_WRITE else b""
            self.waiting[self._cookie] = command, blocks, data

    def send(self) -> None:
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent[: self.rng.choice((5, 30, 1000, 100_000))])
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def take(self) -> None:
        try:
            piece = self.sock.recv(self.rng.choice((7, 1000, MIB)))
            assert piece, "disconnected"
            self._received += piece
        except BlockingIOError:
            pass
        while self._reply():
            self.answered += 1

    def _reply(self) -> bool:
        if len(self._received) < wire.SIMPLE_REPLY.size:
            return False
        magic, error, cookie = struct.unpack_from(">IIQ", self._received)
        assert (magic, error) == (wire.SIMPLE_REPLY_MAGIC, 0)
        command, blocks, data = self.waiting[cookie]  # KeyError: answered twice, or to somebody else
        size = wire.SIMPLE_REPLY.size + (len(data) if command == wire.CMD_READ else 0)
        if len(self._received) < size:
            return False
        found = bytes(self._received[wire.SIMPLE_REPLY.size : size])
        del self._received[:size], self.waiting[cookie]
        self._busy.difference_update(blocks)
        for index, block in enumerate(blocks):
            part = slice(index * BLOCK, (index + 1) * BLOCK)
            if command == wire.CMD_READ:
                assert found[part] == self._holds.get(block, bytes(BLOCK)), f"cookie {cookie}: block {block}"
            else:
                self._holds[block] = data[part]
        return True


class Servers:
    """One after the other, over the same contents."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.rng, self._directory = rng, directory
        self.now = SECOND
        self.all: list[RamServer] = []
        self.server = self._next(opened=True)

    def _next(self, opened: bool = False) -> RamServer:
        path = self._directory / f"{len(self.all)}.sock"
        server = RamServer(str(path), [RamExport("origin", SIZE)], lambda: self.now, 8, 4, opened)
        if self.all:
            server.volume.contents = self.all[0].volume.contents
        self.all.append(server)
        return server

    def client(self, number: int) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self._directory / "0.sock"))
        sock.sendall(GO)
        self.turns(5)
        assert len(sock.recv(HELLO, socket.MSG_WAITALL)) == HELLO
        sock.setblocking(False)
        return Client(sock, number * SHARE, self.rng)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.now += self.rng.randrange(SECOND // 1000)
            self.server.turn(0)

    def live(self) -> None:
        rng, volume = self.rng, self.server.volume
        volume.hold = rng.random() < 0.5
        self.turns(rng.randrange(1, 4))
        if rng.random() < 0.3:
            waiting = list(volume.held)
            rng.shuffle(waiting)
            volume.held.clear()
            volume.held.extend(waiting)
        volume.release(rng.choice((0, 0, 3, 40)))
        if rng.random() < 0.1:
            self.server.server.tick(self.now)

    def replace(self, clients: list[Client]) -> None:
        old = self.server
        old.server.quiesce()
        for client in clients:
            client.send()
        self.turns(self.rng.randrange(3))
        while old.volume.held:
            held = old.volume.held.popleft()
            held.done(held, ESHUTDOWN)
        self.turns(2)
        assert old.server.quiescent
        given = old.server.hand_over()[1]
        assert old.slots.out == 0 and len(given) == len(clients)
        state = Handover("volume", "boot", 1, (0, 0), tuple(state for state, _ in given)).to_bytes()
        read = Handover.from_bytes(state).clients
        self.server = self._next()
        self.server.server.inherit([(state, sock) for state, (_, sock) in zip(read, given, strict=True)])
        assert self.server.server.open() == []

    def close(self) -> None:
        for server in self.all:
            server.server._listener.close()
        for connection in list(self.server.server._connections):
            connection.close()


@pytest.mark.parametrize("seed", range(10))
def test_each_request_is_answered_once_and_truly(tmp_path: Path, seed: int) -> None:
    """Whatever was half sent, waiting, running or half answered when a server was replaced."""
    rng = random.Random(seed)
    servers = Servers(tmp_path, rng)
    clients = [servers.client(number) for number in range(CLIENTS)]
    try:
        for _ in range(200):
            for client in clients:
                client.ask()
                client.send()
                if rng.random() < 0.7:
                    client.take()
            servers.live()
            if rng.random() < 0.05:
                servers.replace(clients)
        servers.server.volume.hold = False
        for _ in range(20_000):
            if not any(client.waiting for client in clients):
                break
            servers.server.volume.release()
            for client in clients:
                client.send()
                client.take()
            servers.turns(1)
        assert not any(client.waiting for client in clients)
        assert servers.server.slots.out == 0 and not servers.server.server.desk.inflight
        assert len(servers.all) > 2 and all(client.answered for client in clients)
    finally:
        for client in clients:
            client.sock.close()
        servers.close()
