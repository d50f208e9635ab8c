"""A real worker process with a lockspace played by the test: no etcd, no control process.

A thread answers the worker's messages from a LockSim. ``deadline`` is the page's word: a test that sets it to the
past makes the worker stall. ``silent`` keeps the lockspace from answering anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from uuid import uuid4

from snapd.clock import boottime
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import (
    MAX_DATAGRAM,
    HandedOver,
    Hello,
    Message,
    Overflow,
    SnapshotSpec,
    Stop,
    Stopped,
    decode,
    encode,
)
from snapd.units import KIB, MIB, SECOND, SECTOR
from snapd.worker.launch import Descriptors, WorkerSettings, settings_descriptor
from snapd.worker.pages import create_counters, create_deadline, create_trace
from tests.support.lock_sim import LockSim, Port

VOLUME_UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
PATIENCE = 20.0  # seconds after which a test that waits fails
COMMAND = (sys.executable, "-m", "snapd.worker")

T = TypeVar("T", bound=Message)


def make_cow(
    path: str | Path, name: str, origin_size: int, chunk: int, size: int, writable: bool = False
) -> SnapshotSpec:
    """Format a file of ``size`` bytes, or a device (size 0), as a COW device."""
    spec = SnapshotSpec(name, str(uuid4()), str(path), "active", writable, 1)
    header = Header(True, chunk // SECTOR)
    sidecar = Sidecar(VOLUME_UUID, spec.store, name, origin_size, 1)
    with open(path, "r+b" if Path(path).exists() else "w+b") as file:
        if size:
            file.truncate(size)
        file.write((header.to_bytes() + sidecar.to_bytes(header.chunk_size)).ljust(chunk, b"\0") + bytes(chunk))
        file.flush()
        os.fsync(file.fileno())
    return spec


def wait_until(reached: Callable[[], object], what: str = "") -> None:
    """Look again and again, for as long as a test may take; for states that announce themselves to nobody."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, f"never reached: {what or reached}"
        time.sleep(0.005)


class WorkerProcess:
    """A worker serving ``directory/nbd.sock``.

    ready: wait until it serves. command: what to run instead of the worker's usual command line.
    taken: descriptors of an older worker; they are closed here. handed: those that this one has handed over.
    """

    def __init__(
        self,
        directory: Path,
        origin: str | Path,
        chunk: int = 16 * KIB,
        region: int = MIB,
        locks: LockSim | None = None,
        ready: bool = True,
        command: Sequence[str] = COMMAND,
        settings: bytes | None = None,
        taken: Sequence[int] = (),
    ) -> None:
        self.socket = directory / "nbd.sock"
        self.locks = locks or LockSim()
        self.messages: list[Message] = []
        self.silent = False
        self.handed: list[int] = []
        self.closed = False  # the worker's end of the channel
        self._changed = threading.Condition()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deadline_fd, self.deadline = create_deadline()
        counters_fd, self.words = create_counters()
        trace_fd, self.trace = create_trace()
        self.lease(True)
        lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        chosen = WorkerSettings(
            VOLUME_UUID, "vol", "clusterized_persistent", str(origin), True, chunk, region, str(self.socket)
        )
        settings_fd = settings_descriptor(chosen)
        if settings is not None:
            os.ftruncate(settings_fd, 0)
            os.pwrite(settings_fd, settings, 0)
        given = Descriptors(theirs.fileno(), deadline_fd, counters_fd, trace_fd, lock_fd, settings_fd, tuple(taken))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed with the worker
        self.process = subprocess.Popen(
            [*command, *given.arguments()], pass_fds=given.all(), stdin=subprocess.DEVNULL, stderr=self._stderr
        )
        theirs.close()
        for fd in given.all()[1:]:
            os.close(fd)
        self._sock = ours
        self._port: Port | None = None
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()
        if ready:
            try:
                self.wait(lambda: self._port is not None and self._port.serving)
            except BaseException:
                self.close()
                raise

    # ---- the lockspace's part

    def _pump(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, MAX_DATAGRAM, 253, socket.MSG_CMSG_CLOEXEC)
                self.handed += descriptors
            except OSError:
                data = b""
            with self._changed:
                if data:
                    self._handle(decode(data))
                else:
                    self.closed = True
                self._changed.notify_all()
            if not data:
                return

    def _handle(self, message: Message) -> None:
        self.messages.append(message)
        if isinstance(message, Hello):
            self._port = self.locks.join("host-a")
        elif not isinstance(message, (HandedOver, Stopped)) and self._port is not None:
            self._port.outbox.append(message)
        self._deliver()

    def _deliver(self) -> None:
        if self._port is None or self.silent:
            return
        while self.locks.deliver():
            pass
        while self._port.inbox:
            self.send(self._port.inbox.popleft())

    def send(self, message: Message) -> None:
        """Send the worker a message of the control process."""
        with contextlib.suppress(OSError):  # it is gone: that shows in other ways
            self._sock.send(encode(message))

    # ---- what tests do

    def wait(self, reached: Callable[[], object]) -> None:
        """Wait until ``reached()``, which may change with every message."""
        with self._changed:
            if not self._changed.wait_for(reached, PATIENCE):
                raise AssertionError(f"not reached; messages: {self.messages}; stderr: {self.stderr()}")

    def received(self, kind: type[T]) -> T:
        """Wait for a message of this kind, and return the last one."""
        self.wait(lambda: any(isinstance(message, kind) for message in self.messages))
        return next(message for message in reversed(self.messages) if isinstance(message, kind))

    def overflowed(self) -> bool:
        """Whether the worker gave a snapshot up."""
        return any(isinstance(message, Overflow) for message in self.messages)

    def lease(self, stands: bool) -> None:
        """Renew the lease for an hour, or let its deadline be past."""
        self.deadline[0] = boottime() + 3600 * SECOND if stands else 1

    def answer(self, silent: bool) -> None:
        """Stop answering the worker's messages, or answer them all now."""
        with self._changed:
            self.silent = silent
            self._deliver()

    def take(self, spec: SnapshotSpec) -> None:
        """Take a snapshot online; return when the worker has been told; requests wait until it is loaded."""

        def change() -> None:
            self.locks.take(spec)

        with self._changed:
            self.locks.change_table("host-a", change)
            self._deliver()
        self.wait(lambda: spec in self.locks.snapshots and self.table_held())

    def drop(self, name: str) -> None:
        """Delete a snapshot."""

        def change() -> None:
            self.locks.snapshots = [spec for spec in self.locks.snapshots if spec.name != name]

        with self._changed:
            self.locks.change_table("host-a", change)
            self._deliver()
        self.wait(lambda: all(spec.name != name for spec in self.locks.snapshots) and self.table_held())

    def table_held(self) -> bool:
        """Whether the worker has the table, i.e. knows which snapshots there are."""
        return self.locks.table_op is None and bool(self.locks.holds.get("table", {}).get("host-a"))

    def stderr(self) -> str:
        """What the worker has said on its standard error so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def resident(self) -> int:
        """Bytes of memory the worker has touched."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * KIB
        raise AssertionError("no VmRSS")

    def stop(self, hand_over: bool = False) -> int:
        """Ask it to stop; return its exit code."""
        self.send(Stop(hand_over))
        return self.process.wait(PATIENCE)

    def hang_up(self) -> None:
        """Close the channel, as the death of the control process does."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill it if it still runs, and free everything."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()
        self._thread.join()
        self._sock.close()
        self._stderr.close()
        while self.handed:
            os.close(self.handed.pop())

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
