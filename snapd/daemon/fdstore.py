"""systemd's store of descriptors: how clients live through a restart of the daemon (sd_notify(3), FDSTORE=1).

Only what a clean stop leaves is ever put in. The next process takes everything out before anybody reads a byte of it,
and has systemd confirm that (BARRIER=1): whatever is in the store is untouched, so no crash ever makes a connection be
used twice. systemd itself drops the store when the unit stops without being started again, and a client that hangs
up meanwhile. Without systemd, or with FileDescriptorStoreMax=0, nothing is kept and the clients connect again.

Spoken here and not by systemd-python: its notify waits with the interpreter's lock held, without any limit.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import MutableMapping, Sequence

NAME = "csnap"
FIRST = 3
"""The first descriptor that systemd passes (SD_LISTEN_FDS_START)."""

AT_ONCE = 200
"""Descriptors in one message: the kernel allows 253."""

FORGET_LIMIT = 5.0  # seconds


class FdStore:
    """Of the unit whose notification socket ``address`` is."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def keep(self, descriptors: Sequence[int], limit: float) -> bool:
        """Put them in, in order; return whether systemd has confirmed within ``limit`` seconds that it has dealt with
        them. It compares each one with all that it has: 900 take it half a second."""
        parts = [descriptors[begin : begin + AT_ONCE] for begin in range(0, len(descriptors), AT_ONCE)]
        return self._tell([(f"FDSTORE=1\nFDNAME={NAME}", part) for part in parts], limit)

    def forget(self) -> bool:
        """Take out everything that was kept; return whether systemd has confirmed it."""
        return self._tell([(f"FDSTOREREMOVE=1\nFDNAME={NAME}", ())], FORGET_LIMIT)

    def _tell(self, messages: Sequence[tuple[str, Sequence[int]]], limit: float) -> bool:
        theirs, ours = -1, -1
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(limit)
                sock.connect(self._address)
                for text, descriptors in (*messages, ("BARRIER=1", (theirs,))):
                    socket.send_fds(sock, [text.encode()], descriptors)
        except OSError:  # nobody listens, or nobody reads
            return False
        else:
            os.close(theirs)
            theirs = -1
            poll = select.poll()
            poll.register(ours, 0)
            return bool(poll.poll(limit * 1000))  # it has hung up: systemd has closed the other end
        finally:
            for fd in (ours, theirs):
                if fd >= 0:
                    os.close(fd)


def find_store() -> FdStore | None:
    """Return the store of this process's unit; None if systemd has not started it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return FdStore(address) if address else None


def inherited(environment: MutableMapping[str, str] = os.environ) -> list[int]:
    """Return what systemd has passed to this process, close-on-exec from now on; and forget that it was said."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    descriptors = list(range(FIRST, FIRST + int(count)))
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return descriptors


def shut_down(descriptors: Sequence[int]) -> None:
    """End the connections among them for whoever else has them, and close all."""
    for fd in descriptors:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # not a socket
            os.close(fd)
            continue
        with sock:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is over already
                continue
