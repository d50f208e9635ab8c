"""The attach program's surroundings, played: a server that negotiates as the real one, the kernel's client, sysfs."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from snapd import config as configuration
from snapd.attach import genetlink as nl
from snapd.attach.attach import Attachment
from snapd.attach.device import Device
from snapd.config import Config
from snapd.nbd.handshake import GREETING, Handshake
from snapd.nbd.identity import describe
from snapd.nbd.wire import Drop
from snapd.units import MIB
from tests.unit.test_config import GOOD

SIZE = 8 * MIB


def readable(until: int, fd: int, events: int) -> bool:
    return bool(select.select([fd], [], [], 5)[0])


class Ended(BaseException):
    """Raised by the test's ``wait``, as a signal is."""


@dataclass(frozen=True)
class NamedExport:
    name: str
    size: int
    read_only: bool
    minimum_block: int = 512
    preferred_block: int = 4096
    description: str = ""
    identity: str = ""


class Server:
    """Speaks the negotiation of the real one; what comes behind it is read and forgotten."""

    def __init__(self, path: Path, description: str) -> None:
        self.export = NamedExport("origin", SIZE, False, description=description)
        self.opened: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.sendall(GREETING)
            talk = Handshake(lambda: [self.export])
            try:
                while talk.opened is None and (data := sock.recv(4096)):
                    sock.sendall(talk.receive(data))
            except (OSError, Drop):
                pass
            self.opened.append(sock)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for sock in self.opened:
            sock.close()


@dataclass
class Kernel:
    """The driver, as far as it is asked: one device in a made-up sysfs; it keeps the sockets that it takes."""

    sysfs: Path
    device: Path
    taken: list[int] = field(default_factory=list)
    connection: int = -1
    opened: int = 0
    """How often the device is open besides."""
    block: int = 512
    calls: list[str] = field(default_factory=list)
    flags: int = 0

    def connect(self, *, index: int, attributes: tuple[bytes, ...]) -> None:
        found = nl.attributes(b"".join(attributes))
        self.calls.append("connect")
        assert self.connection < 0
        self._take(found)
        block = self.sysfs / "block/nbd3"
        (block / "backend").write_text(found[nl.BACKEND].rstrip(b"\0").decode() + "\n")
        (block / "pid").write_text("1\n")
        (block / "size").write_text(f"{nl.number(found, nl.SIZE) // 512}\n")
        (block / "queue/logical_block_size").write_text(f"{nl.number(found, nl.BLOCK_SIZE)}\n")
        (block / "ro").write_text("0\n")

    def reconfigure(self, *, index: int, attributes: tuple[bytes, ...]) -> None:
        found = nl.attributes(b"".join(attributes))
        self.calls.append("reconfigure")
        if nl.CLIENT_FLAGS in found:
            self.flags = nl.number(found, nl.CLIENT_FLAGS)
        elif self.connection < 0:
            self._take(found)

    def disconnect(self, index: int) -> None:
        self.calls.append("disconnect")
        self.release()

    def _take(self, found: dict[int, bytes]) -> None:
        item = nl.attributes(nl.attributes(found[nl.SOCKETS])[nl.SOCKET_ITEM])
        self.connection = os.dup(nl.number(item, nl.SOCKET_FD))

    def die(self) -> None:
        os.close(self.connection)
        self.connection = -1

    def release(self) -> None:
        """What it does when it disconnects."""
        if self.connection >= 0:
            self.die()
        for name in ("backend", "pid"):
            (self.sysfs / "block/nbd3" / name).unlink()

    def closed(self) -> None:
        """Somebody has closed the device."""
        if self.flags & nl.DISCONNECT_ON_CLOSE and not self.opened:
            self.release()


class Deaths:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def fileno(self) -> int:
        return self.read_end

    def read(self, index: int) -> bool:
        os.read(self.read_end, 100)
        return True

    def announce(self) -> None:
        os.write(self.write_end, b"x")

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


class Bed:
    """One volume, its server, the kernel; ``plan`` is what happens at each wait of the program, in turn."""

    def __init__(self, folder: Path) -> None:
        text = GOOD.replace("/run/csnap/vmstore", str(folder)) + '[attach]\ndevice = "/dev/nbd3"\n'
        (folder / "vmstore.toml").write_text(text)
        self.config: Config = configuration.load(folder / "vmstore.toml")
        self.sysfs = folder / "sys"
        (self.sysfs / "block/nbd3/queue").mkdir(parents=True)
        (folder / "proc/self").mkdir(parents=True)
        (self.sysfs / "block/nbd3/dev").write_text("43:48\n")
        self.device = Device(3, self.sysfs, folder / "proc")
        self.device.path = str(folder / "nbd3")
        (folder / "nbd3").touch()
        self.kernel = Kernel(self.sysfs, folder / "nbd3")
        self.deaths = Deaths()
        self.log: list[tuple[str, dict[str, object]]] = []
        self.told: list[str] = []
        self.plan: list[Callable[[], None]] = []
        self.server: Server | None = None

    def serve(self) -> None:
        self.serve_as(describe(self.config.volume.name, self.config.volume.cluster_uuid))

    def serve_as(self, description: str) -> None:
        self.server = Server(Path(self.config.export.nbd), description)

    def hang_up(self) -> None:
        assert self.server is not None
        self.server.close()
        self.server = None
        Path(self.config.export.nbd).unlink()

    def wait(self, until: int, fd: int, events: int) -> bool:
        """Descriptors of sockets are waited for; else the plan's next step happens at once, and the time is over."""
        if fd >= 0 and fd != self.deaths.fileno():
            return readable(until, fd, events)
        if not self.plan:
            raise Ended
        before = len(self.log)
        self.plan.pop(0)()
        return fd >= 0 and self.log[before:] == [("announced", {})]

    def die(self) -> None:
        """The connection dies, and the driver says so."""
        self.kernel.die()
        self.announce()

    def announce(self) -> None:
        self.deaths.announce()
        self.log.append(("announced", {}))

    def run(self, *plan: Callable[[], None]) -> list[str]:
        """Run until the plan is over; return the events logged."""
        self.plan = list(plan)
        program = Attachment(
            self.config,
            self.kernel,
            self.deaths,
            self.device,
            self.wait,
            lambda priority, event, fields: self.log.append((event, fields)),
            self.told.append,
        )
        with contextlib.suppress(Ended):
            program.run()
        return [event for event, _ in self.log if event != "announced"]

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        if self.kernel.connection >= 0:
            self.kernel.die()
        self.deaths.close()
