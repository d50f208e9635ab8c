"""The Prometheus endpoint: ``GET /metrics`` on a loop and a thread of its own.

A slow or idle scraper cannot hold it up (clients.py), and it cannot hold up the control loop: that one only hands over
a sample, and if it does not within SAMPLE_LIMIT, the last one is shown.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from snapd.daemon.clients import Client, Server
from snapd.daemon.loop import Loop
from snapd.daemon.metrics import Sample
from snapd.errors import Refused
from snapd.units import KIB

REQUEST_MOST = 8 * KIB
BACKLOG = 128
SAMPLE_LIMIT = 0.5  # seconds
JOIN_LIMIT = 1.0


class Sampler:
    """Hands a sample of the member from the loop's thread to whoever asks from another."""

    def __init__(self, loop: Loop, take: Callable[[], Sample]) -> None:
        self._loop, self._take = loop, take
        self._last = take()

    def __call__(self) -> Sample:
        done = threading.Event()

        def take() -> None:
            self._last = self._take()
            done.set()

        try:
            self._loop.call_soon_threadsafe(take)
        except RuntimeError:  # the daemon is ending
            return self._last
        done.wait(SAMPLE_LIMIT)
        return self._last


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises Refused: somebody else has the port, or the address is not this host's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Refused(f"[metrics] listen {host}:{port}: {error.strerror}") from error
    return sock


class Endpoint:
    """Serves ``registry`` on ``listener`` from now until ``close``."""

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._loop = Loop()
        self._server = Server(self._loop, listener, b"\r\n\r\n", REQUEST_MOST, self._asked)
        self._thread = threading.Thread(target=self._loop.run, name="csnap-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_LIMIT)
        if not self._thread.is_alive():
            self._server.close()
            self._loop.close()

    def _asked(self, client: Client, request: bytes) -> None:
        words = request.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self._answer(client, "400 Bad Request", b"expected HTTP/1.1\n")
        elif words[0] != b"GET":
            self._answer(client, "405 Method Not Allowed", b"expected GET\n")
        elif words[1].split(b"?")[0] != b"/metrics":
            self._answer(client, "404 Not Found", b"expected /metrics\n")
        else:
            self._answer(client, "200 OK", generate_latest(self._registry), CONTENT_TYPE_LATEST)

    @staticmethod
    def _answer(client: Client, status: str, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        client.send(head.encode() + b"Connection: close\r\n\r\n" + body)
        client.finish()
