"""The admin socket: what the command line asks of the daemon.

One request a connection: a line of JSON ``{"command": "...", ...}``; the reply is lines of JSON, any number of
``{"progress": "..."}`` and then one ``{"result": ...}`` or ``{"error": "..."}``. The first line comes at once and
another at least every BEAT, so a client can tell a busy daemon from a dead one.

Who may ask: root, the daemon's own user, and members of the socket's group. The file's mode (0660) says the same,
but it can be loosened by accident; the kernel's word on the peer cannot.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapd.daemon.clients import Client, Server
from snapd.daemon.loop import Loop, Timer
from snapd.errors import CsnapError
from snapd.nbd.listener import listen
from snapd.units import KIB, SECOND

MODE = 0o660
REQUEST_MOST = 64 * KIB
BEAT = SECOND

_CREDENTIALS = struct.Struct("=iII")
SO_PEERGROUPS = 59
GROUPS_BYTES = 1024
"""Python's limit of getsockopt: 256 supplementary groups. A peer with more is judged by its user and primary group."""


class Reply:
    """The answer to one request; used in the loop's thread only. The operation goes on if the client has gone."""

    def __init__(self, loop: Loop, client: Client) -> None:
        self._loop = loop
        self._client = client
        self._text = "asked"
        self._timer: Timer | None = None

    def progress(self, text: str) -> None:
        """Say what is being done. Repeated every BEAT until the end."""
        self._text = text
        self._beat()

    def result(self, value: Any) -> None:
        self._finish({"result": value})

    def error(self, error: CsnapError) -> None:
        self._finish({"error": " ".join(str(error).split())})

    def _beat(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._send({"progress": self._text})
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _finish(self, line: dict[str, Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._send(line)
        self._client.finish()

    def _send(self, line: dict[str, Any]) -> None:
        self._client.send(json.dumps(line, separators=(",", ":")).encode() + b"\n")


Command = Callable[[dict[str, Any], Reply], None]
"""Answers a request, now or later. May raise CsnapError."""


class AdminServer(Server):
    """Listens at ``path``; the lock file is held already, so a socket file that is there is a dead one."""

    def __init__(
        self, loop: Loop, path: str, commands: dict[str, Command], refused: Callable[[dict[str, object]], None]
    ) -> None:
        super().__init__(loop, listen(path, MODE), b"\n", REQUEST_MOST, self._asked)
        self._path = path
        self._commands = commands
        self._refused = refused
        self._group = Path(path).stat().st_gid

    def close(self) -> None:
        super().close()
        Path(self._path).unlink(missing_ok=True)

    def admit(self, sock: socket.socket) -> bool:
        pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        allowed = may_ask(uid, gid, _groups(sock), os.geteuid(), self._group)
        if not allowed:
            self._refused({"uid": uid, "gid": gid, "pid": pid})
            with contextlib.suppress(OSError):  # it has gone already
                sock.send(b'{"error":"not allowed: only root, the daemon\'s user and members of its group may ask"}\n')
        return allowed

    def _asked(self, client: Client, line: bytes) -> None:
        reply = Reply(self.loop, client)
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            reply.error(CsnapError(f"request {line[:80]!r}: expected a JSON object with a known command"))
            return
        try:
            command(request, reply)
        except CsnapError as error:
            reply.error(error)


def may_ask(uid: int, gid: int, groups: tuple[int, ...], own: int, group: int) -> bool:
    """Root, the daemon's own user, and members of the socket's group, be it primary or supplementary."""
    return uid in (0, own) or group in (gid, *groups)


def _groups(sock: socket.socket) -> tuple[int, ...]:
    """Return the peer's supplementary groups as they were when it connected: the kernel's word, not /proc's."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"={len(data) // 4}I", data[: len(data) // 4 * 4])
