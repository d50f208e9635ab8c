"""The helper's socket: one JSON line a request, one a reply ``{"result": ...}`` or ``{"error": ...}``.

Who may ask: root, and whoever owns the [export] directory (the daemon's user). The file's mode (0660, of the
directory's group) keeps others out as well; the kernel's word on the peer counts. A connection has a thread of its
own, so a device that does not answer holds up no pet of the watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from snapd.clock import boottime
from snapd.errors import CsnapError
from snapd.helper.service import Service
from snapd.nbd.listener import listen
from snapd.units import SECOND

MODE = 0o660
LINE_MOST = 64 * 1024
CONNECTIONS_MOST = 16
PATIENCE = 10.0  # seconds for a request to arrive, and for a reply to be taken

_CREDENTIALS = struct.Struct("=iII")


class Server:
    """``run`` until ``stop``; then the socket file is gone, and a watchdog is left as it is."""

    def __init__(self, path: str, service: Service) -> None:
        self._path, self._service = path, service
        directory = Path(path).parent.stat()
        self._owner = directory.st_uid
        self._listener = listen(path, MODE)
        with contextlib.suppress(PermissionError):  # not root: a test
            os.chown(path, -1, directory.st_gid, follow_symlinks=False)  # the directory is not root's
        self._places = threading.Semaphore(CONNECTIONS_MOST)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(self) -> None:
        """From any thread or a signal handler."""
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not any(fd == self._wake for fd, _ in poll.poll()):
                self._accept()
        finally:
            self._listener.close()
            os.close(self._wake)
            Path(self._path).unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again
            return
        if not self._places.acquire(blocking=False):
            sock.close()
            return
        threading.Thread(target=self._serve, args=(sock,), name="request", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(PATIENCE)
                with contextlib.suppress(OSError):
                    sock.sendall(self._answer(sock) + b"\n")
        finally:
            self._places.release()

    def _answer(self, sock: socket.socket) -> bytes:
        pid, uid = peer(sock)
        try:
            if uid not in (0, self._owner):
                raise CsnapError(f"helper: process {pid} of user {uid} may not ask: only root and the daemon's user")
            answer: dict[str, Any] = {"result": self._service.handle(_line(sock))}
        except CsnapError as error:
            answer = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
        except Exception as error:  # a bug must not end the helper: a watchdog may be in its hands
            answer = {"error": f"helper: {type(error).__name__}: {error}", "kind": "CsnapError"}
        return json.dumps(answer).encode()


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel has them."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _line(sock: socket.socket) -> object:
    received = bytearray()
    end = boottime() + int(PATIENCE * SECOND)
    while not received.endswith(b"\n"):
        data = sock.recv(4096)
        received += data
        if boottime() > end:  # a byte now and then does not keep the place
            raise CsnapError(f"helper: no line of JSON within {PATIENCE:g} s")
        if not data or len(received) > LINE_MOST:
            raise CsnapError("helper: expected one line of JSON")
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        raise CsnapError("helper: expected one line of JSON") from None
