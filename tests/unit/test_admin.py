"""The admin socket: who may ask, what is answered, and that no client can hold it up."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapd.cli.client import ask
from snapd.daemon import admin, clients
from snapd.daemon.admin import AdminServer, Reply, may_ask
from snapd.errors import CsnapError, NoDaemon, Refused
from snapd.units import SECOND
from tests.support.etcd_server import wait_for
from tests.support.looped import Looped


class Desk:
    """An admin server whose commands the test plays."""

    def __init__(self, looped: Looped, path: str) -> None:
        self.looped = looped
        self.path = path
        self.replies: list[Reply] = []
        self.strangers: list[dict[str, object]] = []
        self.server = looped.call(lambda: AdminServer(looped.loop, path, self._commands(), self.strangers.append))

    def _commands(self) -> dict[str, admin.Command]:
        def refuse(request: dict[str, Any], reply: Reply) -> None:
            raise Refused("not\nnow")

        return {
            "echo": lambda request, reply: reply.result(request.get("value")),
            "later": lambda request, reply: self.replies.append(reply),
            "refuse": refuse,
        }

    def raw(self, data: bytes) -> bytes:
        """Send bytes, return all that comes back."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(self.path)
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Looped() as looped:
        made = Desk(looped, str(tmp_path / "admin.sock"))
        yield made
        looped.call(made.server.close)


def test_a_request_is_answered(desk: Desk) -> None:
    """One line in, one line out, and the connection ends."""
    assert ask(desk.path, {"command": "echo", "value": [1, "zwei"]}) == [1, "zwei"]
    assert desk.raw(b'{"command":"echo","value":3}\n') == b'{"result":3}\n'


def test_a_half_closed_client_is_answered(desk: Desk) -> None:
    """``shutdown`` after the request, as printf | nc does it, is no hanging up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(desk.path)
        sock.sendall(b'{"command":"later"}\n')
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: bool(desk.replies), "the request has arrived")
        desk.looped.call(lambda: desk.replies[0].result("still here"))
        assert sock.recv(100) == b'{"result":"still here"}\n'


def test_the_socket_is_for_user_and_group(desk: Desk) -> None:
    """0660, so others cannot even connect."""
    assert stat.S_IMODE(os.stat(desk.path).st_mode) == 0o660  # noqa: PTH116


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"3", b'{"command":"no"}', b'{"command":[]}', b"{}", b"\xff", b"[" * 60000]
)
def test_what_makes_no_sense_is_an_error(desk: Desk, line: bytes) -> None:
    """One line of JSON with the error; the next client is served as ever."""
    assert b"expected a JSON object" in json.loads(desk.raw(line + b"\n"))["error"].encode()
    assert ask(desk.path, {"command": "echo", "value": 1}) == 1


def test_an_error_is_one_line(desk: Desk) -> None:
    """Whatever the text of the error holds."""
    with pytest.raises(CsnapError, match=r"^not now$"):
        ask(desk.path, {"command": "refuse"})


def test_a_request_without_end_is_cut_off(desk: Desk) -> None:
    """More than 64 KiB without a line's end: the client is dropped, nothing grows."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(desk.path)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                sock.sendall(b"x" * 65536)


