"""A real worker process with a lockspace played by the test: no etcd, no control process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from snapd.clock import boottime
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import MAX_DATAGRAM, Hello, Message, SnapshotSpec, Stop, Stopped, decode, encode
from snapd.units import KIB, MIB, SECOND, SECTOR
from snapd.worker.launch import Descriptors, WorkerSettings, settings_descriptor
from snapd.worker.pages import create_counters, create_deadline
from tests.support.lock_sim import LockSim, Port

VOLUME_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"


def make_cow(path: Path, name: str, origin_size: int, chunk: int, size: int, writable: bool = False) -> SnapshotSpec:
    """Format a file as a COW device."""
    spec = SnapshotSpec(name, str(uuid4()), str(path), "active", writable, 1)
    header = Header(True, chunk // SECTOR)
    sidecar = Sidecar(VOLUME_UUID, spec.store, name, origin_size, 1)
    with open(path, "wb") as file:
        file.truncate(size)
        file.write(header.to_bytes() + sidecar.to_bytes(header.chunk_size))
    return spec


class WorkerProcess:
    """A worker serving ``directory/nbd.sock``; the lock simulator answers it from a thread."""

    def __init__(
        self, directory: Path, origin: Path, chunk: int = 16 * KIB, region: int = MIB, locks: LockSim | None = None
    ) -> None:
        self.socket = directory / "nbd.sock"
        self.locks = locks or LockSim()
        self.ready = threading.Event()
        self.stopped = threading.Event()
        self.messages: list[Message] = []
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deadline_fd, self.deadline = create_deadline()
        counters_fd, self.words = create_counters()
        self.deadline[0] = boottime() + 3600 * SECOND
        lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        settings = WorkerSettings(
            VOLUME_UUID, "clusterized_persistent", str(origin), True, chunk, region, str(self.socket)
        )
        given = Descriptors(theirs.fileno(), deadline_fd, counters_fd, lock_fd, settings_descriptor(settings))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snapd.worker", *given.arguments()], pass_fds=given.all(), stdin=subprocess.DEVNULL
        )
        theirs.close()
        for fd in given.all()[1:]:
            os.close(fd)
        self._sock = ours
        self._port: Port | None = None
        threading.Thread(target=self._pump, daemon=True).start()
        if not self.ready.wait(20):
            raise AssertionError(f"the worker did not get ready: {self.messages}")

    def _pump(self) -> None:
        while True:
            data = self._sock.recv(MAX_DATAGRAM)
            if not data:
                return
            message = decode(data)
            self.messages.append(message)
            with self._lock:
                if isinstance(message, Hello):
                    self._port = self.locks.join("host-a")
                elif isinstance(message, Stopped):
                    self.stopped.set()
                else:
                    assert self._port is not None
                    self._port.outbox.append(message)
                self._deliver()

    def _deliver(self) -> None:
        while self.locks.deliver():
            pass
        assert self._port is not None
        while self._port.inbox:
            self._sock.send(encode(self._port.inbox.popleft()))
        if self._port.serving:
            self.ready.set()

    def take(self, spec: SnapshotSpec) -> None:
        """Take a snapshot online."""
        with self._lock:
            self.locks.change_table("host-a", lambda: self.locks.take(spec))
            self._deliver()

    def stop(self) -> int:
        """Ask it to stop; return its exit code."""
        self._sock.send(encode(Stop()))
        code = self.process.wait(20)
        self._sock.close()
        return code

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
