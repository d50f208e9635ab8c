"""What a person sees of names that somebody wrote into etcd, of an admin socket that is not ours, of secrets."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapd.cli import commands, locking, tracetext
from snapd.cli.main import main
from snapd.config import load
from snapd.daemon.log import to_stream
from snapd.daemon.status import View, line
from snapd.doctor.bundle import without_secrets
from snapd.errors import ConfigError
from snapd.printable import printable, printable_value
from tests.unit.test_commands import STATUS
from tests.unit.test_config import GOOD

EVIL = "\x1b]0;owned\x07\x9b2J\x7f\u202e\nhost-z  EX  held"
"""A window's title, a C1 sequence that clears, DEL, text from right to left, and a line of its own."""


def is_harmless(shown: str) -> bool:
    return all(one.isprintable() for one in shown.replace("\n", "")) and "host-z" not in shown.split("\n")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vmstore.toml"
    path.write_text(GOOD.replace("/run/csnap/vmstore", str(tmp_path)))
    return path


@contextmanager
def answering(path: Path, reply: bytes) -> Iterator[None]:
    """Somebody who says this to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                with client:
                    asked = client.recv(65536)
                    if asked == b"end":
                        return
                    client.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.send(b"end")
            thread.join(10)


@given(st.text())
def test_any_text_becomes_printable_once_and_for_all(text: str) -> None:
    """Plain text stays, and what has been made printable is not changed again."""
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert (shown == text) == text.isprintable()


def test_regression_locks_obeyed_names_in_etcd(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    """A hold's key may name any node: its control characters reached the terminal, and its line break made a line."""
    hold = {"resource": "table", "node": EVIL, "mode": "CR", "state": "held", "since_seconds": 1.0, "bytes": None}
    wait = {**hold, "state": "waiting", "position": 1, "waits_for": [EVIL]}
    tail = {**hold, "resource": "tail/x", "snapshot": EVIL}
    with answering(config.parent / "admin.sock", json.dumps({"result": [hold, wait, tail]}).encode() + b"\n"):
        for options in ([], ["--all"]):
            assert main(["locks", str(config), *options]) == 0
            assert is_harmless(capsys.readouterr().out)
        assert main(["locks", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["node"] == EVIL, "programs are told what is there"
    assert is_harmless(locking.text(printable_value([hold, wait, tail])))


@pytest.mark.parametrize("words", [["status"], ["snapshot", "list"]])
def test_regression_status_obeyed_names_in_etcd(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path, words: list[str]
) -> None:
    """A member's, who fences it, a COW device's path, why the host does not serve, a refused configuration."""
    value: dict[str, Any] = copy.deepcopy(STATUS)
    value["members"][0].update(node=EVIL, by=EVIL)
    value["fencing"]["waiting"][0].update(node=EVIL, by=EVIL)
    value["snapshots"][0].update(name=EVIL, cow=EVIL)
    value["member"]["why"] = value["reload"]["error"] = value["warnings"][0] = EVIL
    monkeypatch.setattr(commands, "ask", lambda path, request: value)
    assert main([*words, str(config)]) == 0
    assert is_harmless(capsys.readouterr().out)


def test_regression_a_trace_obeyed_names_in_etcd(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    """Of who had the lock, of a snapshot; in the lines and in the sum."""
    row = {
        "ended": 1.0, "took_ms": 200.0, "op": "write", "export": f"snapshot/{EVIL}", "offset": 0, "length": 1,
        "error": "", "stages_ms": {"tail": 200.0}, "longest": "tail", "region": None, "snapshot": EVIL,
        "waited_for": [EVIL], "ring": "last", "number": 1,
    }  # fmt: skip
    answer = {"incarnation": "x", "heads": {"last": 1}, "now": 1.0, "requests": [row], "under_way": [], "lost": 0}
    with answering(config.parent / "admin.sock", json.dumps({"result": answer}).encode() + b"\n"):
        assert main(["trace", str(config), "--once"]) == 0
    assert is_harmless(capsys.readouterr().out)
    summary = tracetext.Summary(100.0)
    summary.add([row])
    assert is_harmless(summary.text()) and EVIL in next(iter(summary.to_json()["waited_for_ms"]))


def test_regression_errors_and_the_log_obeyed_names_in_etcd(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    """A daemon's error on standard error; an event's fields in the foreground."""
    with answering(config.parent / "admin.sock", json.dumps({"error": EVIL}).encode() + b"\n"):
        assert main(["status", str(config)]) == 1
    stream = StringIO()
    to_stream(stream, "host-a")(3, "fence_failed", {"target": EVIL})
    assert is_harmless(capsys.readouterr().err) and is_harmless(stream.getvalue())
    assert stream.getvalue().count("\n") == 1


def test_regression_a_reason_told_systemd_more_than_the_status(config: Path) -> None:
    """A line break in ``STATUS=`` began another assignment, such as MAINPID=."""
    view = View(load(config), why="etcd: no\nMAINPID=1\x1b[2J")
    assert line(view) == "joining (etcd: no\\nMAINPID=1\\x1b[2J)"


@pytest.mark.parametrize("words", [["status"], ["locks"], ["top", "--once"], ["trace", "--once"], ["reload"]])
@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n", b"[1]\n", b"5\n", b"\xff\n", b"[" * 9999 + b"\n"])
def test_regression_somebody_else_at_the_admin_socket_was_a_traceback(
    capsys: pytest.CaptureFixture[str], config: Path, words: list[str], reply: bytes
) -> None:
    """What answers there is no csnap: one line, with the socket's path."""
    with answering(config.parent / "admin.sock", reply):
        assert main([words[0], str(config), *words[1:]]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no answer of a daemon" in error and "admin.sock" in error


def test_regression_a_refusal_before_the_question_was_no_daemon(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    """The daemon refuses a stranger as soon as it comes, and hangs up: that was exit code 3, ``Broken pipe``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(config.parent / "admin.sock"))
        listener.listen()
        refused = threading.Event()

        class Late(socket.socket):
            def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
                assert refused.wait(10)
                super().sendall(data, flags)

        def refuse() -> None:
            client, _ = listener.accept()
            with client:
                client.send(b'{"error":"not allowed"}\n')
            refused.set()

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("snapd.cli.client.socket.socket", Late)
            assert main(["status", str(config)]) == 1
        thread.join(10)
    assert capsys.readouterr().err == "csnap: not allowed\n"


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
@pytest.mark.parametrize("words", [["version"], ["completion", "bash"]])
def test_regression_output_without_room_was_a_traceback(output: str, words: list[str]) -> None:
    """A full disk is one line and exit code 1; a closed standard output is nobody to tell."""
    program = f"import sys; from snapd.cli.main import main; sys.exit(main({words!r}))"
    redirected = ">&-" if output == "closed" else f"> {output}"
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {redirected}', sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ},
    )
    if output == "closed":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr) == (1, "csnap: standard output: No space left on device\n")


def test_regression_a_password_in_an_endpoint_was_shown(config: Path) -> None:
    """It is refused, and the error, which goes to the journal, says where without saying what."""
    config.write_text(GOOD.replace("https://", "https://root:hunter2@"))
    with pytest.raises(ConfigError, match="endpoints") as caught:
        load(config)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", ['options = "password=hunter2"', 'hosts.host-a = "hunter2"', 'hosts = ["hunter2"]'])
def test_regression_a_secret_in_the_wrong_place_was_shown(config: Path, wrong: str) -> None:
    """[fencing.options] and [fencing.hosts] that are no tables: the error named what stood there."""
    config.write_text(GOOD.partition("[fencing]")[0] + f'[fencing]\nmethod = "agent"\nagent = "/x"\n{wrong}\n')
    with pytest.raises(ConfigError, match="expected a table") as caught:
        load(config)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ['[fencing]\npassword = "hunter2"', '[fencing.option]\np = "hunter2"', '[[fencing]]\np = "hunter2"']
)
def test_regression_a_bundle_had_the_secrets_of_a_refused_file(place: str) -> None:
    """A misspelt section is why the doctor is asked: of such a file only the names go into the bundle."""
    shown = without_secrets(GOOD.partition("[fencing]")[0] + place, refused=True)
    assert "hunter2" not in shown and "fencing" in shown and "chunk_size" in shown
