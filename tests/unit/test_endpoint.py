"""The metrics endpoint: whatever scrapers do, the next one is answered; over TCP, TLS, a unix socket, and as a file."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from snapd import counters
from snapd.config import MetricsConfig
from snapd.daemon import clients
from snapd.daemon import textfile as textfiles
from snapd.daemon.endpoint import Door, Endpoint, open_door
from snapd.daemon.metrics import CsnapCollector, Observations, Sample
from snapd.daemon.textfile import Textfile
from snapd.errors import Refused
from snapd.units import SECOND
from tests.support.etcd_server import make_certificates
from tests.support.looped import Looped

DEADLINE = 5.0
"""Seconds in which a scrape must be answered, whatever others do: half of Prometheus' own limit."""

PLAIN = MetricsConfig("127.0.0.1", 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def registry() -> CollectorRegistry:
    words = memoryview(bytearray(counters.PAGE_BYTES)).cast("Q")
    found = CollectorRegistry()
    CsnapCollector(found, Observations(), words, lambda: Sample(now=SECOND, node="host-a", fencing="unsafe"))
    return found


class Served:
    """An endpoint, and the ways to it."""

    def __init__(self, config: MetricsConfig) -> None:
        door = open_door(config)
        assert isinstance(door, Door)
        self.door, self.config = door, config
        self.name = door.listener.getsockname()
        self.endpoint = Endpoint(registry(), door)

    def connect(self) -> socket.socket:
        if self.config.unix:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(DEADLINE)
            sock.connect(self.config.unix)
            return sock
        return socket.create_connection(self.name, DEADLINE)

    def scrape(self, context: ssl.SSLContext | None = None) -> str:
        """One scrape, as Prometheus makes it. Raises OSError when it is not answered in time."""
        begun = time.monotonic()
        with self.connect() as plain, wrapped(plain, context) as sock:
            sock.sendall(GET)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            text = answer.read().decode()
            assert answer.status == 200
        assert time.monotonic() - begun < DEADLINE
        assert "csnap_build_info{" in text
        return text


def wrapped(sock: socket.socket, context: ssl.SSLContext | None) -> socket.socket:
    return sock if context is None else context.wrap_socket(sock, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    make_certificates(directory)
    return directory


def secure(pki: Path, mutual: bool = False) -> MetricsConfig:
    ca = str(pki / "ca.pem") if mutual else ""
    return replace(PLAIN, tls_cert=str(pki / "server.pem"), tls_key=str(pki / "server.key"), tls_client_ca=ca)


def client(pki: Path, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if name:
        context.load_cert_chain(str(pki / f"{name}.pem"), str(pki / f"{name}.key"))
    return context


WAYS = ("tcp", "tls", "mutual", "unix")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, pki: Path, tmp_path: Path) -> Iterator[tuple[Served, ssl.SSLContext | None]]:
    """An endpoint, and what a good client needs to speak with it."""
    config, context = {
        "tcp": (PLAIN, None),
        "tls": (secure(pki), client(pki)),
        "mutual": (secure(pki, mutual=True), client(pki, "csnap")),
        "unix": (MetricsConfig("", 0, unix=str(tmp_path / "m.sock")), None),
    }[request.param]
    served = Served(config)
    yield served, context
    served.endpoint.close()


def nothing(sock: socket.socket) -> None:
    """Connected, and silent."""


def half_a_request(sock: socket.socket) -> None:
    """A slow loris: begins and does not end."""
    sock.sendall(b"GET /metrics HT")


def half_open(sock: socket.socket) -> None:
    """Says that it will send no more, and asks for nothing."""
    sock.shutdown(socket.SHUT_WR)


def garbage(sock: socket.socket) -> None:
    """Neither HTTP nor TLS."""
    sock.sendall(b"\x16\x03\x01\xff\xff" + bytes(range(256)) * 16)


def half_a_handshake(sock: socket.socket) -> None:
    """The head of a ClientHello that promises more."""
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")


def reset(sock: socket.socket) -> None:
    """Gone with a reset, with a request on its way."""
    sock.sendall(GET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    "behave", [nothing, half_a_request, half_open, garbage, half_a_handshake, reset], ids=lambda behave: behave.__name__
)
def test_a_hundred_bad_clients_do_not_keep_a_scrape_from_its_answer(
    way: tuple[Served, ssl.SSLContext | None], behave: Callable[[socket.socket], None]
) -> None:
    """More of them than there are places, all still there while the good one asks, twice, within its deadline."""
    served, context = way
    with ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(closing(served.connect()))
            try:
                behave(sock)
            except OSError:
                continue  # its place was given to another already
        served.scrape(context)
        served.scrape(context)


def test_clients_that_do_not_take_their_reply_make_room(way: tuple[Served, ssl.SSLContext | None]) -> None:
    """As many as there are places have asked and read nothing, for longer than anybody scrapes."""
    served, context = way
    with ExitStack() as stack:
        for _ in range(clients.CLIENTS_MOST + 8):
            plain = stack.enter_context(served.connect())
            if not served.config.unix:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock = stack.enter_context(wrapped(plain, context))
            try:
                sock.sendall(GET)
            except OSError:
                continue
        served.scrape(context)


def test_a_client_that_is_silent_in_the_handshake_is_dropped(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same limit as half a request; until then it waits, and nobody waits for it."""
    monkeypatch.setattr(clients, "REQUEST_LIMIT", SECOND // 5)
    served = Served(secure(pki))
    with served.connect() as sock:
        half_a_handshake(sock)
        assert sock.recv(100) == b""
    served.endpoint.close()


def test_who_has_no_certificate_is_not_answered(pki: Path) -> None:
    """Mutual TLS: none, and one that another CA, or nobody, has signed. The next good one is answered."""
    served = Served(secure(pki, mutual=True))
    for name in ("", "stranger"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            served.scrape(client(pki, name))
    assert "csnap_build_info" in served.scrape(client(pki, "csnap"))
    served.endpoint.close()


def test_plain_http_is_not_answered_where_tls_is_spoken(pki: Path) -> None:
    """The connection ends; nothing of the metrics is shown."""
    served = Served(secure(pki))
    with served.connect() as sock:
        sock.sendall(GET)
        with suppress(ConnectionResetError):
            assert b"csnap" not in sock.recv(1 << 16)
    served.endpoint.close()


def test_old_tls_is_refused(pki: Path) -> None:
    """Below 1.2."""
    served = Served(secure(pki))
    old = client(pki)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.scrape(old)
    served.endpoint.close()


def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(pki: Path, tmp_path: Path) -> None:
    """Without a restart: certificates are renewed every few months, or days."""
    for name in ("server", "csnap"):
        for end in ("pem", "key"):
            shutil.copy(pki / f"{name}.{end}", tmp_path)
    served = Served(secure(tmp_path))

    def subject() -> str:
        with served.connect() as plain, wrapped(plain, client(pki)) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            return str(sock.getpeercert()["subject"])  # type: ignore[index]

    assert "server" in subject()
    (tmp_path / "server.pem").write_text("-----BEGIN CERTIFICATE-----\nhalf")
    assert "server" in subject()
    for end in ("pem", "key"):
        (tmp_path / f"csnap.{end}").replace(tmp_path / f"server.{end}")
    assert "csnap" in subject()
    served.endpoint.close()


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_client_ca"])
def test_certificates_that_make_no_sense_are_refused_by_name(pki: Path, tmp_path: Path, missing: str) -> None:
    """Before anything is started; a file that is not there, and one that is something else."""
    good = secure(pki, mutual=True)
    (tmp_path / "other").write_text("something else")
    for path in ("/nonexistent", str(tmp_path / "other")):
        with pytest.raises(Refused, match=rf"\[metrics\].*{missing} {path}"):
            open_door(replace(good, **{missing: path}))


def test_other_requests_are_refused(way: tuple[Served, ssl.SSLContext | None]) -> None:
    """By an HTTP status, never by silence."""
    served, context = way
    for said, status in (
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
    ):
        with served.connect() as plain, wrapped(plain, context) as sock:
            sock.sendall(said)
            assert sock.recv(100).split()[1] == status


def test_a_taken_port_is_refused_by_name() -> None:
    """Naming the setting and the address."""
    served = Served(PLAIN)
    port = served.name[1]
    with pytest.raises(Refused, match=rf"\[metrics\] listen 127\.0\.0\.1:{port}: Address already in use"):
        open_door(replace(PLAIN, port=port))
    served.endpoint.close()


def test_addresses_say_how_to_ask(pki: Path, tmp_path: Path) -> None:
    """host:port, with the scheme when it is TLS, or the socket's path; the socket's file goes with the endpoint."""
    path = tmp_path / "m.sock"
    for config, pattern in (
        (PLAIN, r"127\.0\.0\.1:\d+"),
        (secure(pki), r"https://127\.0\.0\.1:\d+"),
        (MetricsConfig("", 0, unix=str(path)), re.escape(f"unix:{path}")),
    ):
        served = Served(config)
        assert re.fullmatch(pattern, served.door.address)
        served.endpoint.close()
    assert not path.exists() and open_door(MetricsConfig("", 0)) is None


# ---- the text file


def test_the_file_is_whole_readable_and_says_which_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written at once and again and again; every sample has the volume's name; a stop takes it away."""
    monkeypatch.setattr(textfiles, "INTERVAL", SECOND // 50)
    path = tmp_path / "csnap-vol.prom"
    endpoint = Endpoint(registry(), None, str(path), "vol")
    seen = set()
    deadline = time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < deadline:
        try:
            seen.add(path.stat().st_ino if path.stat().st_size else 0)
            text = path.read_text()
        except FileNotFoundError:
            continue
        assert text.endswith("\n") and text.count("# HELP") == text.count("# TYPE") > 40
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert len(seen) >= 2 and 0 not in seen and {one.labels["volume"] for one in samples} == {"vol"}
    assert path.stat().st_mode & 0o777 == 0o644
    endpoint.close()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_is_complained_of_once_and_tried_again(tmp_path: Path) -> None:
    """Once for each series of failures: a full disk does not fill the log too."""
    directory = tmp_path / "collector"
    said: list[str] = []
    with Looped() as looped:
        file = Textfile(looped.loop, str(directory / "v.prom"), registry(), "v", said.append)
        file.write()
        file.write()
        directory.mkdir()
        file.write()
        assert (directory / "v.prom").exists()
        shutil.rmtree(directory)
        file.write()
    assert said == [f"[metrics] textfile {directory}/v.prom: No such file or directory"] * 2


def test_regression_the_file_was_written_through_a_link(tmp_path: Path) -> None:
    """Whoever may write the collector's directory could have the daemon empty a file of its own."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".v.prom.new").symlink_to(precious)
    said: list[str] = []
    with Looped() as looped:
        Textfile(looped.loop, str(tmp_path / "v.prom"), registry(), "v", said.append).write()
    assert precious.read_text() == "kept" and len(said) == 1
