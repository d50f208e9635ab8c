"""The worker as the control process sees it: started with exec, spoken to over a seqpacket pair, watched by a pidfd.

Started before anything of gRPC exists in this process, because a fork afterwards is not safe. Either death ends the
other: the worker exits when the channel closes, and the kernel kills it when this process dies (PR_SET_PDEATHSIG); this
process learns of the worker's death from its pidfd. A dead worker is never replaced: its incarnation is dead too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import snapd
from snapd.daemon.loop import Loop
from snapd.errors import Refused
from snapd.messages import HandedOver, Message
from snapd.units import SECOND
from snapd.worker.channel import Channel
from snapd.worker.launch import Descriptors, WorkerSettings, settings_descriptor
from snapd.worker.loop import READABLE
from snapd.worker.pages import create_counters, create_deadline, create_trace

PR_SET_PDEATHSIG = 1

CLOSE_LIMIT = 0.5  # seconds
LAST_WORDS = SECOND // 100
PATIENCE = 2 * SECOND
"""For a worker that has closed the channel and does not end; its AIO may keep it longer, which no signal changes."""

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child, before exec. The parent has one thread here, so nothing of libc can be held by another."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Worker:
    """``receive`` gets every message, ``died`` the exit code, once (negative: the signal).

    taken: descriptors that an older worker has left; the new one gets them, and they are closed here.
    """

    def __init__(
        self,
        loop: Loop,
        settings: WorkerSettings,
        lock: int,
        receive: Callable[[Message], None],
        died: Callable[[int], None],
        taken: Sequence[int] = (),
    ) -> None:
        self._loop = loop
        self._died = died
        deadline_fd, self._deadline = create_deadline()
        counters_fd, self.words = create_counters()
        trace_fd, self.trace = create_trace()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings_fd = settings_descriptor(settings)
        given = Descriptors(theirs.fileno(), deadline_fd, counters_fd, trace_fd, lock, settings_fd, tuple(taken))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "snapd.worker", *given.arguments()],
                pass_fds=given.all(),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(snapd.__file__).parent.parent)},
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            ours.close()
            raise Refused(f"the worker cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
            for fd in (deadline_fd, counters_fd, trace_fd, settings_fd, *taken):
                os.close(fd)
        self.pid = self._process.pid
        self.alive = True
        self._code: int | None = None
        self._hanging_up = False
        self._closed = False
        self._sock: socket.socket | None = ours
        self._pidfd = os.pidfd_open(self.pid)
        self._receive = receive
        self._handed = 0
        self._channel = Channel(ours, loop, self._received, self._hung_up)
        loop.register(self._pidfd, READABLE, self._exited)

    def send(self, message: Message) -> None:
        """Tell the worker. Nothing happens if it has gone: its death is reported."""
        if self._sock is not None:
            self._channel.send(message)

    def set_deadline(self, deadline: int) -> None:
        """One aligned store: the worker reads the old value or the new one."""
        self._deadline[0] = deadline

    def _received(self, message: Message) -> None:
        if isinstance(message, HandedOver):
            self._handed += message.count
        else:
            self._receive(message)

    def kill(self) -> None:
        """End it now; its death is reported as any other."""
        if self.alive:
            self._process.kill()

    def close(self) -> None:
        """End it, wait for it a moment, and free what this process has of it.

        One whose I/O the kernel does not give back stays: it holds the lock file, so the next start waits for it.
        """
        self._closed = True
        if self.alive:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_LIMIT)
            self._reap()
        self._hang_up()
        while self._channel.descriptors:
            os.close(self._channel.descriptors.pop())

    def handed_over(self) -> list[int]:
        """Return the descriptors of its clients; none if not all have come. They are closed with this object."""
        return list(self._channel.descriptors) if len(self._channel.descriptors) == self._handed else []

    def _hung_up(self) -> None:
        """The channel is closed, as found by receiving or by sending: its process has ended, or is about to.

        What it said last (Fatal, Stopped) may still have to be read, so the channel goes a moment later.
        """
        if not self._hanging_up:
            self._hanging_up = True
            self._loop.call_later(LAST_WORDS, self._hang_up)
            self._loop.call_later(PATIENCE, self.kill)

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._report()

    def _exited(self, events: int) -> None:
        self._code = self._process.wait()
        self._reap()
        self._hung_up()
        self._report()

    def _reap(self) -> None:
        self.alive = False
        if self._pidfd >= 0:
            self._loop.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _report(self) -> None:
        if self._code is not None and self._sock is None and not self._closed:
            self._closed = True
            self._died(self._code)
