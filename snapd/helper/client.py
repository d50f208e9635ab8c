"""Asking the helper: one request a connection. Calls wait: they are made in threads, or by the command line."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from snapd.errors import CsnapError, Fenced, NoDaemon

LIMIT = 120.0
"""Seconds for an answer: the kernel tries a path for 30 s, and a command some times."""


class Helper:
    """``path``: its socket."""

    def __init__(self, path: str, limit: float = LIMIT) -> None:
        self.path, self._limit = path, limit

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Raises NoDaemon if no helper answers, Fenced if this host's key is gone, CsnapError for what it says."""
        received = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(self._limit)
            try:
                sock.connect(self.path)
                with contextlib.suppress(BrokenPipeError):  # it has refused already; what it says can be read
                    sock.sendall(json.dumps({"verb": verb, **fields}).encode() + b"\n")
                while not received.endswith(b"\n"):
                    data = sock.recv(65536)
                    if not data:
                        raise NoDaemon(f"{self.path}: the helper hung up")
                    received += data
            except OSError as error:
                raise NoDaemon(f"{self.path}: no helper answers: {error.strerror or 'silence'}") from None
        answer = json.loads(received)
        if "error" in answer:
            kind = Fenced if answer.get("kind") == "NotRegistered" else CsnapError
            raise kind(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result
