"""A worker that stops and hands its clients over, and the next one, as real processes; the lockspace is played."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapd import counters
from snapd.messages import HandedOver, Notice, Stopped
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

SIZE = 8 * MIB
CHUNK = 16 * KIB


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    path.write_bytes(b"o" * SIZE)
    return path


@pytest.fixture
def worker(tmp_path: Path, origin: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path, origin) as made:
        yield made


def successor(worker: WorkerProcess, directory: Path, *, ready: bool = True) -> WorkerProcess:
    """Stop the first; the next gets what it left, and the table as it is."""
    assert worker.stop(hand_over=True) == 0
    worker.wait(lambda: worker.closed)
    assert isinstance(worker.messages[-1], Stopped)
    assert worker.received(HandedOver).count == len(worker.handed)
    taken, worker.handed = worker.handed, []
    worker.locks.crash("host-a")
    return WorkerProcess(directory, directory / "origin", locks=worker.locks, ready=ready, taken=taken)


def test_clients_go_on_and_newcomers_wait(worker: WorkerProcess, tmp_path: Path) -> None:
    """Two clients and their exports; one that connects while no worker runs is served by the next one."""
    worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 8 * MIB))
    with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as reader:
        assert client.write(0, b"1" * 512) == 0
        inode = worker.socket.stat().st_ino
        with successor(worker, tmp_path) as second:
            assert second.received(Notice).event == "taken_over"
            assert second.socket.stat().st_ino == inode
            assert client.write(512, b"2" * 512) == 0
            assert client.read(0, 1024) == b"1" * 512 + b"2" * 512
            assert reader.read(0, 1024) == b"o" * 1024
            with NbdClient(second.socket) as newcomer:
                assert newcomer.read(0, 512) == b"1" * 512


def test_a_write_that_waits_for_a_lock_waits_in_the_next_worker(worker: WorkerProcess, tmp_path: Path) -> None:
    """The region is never granted: the first worker does not fail it, and stops soon; the next one does it."""
    worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 8 * MIB))
    with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as reader:
        worker.silent = True
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 3 * CHUNK)
        wait_until(lambda: worker.words[counters.INFLIGHT] == 1)
        begun = time.monotonic()
        with successor(worker, tmp_path):
            assert client.answer(number).error == 0
            assert reader.read(0, 4 * CHUNK) == b"o" * 4 * CHUNK
        assert time.monotonic() - begun < 6
    assert not worker.overflowed()
    assert (tmp_path / "origin").read_bytes()[: 4 * CHUNK] == b"n" * 3 * CHUNK + b"o" * CHUNK


def test_a_write_that_waits_for_the_lease_waits_in_the_next_worker(worker: WorkerProcess, tmp_path: Path) -> None:
    """Past the deadline: nothing fails, nothing is written, until a worker with a lease has it."""
    with NbdClient(worker.socket) as client:
        worker.lease(False)
        wait_until(lambda: worker.words[counters.STALLED])
        numbers = [client.send(wire.CMD_WRITE, index * MIB, data=bytes([index]) * MIB) for index in range(4)]
        wait_until(lambda: worker.words[counters.INFLIGHT] == 4)
        with successor(worker, tmp_path):
            assert [client.answer(number).error for number in numbers] == [0] * 4
    assert (tmp_path / "origin").read_bytes() == b"".join(bytes([index]) * MIB for index in range(4)) + b"o" * 4 * MIB


def test_a_client_of_a_snapshot_that_is_gone_is_disconnected(worker: WorkerProcess, tmp_path: Path) -> None:
    """Deleted, and another of the same name taken, while no worker ran: its reader must not go on with that."""
    worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 8 * MIB))
    with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as reader:
        assert worker.stop(hand_over=True) == 0
        worker.wait(lambda: worker.closed)
        taken, worker.handed = worker.handed, []
        worker.locks.crash("host-a")
        worker.locks.snapshots.clear()
        worker.locks.take(make_cow(tmp_path / "other", "s1", SIZE, CHUNK, 8 * MIB))
        with WorkerProcess(tmp_path, tmp_path / "origin", locks=worker.locks, taken=taken) as second:
            assert reader.gone()
            assert client.read(0, 512) == b"o" * 512
            events = [message.event for message in second.messages if isinstance(message, Notice)]
            assert events == ["taken_over", "not_taken_over"]


def test_it_is_handed_on_by_a_worker_that_never_served(worker: WorkerProcess, tmp_path: Path) -> None:
    """Restarted again before it had the table: the third one serves them."""
    with NbdClient(worker.socket) as client:
        number = client.send(wire.CMD_READ, 0, 512)
        assert client.answer(number).data == b"o" * 512
        assert worker.stop(hand_over=True) == 0
        worker.wait(lambda: worker.closed)
        taken, worker.handed = worker.handed, []
        worker.locks.crash("host-a")
        with WorkerProcess(tmp_path, tmp_path / "origin", ready=False, taken=taken) as second:
            second.silent = True
            number = client.send(wire.CMD_READ, 512, 512)
            wait_until(lambda: second.messages)
            with successor(second, tmp_path):
                assert client.answer(number).data == b"o" * 512


def test_a_hand_over_that_cannot_be_made_does_not_spoil_the_stop(worker: WorkerProcess) -> None:
    """No descriptor is left for the state: the clients connect again, and everything else ends in order."""
    with NbdClient(worker.socket) as client:
        assert client.read(0, 512) == b"o" * 512
        used = {int(path.name) for path in Path(f"/proc/{worker.process.pid}/fd").iterdir()}
        free = next(number for number in range(len(used) + 1) if number not in used)
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (free, free))
        assert worker.stop(hand_over=True) == 0
        worker.wait(lambda: worker.closed)
        assert isinstance(worker.messages[-1], Stopped) and worker.handed == [] and client.gone()
        assert worker.received(Notice).event == "not_taken_over"


def test_a_killed_worker_hands_nothing_over(worker: WorkerProcess) -> None:
    """No state, no sockets: the connection breaks."""
    with NbdClient(worker.socket) as client:
        worker.process.send_signal(signal.SIGKILL)
        worker.wait(lambda: worker.closed)
        assert worker.handed == [] and client.gone()
