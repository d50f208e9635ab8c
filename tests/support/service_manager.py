"""As much of systemd as keeps descriptors through a restart: READY, FDSTORE, FDSTOREREMOVE, BARRIER, LISTEN_FDS.

Not more lenient than the real one: a barrier comes alone and with one descriptor, and is answered after everything
that was sent before it; a descriptor whose other end has hung up is dropped.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

MAX_DATAGRAM = 4096
MAX_DESCRIPTORS = 253

START = """\
import fcntl, os, sys
numbers, *command = sys.argv[1:]
aside = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 500) for number in numbers.split(",") if number]
os.closerange(3, 500)
for index, fd in enumerate(aside):
    os.dup2(fd, 3 + index)
    os.close(fd)
if aside:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(aside)))
os.execv(command[0], command)
"""
"""What systemd does between fork and exec."""


class ServiceManager:
    """Listens on ``address``. deaf: nothing is read any more; messages: all texts so far."""

    def __init__(self, limit: int = 1024) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="csnap-manager-")
        self.address = str(Path(self._directory.name) / "notify")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._limit = limit
        self._wake, self._woken = os.pipe()
        self.messages: list[str] = []
        self.stored: list[int] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="service-manager")
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while all(fd != self._wake for fd, _ in poll.poll()):
            data, descriptors, _, _ = socket.recv_fds(
                self._sock, MAX_DATAGRAM, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            with self._changed:
                self._handle(data.decode(), descriptors)
                self._changed.notify_all()

    def _handle(self, text: str, descriptors: list[int]) -> None:
        self.messages.append(text)
        words = text.split("\n")
        if "FDSTORE=1" in words:
            assert "FDNAME=csnap" in words, text
            room = self._limit - len(self.stored)
            self.stored += descriptors[:room]
            descriptors = descriptors[room:]
        elif "FDSTOREREMOVE=1" in words:
            assert "FDNAME=csnap" in words and not descriptors, text
            descriptors, self.stored = self.stored, []
        elif "BARRIER=1" in words:
            assert words == ["BARRIER=1"] and len(descriptors) == 1, text
        for fd in descriptors:
            os.close(fd)

    def wait_for(self, text: str, count: int = 1, limit: float = 30.0) -> None:
        """Until it was said so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.messages.count(text) >= count, limit), self.messages

    def stop_reading(self) -> None:
        """From now on it is deaf."""
        if self._thread.is_alive():
            os.write(self._woken, b"x")
            self._thread.join()

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
        """Start a service, with what is stored as descriptors 3, 4, ...; hung up ones are dropped first."""
        with self._changed:
            for fd in [fd for fd in self.stored if _hung_up(fd)]:
                self.stored.remove(fd)
                os.close(fd)
            stored = list(self.stored)
        with open(output, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", START, ",".join(map(str, stored)), *command],
                env={**environment, "NOTIFY_SOCKET": self.address},
                pass_fds=stored,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def drop(self) -> None:
        """The unit has stopped, and is not started again."""
        with self._changed:
            while self.stored:
                os.close(self.stored.pop())

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_reading()
        self.drop()
        self._sock.close()
        os.close(self._wake)
        os.close(self._woken)
        self._directory.cleanup()


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    try:
        poll.register(fd, 0)
    except OSError:  # nothing that can be polled
        return False
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
