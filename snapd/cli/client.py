"""The command line's end of the admin socket (daemon/admin.py has the protocol)."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

from snapd.errors import CsnapError, NoDaemon, Refused
from snapd.printable import printable

FIRST_LIMIT = 2.0
"""Seconds for the first line: a daemon sends it at once."""

LINE_LIMIT = 15.0
"""Seconds between lines; a daemon sends one every second while it works."""

LINE_MOST = 64 << 20


def ask(path: str, request: dict[str, Any], progress: Callable[[str], None] = lambda text: None) -> Any:
    """Return the daemon's result. Raises NoDaemon if none answers, Refused if this user may not ask, CsnapError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(FIRST_LIMIT)
        try:
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError):  # it has refused already; what it says can be read
                sock.sendall(json.dumps(request).encode() + b"\n")
            return _answer(sock, path, progress)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon(
                f"no daemon answers on {path}: nobody listens: start csnapd@VOLUME, or csnap serve"
            ) from None
        except (TimeoutError, BlockingIOError):
            raise NoDaemon(f"no daemon answers on {path}: silence for {sock.gettimeout():g} s") from None
        except PermissionError:
            raise Refused(
                f"{path}: not allowed: only root, the daemon's user and members of its group may ask"
            ) from None
        except OSError as error:
            raise NoDaemon(f"no daemon answers on {path}: {error.strerror}") from None


def _answer(sock: socket.socket, path: str, progress: Callable[[str], None]) -> Any:
    received = bytearray()
    while True:
        data = sock.recv(1 << 20)
        if not data or len(received) > LINE_MOST:
            raise NoDaemon(f"no daemon answers on {path}: it hung up before the end")
        received += data
        *lines, received = received.split(b"\n")
        for line in lines:
            sock.settimeout(LINE_LIMIT)
            value = _parse(line, path)
            if "result" in value:
                return value["result"]
            if "error" in value:
                raise CsnapError(str(value["error"]))
            progress(printable(str(value.get("progress", ""))))


def _parse(line: bytearray, path: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CsnapError(f"{path}: {bytes(line[:40])!r}: no answer of a daemon: who listens there? (ss -xlp)")
    return value
