"""The admin socket of a daemon under clients that mean no good: bytes, JSON, slowness, strangers."""

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

from snapd import trace
from snapd.cli.client import ask
from snapd.cluster.cluster import Cluster
from snapd.config import VolumeConfig
from snapd.daemon import clients
from snapd.daemon.admin import AdminServer, Command
from snapd.daemon.confirming import confirm
from snapd.daemon.snapshots import SnapshotCommands
from snapd.daemon.tracing import Tracing
from snapd.errors import Refused
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ACTIVE
from snapd.messages import Hello
from snapd.units import KIB, SECOND
from tests.support import examples as _examples  # noqa: F401
from tests.support.etcd_server import wait_for
from tests.support.lock_rig import UUID
from tests.support.looped import Looped

VERBS = ("status", "locks", "trace", "snapshot-create", "snapshot-delete", "fencing", "fence-confirm")
INSIDE = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class PlayedMember:
    """An active member that refuses whatever it is asked for."""

    state = ACTIVE

    def confirm_fenced(self, node: str, done: Any) -> None:
        node.encode()
        done(None)


class PlayedCluster:
    """Nothing is ever taken: reserving is the last that is reached."""

    def reserve(self, name: str, identity: str, done: Any) -> None:
        done(Refused(f"{name}: not in this test"))

    def delete(self, name: str, done: Any) -> None:
        self.reserve(name, "", done)


class Desk:
    """The real commands of a daemon, as far as they read a request, over a member that is played."""

    def __init__(self, looped: Looped, path: str) -> None:
        self.looped, self.path = looped, path
        self.strangers: list[dict[str, object]] = []
        volume = VolumeConfig("vol", UUID, "/dev/null", 16 * KIB, 0, "clusterized_persistent", True)
        member, cluster = cast(Member, PlayedMember()), cast(Cluster, PlayedCluster())
        self.logged: list[str] = []
        commands = SnapshotCommands(
            looped.loop,
            lambda priority, event, fields: self.logged.append(f"{event} {fields}"),
            volume,
            Hello(1, 1 << 20, 512, "wwn"),
            member,
            cluster,
        )
        tracing = Tracing(looped.loop, "host-a", "vol")
        tracing.attach(memoryview(bytearray(trace.PAGE_BYTES)).cast("Q"), lambda message: None)
        self.commands: dict[str, Command] = {
            "status": lambda request, reply: reply.result({}),
            "locks": lambda request, reply: reply.result([]),
            "trace": tracing.command,
            "snapshot-create": commands.create,
            "snapshot-delete": commands.delete,
            "fencing": lambda request, reply: reply.result({}),
            "fence-confirm": lambda request, reply: confirm(member, looped.loop, request, reply),
        }
        self.server = looped.call(lambda: AdminServer(looped.loop, path, self.commands, self.strangers.append))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(self.path)
        return sock

    def raw(self, data: bytes, end: bool = True) -> bytes:
        """Send bytes and nothing more; return all that comes back."""
        with self.connect() as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            try:
                return b"".join(iter(lambda: sock.recv(65536), b""))
            except ConnectionResetError:
                return b""

    def answers(self, data: bytes) -> list[dict[str, Any]]:
        """The lines of the reply, each a JSON object with one known word in it."""
        lines = [json.loads(line) for line in self.raw(data).splitlines()]
        assert all(len(line) == 1 and set(line) <= {"progress", "result", "error"} for line in lines), lines
        assert all("progress" in line for line in lines[:-1])
        return lines

    def well(self) -> None:
        """The next client is served."""
        assert ask(self.path, {"command": "status"}) == {}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Looped() as looped:
        made = Desk(looped, str(tmp_path / "admin.sock"))
        yield made
        looped.call(made.server.close)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["/dev/null", "/", "/\ud800", "/\0", "/etc/passwd", "s1", "\ud800", "../x", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("name", "cow", "writable", "force", "node", "value", "after", "threshold_ns", "command "), JSON
    ),
)


@INSIDE
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_answered_with_an_error_or_not_at_all(desk: Desk, data: bytes) -> None:
    """Without a line's end there is no request."""
    lines = desk.answers(data)
    assert ("error" in lines[-1]) if b"\n" in data else not lines
    desk.well()


@INSIDE
@given(verb=st.sampled_from(VERBS), fields=FIELDS)
def test_any_fields_of_any_verb_are_answered(desk: Desk, verb: str, fields: dict[str, Any]) -> None:
    """Wrong types, impossible paths, half surrogates: one answer each, and the daemon goes on."""
    lines = desk.answers(json.dumps({**fields, "command": verb}).encode() + b"\n")
    assert lines and set(lines[-1]) <= {"result", "error"}
    desk.well()


@INSIDE
@given(value=JSON)
def test_what_is_no_request_is_an_error(desk: Desk, value: Any) -> None:
    """Any JSON value that is not an object with a known command."""
    (line,) = desk.answers(json.dumps(value).encode() + b"\n")
    assert "expected a JSON object with a known command" in line["error"]


