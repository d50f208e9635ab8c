"""A worker whose host was fenced at the device: its writes come back with EBADE."""

from __future__ import annotations

import signal
import sys
from errno import EIO
from pathlib import Path

import pytest

from snapd import config as configuration
from snapd.daemon.serve import Daemon
from snapd.errors import CsnapError, Fenced
from snapd.messages import Fatal, Stop, Stopped
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import WorkerProcess, make_cow
from tests.unit.test_config import GOOD

CHUNK, SIZE = 16 * KIB, 4 * MIB


@pytest.mark.parametrize("copies", [False, True], ids=["a client's write", "a copy-out"])
def test_a_fenced_worker_fails_everything_and_ends_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    """One refused write, be it to the origin or to a COW device: every request fails, control is told why, exit 4.
    No snapshot is given up for it: the hosts that fenced this one go on with it."""
    refuse = tmp_path / "refuse"
    monkeypatch.setenv("REFUSE", str(refuse))
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * SIZE)
    command = (sys.executable, "-m", "tests.support.refusing_worker")
    with WorkerProcess(tmp_path, origin, CHUNK, command=command) as worker:
        if copies:
            worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, SIZE))
        with NbdClient(worker.socket) as client:
            assert client.answer(client.send(wire.CMD_WRITE, 0, data=b"n" * 512)).error == 0
            refuse.touch()
            numbers = [client.send(wire.CMD_WRITE, index * CHUNK, data=b"n" * 512) for index in range(1, 5)]
            assert [client.answer(number).error for number in numbers] == [EIO] * 4
            assert client.gone()
        assert worker.process.wait(20) == 4
        assert "EBADE" in worker.received(Fatal).reason
        assert not worker.overflowed()


@pytest.mark.parametrize("hand_over", [True, False])
def test_a_worker_that_is_fenced_while_it_stops_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hand_over: bool
) -> None:
    """The last write before the end is refused: this is no stop in order. Nothing is handed over, exit 4."""
    refuse = tmp_path / "refuse"
    monkeypatch.setenv("REFUSE", str(refuse))
    origin = tmp_path / "origin"
    origin.write_bytes(b"o" * SIZE)
    command = (sys.executable, "-m", "tests.support.refusing_worker")
    with WorkerProcess(tmp_path, origin, CHUNK, command=command) as worker, NbdClient(worker.socket) as client:
        worker.process.send_signal(signal.SIGSTOP)  # so that it finds both in one turn of its loop
        refuse.touch()
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 512)
        worker.send(Stop(hand_over))
        worker.process.send_signal(signal.SIGCONT)
        assert client.answer(number).error == EIO
        assert worker.process.wait(20) == 4
        worker.wait(lambda: worker.closed)
        assert not worker.handed and not any(isinstance(message, Stopped) for message in worker.messages)


@pytest.mark.parametrize(("code", "kind"), [(4, Fenced), (1, CsnapError)])
def test_the_daemon_ends_as_fenced(tmp_path: Path, code: int, kind: type[CsnapError]) -> None:
    """A worker that ends with 4 says that this host was fenced: so does the daemon, which ends with 4 itself; what its
    member record has is for the others to recover. Any other end is a failure."""
    path = tmp_path / "vmstore.toml"
    path.write_text(GOOD.replace("/run/csnap/vmstore", str(tmp_path)))
    daemon = Daemon(configuration.load(path), lambda priority, event, fields: None)
    try:
        daemon._receive(Fatal("refused with EBADE"))
        daemon._worker_ended(code)
        with pytest.raises(kind, match="refused with EBADE") as raised:
            daemon.run()
        assert type(raised.value) is kind
    finally:
        daemon._loop.close()
