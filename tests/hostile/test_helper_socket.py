"""The privileged helper's socket: it runs as root, so nothing that is asked of it may go further than its few verbs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapd.config import parse
from snapd.errors import CsnapError
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.helper import server
from snapd.helper.client import Helper
from snapd.helper.reservations import Reservations
from snapd.helper.server import CONNECTIONS_MOST, Server
from snapd.helper.service import Service
from snapd.units import MIB
from tests.support import examples as _examples  # noqa: F401
from tests.support.etcd_server import wait_for
from tests.support.lock_rig import UUID

VERBS = ("ping", "register", "preempt", "unregister", "try", "pet", "disarm", "look")
OTHER = "00000000-0000-4000-8000-000000000001"
INSIDE = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Watched(Reservations):
    """No device is touched: what is asked of it is an error of the test's."""

    reached: list[str]

    def __init__(self, fd: int, path: str) -> None:
        self.reached.append(path)
        raise CsnapError(f"{path}: reached")


class Desk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin = directory / "origin"
        self.origin.write_bytes(bytes(MIB))
        values = {
            "volume": {"name": "vol", "cluster_uuid": UUID, "origin": str(self.origin), "chunk_size": "16KiB"},
            "node": {"name": "host-a"},
            "lockspace": {"endpoints": ["http://127.0.0.1:1"]},
            "export": {"directory": str(directory)},
            "fencing": {"method": "scsi-pr"},
        }
        self.reached: list[str] = []
        kind = type("Kept", (Watched,), {"reached": self.reached})
        self.path = str(directory / "helper.sock")
        self.server = Server(self.path, Service(parse(Path("vol"), values), cast(Any, kind)))
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(self.path)
        return sock

    def raw(self, data: bytes) -> bytes:
        with self.connect() as sock:
            received = bytearray()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while piece := sock.recv(65536):
                    received += piece
            return bytes(received)

    def well(self) -> None:
        assert Helper(self.path, 20).ask("ping")["pid"] == os.getpid()

    def cow(self, volume: str, name: str = "cow") -> str:
        """A COW device of a volume."""
        path = self.directory / name
        header = Header(True, 32)
        sidecar = Sidecar(volume, OTHER, "s1", MIB, 1)
        path.write_bytes((header.to_bytes() + sidecar.to_bytes(32)).ljust(MIB, b"\0"))
        return str(path)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["/dev/null", "/etc/passwd", "/", "/\ud800", "/\0", "0" * 16, "f" * 16, "F" * 16, "1" * 17]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = ("device", "key", "victim", "abort", "stay", "no_reserve", "deadline")


@INSIDE
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode() + b"\n"))
def test_what_is_no_request_is_an_error(desk: Desk, data: bytes) -> None:
    """One line of JSON comes back, and the next is served."""
    assert "error" in json.loads(desk.raw(data))
    desk.well()


@INSIDE
@given(verb=st.sampled_from(VERBS), fields=st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)))
def test_any_fields_of_any_verb_reach_no_device(desk: Desk, verb: str, fields: dict[str, Any]) -> None:
    """Wrong types, other paths, keys that are none: an answer, and nothing but ping and disarm has a result."""
    answer = json.loads(desk.raw(json.dumps({**fields, "verb": verb}).encode() + b"\n"))
    assert ("result" in answer) == (verb in ("ping", "disarm")), answer
    assert answer.get("kind", "") not in ("AssertionError", "MemoryError")
    assert desk.reached == []


def test_it_reaches_the_origin_and_this_volumes_devices_only(desk: Desk) -> None:
    """By what lies on them, not by their names: another volume's, a file's, a link to one are refused."""
    link = desk.directory / "link"
    link.symlink_to("/etc/passwd")
    mine, theirs = desk.cow(UUID), desk.cow(OTHER, "theirs")
    for path in (theirs, "/etc/passwd", str(link), "/dev/zero", str(desk.directory), f"{desk.directory}/no"):
        for verb in ("register", "preempt", "unregister", "try"):
            with pytest.raises(CsnapError):
                Helper(desk.path, 20).ask(verb, device=path, key="1" * 16, victim="2" * 16)
    assert desk.reached == []
    for path in (str(desk.origin), mine):
        with pytest.raises(CsnapError, match="reached"):
            Helper(desk.path, 20).ask("register", device=path, key="1" * 16)
    assert desk.reached == [str(desk.origin), mine]


@pytest.mark.parametrize("line", [b"[" * 60000 + b"\n", b'{"verb":' * 8000 + b"\n", b"x" * 70000, b'{"verb":"ping"}'])
def test_deep_long_and_unfinished_lines_are_errors(desk: Desk, line: bytes) -> None:
    """Recursion, 64 KiB, the end of the connection before the end of the line."""
    answer = desk.raw(line)
    assert not answer or "expected one line of JSON" in json.loads(answer)["error"]
    desk.well()


def test_half_open_clients_are_ended_and_leave_their_place(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen fill every place; when their patience is over a newcomer is served."""
    monkeypatch.setattr(server, "PATIENCE", 0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MOST):
            stack.enter_context(desk.connect()).sendall(b'{"ve')
        wait_for(lambda: b'"pid"' in desk.raw(b'{"verb":"ping"}\n'), "a place is free")


def test_regression_a_client_that_drips_does_not_keep_its_place(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience was counted from byte to byte: sixteen clients that send one now and then kept the watchdog unfed."""
    monkeypatch.setattr(server, "PATIENCE", 0.3)
    stop = threading.Event()
    with desk.connect() as sock, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(1000):
            sock.sendall(b" ")
            stop.wait(0.02)
    desk.well()


def test_a_client_that_takes_no_answer_or_leaves_harms_nobody(desk: Desk) -> None:
    """Closed before, in and behind the request."""
    for line in (b"", b'{"verb"', b'{"verb":"ping"}\n', b"garbage\n"):
        for _ in range(CONNECTIONS_MOST):
            with desk.connect() as sock, contextlib.suppress(BrokenPipeError):
                sock.sendall(line)
    wait_for(lambda: b'"pid"' in desk.raw(b'{"verb":"ping"}\n'), "it is served")


@pytest.mark.skipif(os.getuid() != 0, reason="needs other users")
def test_a_stranger_is_turned_away_whatever_it_asks(desk: Desk) -> None:
    """With the socket's mode loosened by accident: by the kernel's word, before a byte is read."""
    for parent in Path(desk.path).parents:
        if parent not in (Path("/"), Path("/tmp")) and parent.stat().st_uid == 0:
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o011)
    Path(desk.path).chmod(0o666)
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "for line in sys.argv[2:]:\n"
        "    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        "    try: s.sendall(line.encode() + b'\\n')\n"
        "    except BrokenPipeError: pass\n"
        "    try: print(s.recv(1000).decode().strip())\n"
        "    except ConnectionResetError: print('may not ask')\n"
    )
    lines = [json.dumps({"verb": verb, "device": str(desk.origin), "key": "1" * 16}) for verb in VERBS]
    said = subprocess.run(
        [sys.executable, "-c", program, desk.path, *lines], capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    assert len(said) == len(VERBS) and all("may not ask" in line for line in said)
    assert desk.reached == []