@pytest.mark.parametrize(
    "line",
    [b"[" * 60000, b'{"command":' * 5000, b'{"command":"status","x":' + b"[" * 60000, b'{"command":"status","x":'
     + b"9" * 60000 + b"}", b'{"command":"' + b"x" * 60000 + b'"}', b"\0" * 60000, b"\xff\xfe" * 30000],
    ids=["lists", "objects", "lists-inside", "digits", "name", "zeros", "utf-16"],
)  # fmt: skip
def test_deep_and_long_json_is_an_error(desk: Desk, line: bytes) -> None:
    """Within the length that is read at all: recursion, huge numbers and names end in one line."""
    (answer,) = desk.answers(line + b"\n")
    assert "error" in answer and len(answer["error"]) < 500
    desk.well()


@pytest.mark.parametrize("tail", [b"", b"\n"], ids=["endless", "line"])
def test_a_huge_line_is_cut_off(desk: Desk, tail: bytes) -> None:
    """A megabyte before the line's end: dropped without an answer, and nothing of it is kept."""
    assert desk.raw(b"x" * (1 << 20) + tail, end=False) == b""
    desk.well()
    wait_for(lambda: not desk.server._clients, "the client is dropped")


def test_a_request_of_one_byte_at_a_time_is_answered(desk: Desk) -> None:
    """However it is cut."""
    with desk.connect() as sock:
        for byte in b'{"command":"locks"}\n':
            sock.sendall(bytes([byte]))
        assert sock.recv(100) == b'{"result":[]}\n'


def test_a_request_that_drips_is_not_waited_for_longer_than_one_that_is_silent(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit runs from the connection on: a byte now and then does not renew it."""
    monkeypatch.setattr(clients, "REQUEST_LIMIT", SECOND // 4)
    with desk.connect() as sock:
        end = threading.Event()
        threading.Timer(10, end.set).start()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while not end.is_set():
                sock.sendall(b" ")
                end.wait(0.01)
        end.set()


def test_half_open_clients_cost_nobody_anything(desk: Desk) -> None:
    """A hundred clients that send half a request and stay: a newcomer is served, thirty-two at most are kept."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(desk.connect())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b'{"command":"sta')
            assert len(desk.server._clients) <= clients.CLIENTS_MOST
        desk.well()
    wait_for(lambda: not desk.server._clients, "all are gone")


def test_a_client_that_talks_on_is_not_heard(desk: Desk) -> None:
    """A second request behind the first is not answered; megabytes behind it hold nobody up."""
    assert desk.raw(b'{"command":"locks"}\n{"command":"status"}\n') == b'{"result":[]}\n'
    desk.raw(b'{"command":"locks"}\n' + b"x" * (1 << 20))
    desk.well()


def test_clients_that_leave_at_every_moment_leave_nothing_behind(desk: Desk) -> None:
    """Before, in the midst of and behind the request, closed or reset."""
    for line in (b"", b'{"comm', b'{"command":"status"}\n', b'{"command":"snapshot-create","name":"a","cow":"/"}\n'):
        for _ in range(20):
            with desk.connect() as sock, contextlib.suppress(BrokenPipeError):
                sock.sendall(line)
    desk.well()
    wait_for(lambda: not desk.server._clients, "all are gone")


def test_regression_a_stranger_that_has_gone_before_the_refusal_ends_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal went to a socket that nobody read any more, and the broken pipe ended the daemon."""
    monkeypatch.setattr("snapd.daemon.admin.may_ask", lambda *who: False)
    entered, go_on = threading.Event(), threading.Event()
    desk.looped.loop.call_soon_threadsafe(lambda: (entered.set(), go_on.wait(20)))  # the loop is busy meanwhile
    assert entered.wait(20)
    for _ in range(3):
        desk.connect().close()
    go_on.set()
    wait_for(lambda: len(desk.strangers) == 3, "all three were refused")
    monkeypatch.undo()
    desk.well()


@pytest.mark.skipif(os.getuid() != 0, reason="needs other users")
@pytest.mark.parametrize("loosened", [False, True], ids=["as-made", "mode-loosened"])
def test_a_stranger_is_turned_away_whatever_it_asks(desk: Desk, loosened: bool) -> None:
    """By the file's mode; and with that loosened by accident, by the kernel's word: no verb is reached."""
    for parent in Path(desk.path).parents:
        if parent not in (Path("/"), Path("/tmp")) and parent.stat().st_uid == 0:
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o011)
    if loosened:
        Path(desk.path).chmod(0o666)
    reached: list[str] = []
    for verb in VERBS:
        desk.commands[verb] = lambda request, reply: reached.append(request["command"])
    program = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "for line in sys.argv[2:]:\n"
        "    s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        "    try: s.connect(sys.argv[1])\n"
        "    except PermissionError: print('closed door'); continue\n"
        "    try: s.sendall(line.encode() + b'\\n')\n"
        "    except BrokenPipeError: pass\n"
        "    try: print(s.recv(1000).decode().strip())\n"
        "    except ConnectionResetError: print('reset')\n"
    )
    lines = [json.dumps({"command": verb, "node": "x", "name": "y", "cow": "/dev/null"}) for verb in VERBS]
    said = subprocess.run(
        [sys.executable, "-c", program, desk.path, *lines, "garbage"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.splitlines()  # fmt: skip
    if loosened:
        assert len(said) == len(lines) + 1 and all("not allowed" in line or line == "reset" for line in said)
        assert len(desk.strangers) == len(said) and {fields["uid"] for fields in desk.strangers} == {12345}
    else:
        assert said == ["closed door"] * (len(lines) + 1)
    assert reached == []
