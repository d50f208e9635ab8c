"""Threads that write to an export without a pause, know what was acknowledged, and measure the longest wait.

    with writers(socket, 4) as load:
        ...restart the server...
        load.wait_progress()
    load.verify(socket)

Each has its own blocks and keeps DEPTH requests unanswered: writes of a block full of one number, and a FLUSH now and
then. One that ``reconnects`` connects again when its connection breaks and sends anew what was not answered.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snapd.nbd import wire
from snapd.units import KIB
from tests.support.nbd_client import NbdClient

BLOCK = 16 * KIB
BLOCKS = 64  # of each thread
DEPTH = 8
PATIENCE = 60.0  # seconds after which a connection that does not come back is an error
AGAIN = 0.05


def content(number: int) -> bytes:
    """Return a block that shows ``number`` in every sector."""
    return struct.pack(">Q", number) * (BLOCK // 8)


class Writer(threading.Thread):
    """See the module. ``errors`` are what should not have happened, in words."""

    def __init__(self, socket: Path, index: int, reconnects: bool) -> None:
        super().__init__(name=f"writer-{index}")
        self.errors: list[str] = []
        self.acknowledged: dict[int, int] = {}  # by block
        self.done = 0
        self.connections = 0
        self.longest = 0.0  # seconds from the first sending of a request to its answer
        self.index = index
        self._socket = socket
        self._reconnects = reconnects
        self._random = random.Random(index)
        self._ending = threading.Event()
        self._pending: dict[int, tuple[int, int, float]] = {}  # by cookie: block (-1: FLUSH), number, since
        self._number = index << 48

    def end(self) -> None:
        """Answer what is under way, then end."""
        self._ending.set()

    def run(self) -> None:
        unanswered: list[tuple[int, int, float]] = []
        while True:
            try:
                with self._connect() as client:
                    self.connections += 1
                    self._serve(client, unanswered)
                return
            except (OSError, EOFError) as error:
                if not self._reconnects:
                    self.errors.append(f"the connection broke: {error!r}")
                    return
                unanswered = list(self._pending.values())
                self._pending.clear()
            except Exception as error:  # whatever it is, the test must hear of it
                self.errors.append(repr(error))
                return

    def _connect(self) -> NbdClient:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                client = NbdClient(self._socket)
                client.sock.settimeout(PATIENCE)
                return client
            except (OSError, EOFError):
                if not (self._reconnects and time.monotonic() < end):
                    raise
                time.sleep(AGAIN)  # as clients do that reconnect

    def _serve(self, client: NbdClient, unanswered: Sequence[tuple[int, int, float]]) -> None:
        for request in unanswered:
            self._send(client, *request)
        while self._pending or not self._ending.is_set():
            while len(self._pending) < DEPTH and not self._ending.is_set():
                self._send(client, *self._next())
            reply = client.reply()
            block, number, since = self._pending.pop(reply.cookie)
            self.longest = max(self.longest, time.monotonic() - since)
            self.done += 1
            if reply.error:
                self.errors.append(f"block {block}: error {reply.error}")
            elif block >= 0:
                self.acknowledged[block] = number

    def _next(self) -> tuple[int, int, float]:
        """A write to a block that no other one is under way to, or a FLUSH."""
        busy = {block for block, _, _ in self._pending.values()}
        first = self.index * BLOCKS
        block = self._random.choice([each for each in range(first, first + BLOCKS) if each not in busy])
        self._number += 1
        return (-1 if self._random.random() < 0.05 else block), self._number, time.monotonic()

    def _send(self, client: NbdClient, block: int, number: int, since: float) -> None:
        if block < 0:
            cookie = client.send(wire.CMD_FLUSH)
        else:
            cookie = client.send(wire.CMD_WRITE, block * BLOCK, data=content(number))
        self._pending[cookie] = block, number, since


class Load:
    """The writers together."""

    def __init__(self, socket: Path, count: int, reconnects: bool) -> None:
        self.threads = [Writer(socket, index, reconnects) for index in range(count)]

    def wait_progress(self, requests: int = 100, limit: float = PATIENCE) -> None:
        """Until every thread has had so many more answers."""
        before = [thread.done for thread in self.threads]
        end = time.monotonic() + limit
        for thread, had in zip(self.threads, before, strict=True):
            while thread.done < had + requests and thread.is_alive():
                assert time.monotonic() < end, f"{thread.name} stands still after {thread.done} answers"
                time.sleep(0.01)

    @property
    def errors(self) -> list[str]:
        return [f"{thread.name}: {error}" for thread in self.threads for error in thread.errors]

    @property
    def longest(self) -> float:
        """The longest wait of any request, in seconds; begun anew by ``reset``."""
        return max(thread.longest for thread in self.threads)

    def reset(self) -> None:
        for thread in self.threads:
            thread.longest = 0.0

    def verify(self, socket: Path) -> int:
        """Everything that was acknowledged reads back; return how many blocks that were."""
        with NbdClient(socket) as client:
            for thread in self.threads:
                for block, number in thread.acknowledged.items():
                    found = client.read(block * BLOCK, BLOCK)
                    assert found == content(number), f"block {block}: {found[:8].hex()}, acknowledged was {number:x}"
        return sum(len(thread.acknowledged) for thread in self.threads)


@contextmanager
def writers(socket: Path, count: int = 4, *, reconnects: bool = False) -> Iterator[Load]:
    """Start them; at the end they finish what they have begun."""
    load = Load(socket, count, reconnects)
    for thread in load.threads:
        thread.start()
    try:
        yield load
    finally:
        for thread in load.threads:
            thread.end()
        for thread in load.threads:
            thread.join()
