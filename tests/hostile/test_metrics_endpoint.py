"""The metrics endpoint under slow, silent and talkative scrapers: a real daemon's page is to be had all the while."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from snapd.config import MetricsConfig
from snapd.daemon import clients
from snapd.daemon.endpoint import REQUEST_MOST, Endpoint, open_door
from snapd.units import KIB, MIB, SECOND
from tests.support import examples as _examples  # noqa: F401
from tests.support.etcd_server import wait_for

INSIDE = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
Address = tuple[str, int]
STATUSES = (b"200 OK", b"400 Bad Request", b"404 Not Found", b"405 Method Not Allowed")


class Desk:
    def __init__(self) -> None:
        registry = CollectorRegistry()
        Counter("csnap_there", "Something to show.", registry=registry).inc()
        door = open_door(MetricsConfig("127.0.0.1", 0))
        assert door is not None
        self.address: Address = door.listener.getsockname()
        self.endpoint = Endpoint(registry, door)

    @property
    def served(self) -> int:
        assert self.endpoint._server is not None
        return len(self.endpoint._server._clients)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 20)

    def scrape(self) -> None:
        """Somebody who asks properly is answered soon."""
        started = time.monotonic()
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request("GET", "/metrics")
            assert b"csnap_there_total 1.0" in connection.getresponse().read()
        finally:
            connection.close()
        assert time.monotonic() - started < 5

    def raw(self, data: bytes) -> bytes:
        """Send bytes and nothing more; return all that comes back."""
        with self.connect() as sock:
            received = bytearray()
            with contextlib.suppress(OSError):  # closed, reset, no longer connected
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while piece := sock.recv(65536):
                    received += piece
            return bytes(received)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.endpoint.close()


HEADS = st.builds(
    lambda *parts: b" ".join(parts),
    st.sampled_from([b"GET", b"POST", b"get", b"", b"PRI", b"\x16\x03\x01"]),
    st.sampled_from([b"/metrics", b"/metrics?x=1", b"/", b"//metrics", b"*", b"http://x/metrics", b"/%6detrics", b""]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"", b"HTTP/1.1 x"]),
)
HEADERS = st.lists(st.sampled_from([b"Host: x", b"Content-Length: 99999999999", b"Transfer-Encoding: chunked", b"\0",
                                    b"Expect: 100-continue", b": ", b"X" * 500]) | st.binary(max_size=30),
                   max_size=5)  # fmt: skip


@INSIDE
@given(head=HEADS, headers=HEADERS, end=st.sampled_from([b"\r\n\r\n", b"\n\n", b"", b"\r\n\r\n\r\n\r\nGET /metrics"]))
def test_whatever_is_asked(desk: Desk, head: bytes, headers: list[bytes], end: bytes) -> None:
    """One of four answers, or none to a request that does not end; a good one is answered afterwards."""
    answer = desk.raw(b"\r\n".join([head, *headers]) + end)
    assert not answer or answer.split(b"\r\n")[0].removeprefix(b"HTTP/1.1 ") in STATUSES
    desk.scrape()


@INSIDE
@given(data=st.binary(max_size=400))
def test_bytes(desk: Desk, data: bytes) -> None:
    """No request; never the page."""
    assert b"csnap_there_total" not in desk.raw(data)


def test_a_slow_loris_is_ended_by_the_clock_not_by_its_last_byte(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header line now and then renews no limit; others are served meanwhile."""
    monkeypatch.setattr(clients, "REQUEST_LIMIT", SECOND // 2)
    with desk.connect() as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        end = time.monotonic() + 20
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < end:
                sock.sendall(b"X-a: b\r\n")
                desk.scrape()
    wait_for(lambda: desk.served == 0, "it is gone")


def test_two_hundred_lorises_and_a_scraper(desk: Desk) -> None:
    """Thirty-two at most are kept; the oldest makes room for whoever comes, and the scraper is always answered."""
    with contextlib.ExitStack() as stack:
        for index in range(200):
            sock = stack.enter_context(desk.connect())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            if index % 20 == 0:
                desk.scrape()
            assert desk.served <= clients.CLIENTS_MOST
        desk.scrape()
    wait_for(lambda: desk.served == 0, "all are gone")


@pytest.mark.parametrize("line", [b"X: " + b"y" * 70000, b"X: y\r\n" * 20000], ids=["one", "many"])
def test_huge_headers_are_cut_off(desk: Desk, line: bytes) -> None:
    """Beyond 8 KiB without an end the connection is closed, and nothing of it is kept."""
    assert REQUEST_MOST == 8 * KIB
    for _ in range(20):
        assert b"200 OK" not in desk.raw(b"GET /metrics HTTP/1.1\r\n" + line)
    desk.scrape()
    wait_for(lambda: desk.served == 0, "all are gone")


def test_a_scraper_that_takes_nothing_is_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks and does not read: after the limit it is closed; meanwhile each costs its page, once or twice."""
    monkeypatch.setattr(clients, "REPLY_LIMIT", SECOND // 4)
    monkeypatch.setattr("snapd.daemon.endpoint.generate_latest", lambda registry: b"csnap_there_total 1.0\n" * 400000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(desk.connect())
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        desk.scrape()
        wait_for(lambda: desk.served == 0, "all are gone")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * KIB < 21 * 2 * 9 * MIB


def test_clients_that_leave_at_every_moment(desk: Desk) -> None:
    """Closed or reset before, in and behind the request."""
    for data in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n" + b"x" * 100000):
        for _ in range(10):
            with desk.connect() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
                sock.sendall(data)
    desk.scrape()
    wait_for(lambda: desk.served == 0, "all are gone")
