"""The Prometheus endpoint: ``GET /metrics``, and the text file, on a loop and a thread of their own.

A slow, idle or broken scraper cannot hold it up (clients.py): it has its time for the request and for each piece of the
reply, and when all places are taken the oldest makes room, whatever it is doing: Prometheus asks again. The same holds
for TLS, whose handshake is a part of the request's time (tls.py); prometheus_client's own server is stalled by one idle
client there. And it cannot hold up the control loop: that one only hands over a sample, and if it does not within
SAMPLE_LIMIT, the last one is shown.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from snapd.config import MetricsConfig
from snapd.daemon.clients import Client, Server, Stream
from snapd.daemon.loop import Loop
from snapd.daemon.metrics import Sample
from snapd.daemon.textfile import Textfile
from snapd.daemon.tls import Certificates
from snapd.errors import Refused
from snapd.nbd.listener import listen as listen_unix
from snapd.units import KIB

REQUEST_MOST = 8 * KIB
BACKLOG = 128
SAMPLE_LIMIT = 0.5  # seconds
JOIN_LIMIT = 1.0
UNIX_MODE = 0o660


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


class Door:
    """Where scrapers come in. Opened before the worker is started: what is refused is refused at once.

    ``address``: host:port, https://host:port, or unix:path.
    """

    def __init__(self, listener: socket.socket, address: str, certificates: Certificates | None, path: str) -> None:
        self.listener, self.address, self.certificates, self.path = listener, address, certificates, path

    def close(self) -> None:
        self.listener.close()
        if self.path:
            Path(self.path).unlink(missing_ok=True)


def open_door(config: MetricsConfig) -> Door | None:
    """None: no endpoint is wanted. Raises Refused: somebody else has the address, or the certificates make no sense."""
    if config.unix:
        return Door(listen_unix(config.unix, UNIX_MODE), f"unix:{config.unix}", None, config.unix)
    if not config.host:
        return None
    certificates = None
    if config.tls_cert:
        certificates = Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)
    listener = listen(config.host, config.port)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Door(listener, address if certificates is None else f"https://{address}", certificates, "")


class ScrapeServer(Server):
    """Nobody has a right to its place: a reply that is not taken is worth no more than a request that does not come."""

    def __init__(self, loop: Loop, door: Door, handle: Callable[[Client, bytes], None]) -> None:
        super().__init__(loop, door.listener, b"\r\n\r\n", REQUEST_MOST, handle)
        self._certificates = door.certificates

    def wrap(self, sock: socket.socket) -> Stream:
        return sock if self._certificates is None else self._certificates.wrap(sock)

    def expendable(self) -> Client | None:
        return super().expendable() or self.oldest


class Endpoint:
    """Serves ``registry`` through ``door``, and writes it to the text file, from now until ``close``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        door: Door | None,
        textfile: str = "",
        volume: str = "",
        complain: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._registry = registry
        self._loop = Loop()
        self._door = door
        self._server = ScrapeServer(self._loop, door, self._asked) if door is not None else None
        self._textfile = Textfile(self._loop, textfile, registry, volume, complain) if textfile else None
        if self._textfile is not None:
            self._loop.call_at(0, self._textfile.begin)
        self._thread = threading.Thread(target=self._loop.run, name="csnap-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_LIMIT)
        if not self._thread.is_alive():
            if self._server is not None:
                self._server.close()
            self._loop.close()
        if self._door is not None:
            self._door.close()
        if self._textfile is not None:
            self._textfile.remove()

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