def test_a_client_that_never_asks_is_dropped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections end after REQUEST_LIMIT, and never keep others from being served."""
    monkeypatch.setattr(clients, "REQUEST_LIMIT", SECOND // 10)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(20)
        idle.connect(desk.path)
        assert ask(desk.path, {"command": "echo", "value": 2}) == 2
        assert idle.recv(1) == b""


def test_many_idle_clients_make_room(desk: Desk) -> None:
    """Ten more than are served at a time: a new one is answered, the oldest idle ones are gone."""
    idle = []
    for _ in range(clients.CLIENTS_MOST + 10):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(desk.path)
        idle.append(sock)
    assert ask(desk.path, {"command": "echo", "value": 2}) == 2
    assert idle[0].recv(1) == b""
    for sock in idle:
        sock.close()


def test_a_client_that_does_not_read_is_dropped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply nobody takes ends after REPLY_LIMIT."""
    monkeypatch.setattr(clients, "REPLY_LIMIT", SECOND // 5)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.settimeout(20)
        deaf.connect(desk.path)
        deaf.sendall(json.dumps({"command": "later"}).encode() + b"\n")
        wait_for(lambda: bool(desk.replies), "the request has arrived")
        desk.looped.call(lambda: desk.replies[0].result("x" * (8 << 20)))
        wait_for(lambda: not desk.server._clients, "the client is dropped")
    assert ask(desk.path, {"command": "echo", "value": 2}) == 2


def test_progress_tells_a_busy_daemon_from_a_dead_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long work says something at once and then every BEAT; the last line is the result."""
    monkeypatch.setattr(admin, "BEAT", SECOND // 100)
    lines: list[str] = []

    def heard(text: str) -> None:
        lines.append(text)
        if len(lines) == 5:
            desk.looped.call(lambda: desk.replies[0].result("done"))

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(desk.path)
        sock.sendall(b'{"command":"later"}\n')
        wait_for(lambda: bool(desk.replies), "the request has arrived")
        desk.looped.call(lambda: desk.replies[0].progress("waiting for every host"))
        with sock.makefile() as file:
            for line in file:
                value = json.loads(line)
                if "result" in value:
                    break
                heard(value["progress"])
    assert set(lines) == {"waiting for every host"}


def test_the_operation_outlives_its_client(desk: Desk) -> None:
    """A client that hangs up changes nothing: the reply goes nowhere, without an error."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(desk.path)
        sock.sendall(b'{"command":"later"}\n')
        wait_for(lambda: bool(desk.replies), "the request has arrived")
    wait_for(lambda: not desk.server._clients, "the client has gone")
    desk.looped.call(lambda: desk.replies[0].result("too late"))


def test_who_may_ask() -> None:
    """Root, the daemon's user, members of the socket's group by primary or supplementary membership; nobody else."""
    assert may_ask(0, 0, (), own=900, group=901)
    assert may_ask(900, 5, (), own=900, group=901)
    assert may_ask(1000, 901, (), own=900, group=901)
    assert may_ask(1000, 1000, (4, 901), own=900, group=901)
    assert not may_ask(1000, 1000, (4, 902), own=900, group=901)


@pytest.mark.skipif(os.getuid() != 0, reason="needs other users")
def test_a_peer_is_judged_by_the_kernels_word(desk: Desk) -> None:
    """With the file's mode loosened by accident, a stranger is refused and a supplementary member served."""
    os.chmod(desk.path, 0o666)  # noqa: PTH101
    for directory in Path(desk.path).parents:
        if directory != Path("/") and directory.stat().st_uid == 0 and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    desk.looped.call(lambda: setattr(desk.server, "_group", 4242))
    program = (
        "import os, socket, sys\n"
        "os.setgroups([int(g) for g in sys.argv[2:]]); os.setgid(12345); os.setuid(12345)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        'try: s.sendall(b\'{"command":"echo","value":1}\\n\')\n'
        "except BrokenPipeError: pass\n"
        "print(s.recv(1000).decode())\n"
    )

    def asked(*groups: str) -> str:
        command = [sys.executable, "-c", program, desk.path, *groups]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "not allowed" in asked("7")
    assert desk.strangers[0]["uid"] == 12345
    assert '{"result":1}' in asked("7", "4242")


def test_no_daemon(tmp_path: Path) -> None:
    """No socket, a dead one, and one that accepts and says nothing: each is NoDaemon."""
    path = str(tmp_path / "admin.sock")
    with pytest.raises(NoDaemon, match="nobody listens"):
        ask(path, {"command": "status"})
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        with pytest.raises(NoDaemon, match="nobody listens"):
            ask(path, {"command": "status"})


def test_a_silent_daemon_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process accepts nothing and says nothing: NoDaemon after the limit."""
    monkeypatch.setattr("snapd.cli.client.FIRST_LIMIT", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "admin.sock"))
        silent.listen()
        with pytest.raises(NoDaemon, match=r"silence for 0\.05 s"):
            ask(str(tmp_path / "admin.sock"), {"command": "status"})
