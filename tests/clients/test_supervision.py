"""A real worker process and the one that started it: how it begins, stalls, stops, is fenced, is orphaned."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from errno import EIO, ESHUTDOWN
from pathlib import Path

import pytest

from snapd import counters
from snapd.messages import (
    EX,
    NL,
    UNTRUSTED,
    Counter,
    Done,
    Fatal,
    FencedNotice,
    Grant,
    Hello,
    Notice,
    Revoke,
    Stopped,
    Want,
)
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.support.disks import can_mount, mounted, page_cached_disk
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import COMMAND, WorkerProcess, make_cow, wait_until

CHUNK = 16 * KIB
SIZE = 4 * MIB


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    path.write_bytes(b"o" * SIZE)
    return path


@pytest.fixture
def worker(tmp_path: Path, origin: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path, origin) as made:
        yield made


def snapshot(worker: WorkerProcess, directory: Path, name: str = "s1") -> None:
    worker.take(make_cow(directory / f"cow-{name}", name, SIZE, CHUNK, 8 * MIB))


# ---- the beginning


def test_hello_is_the_first_message(worker: WorkerProcess) -> None:
    """The first message says who it is and what the origin is."""
    hello = worker.messages[0]
    assert isinstance(hello, Hello)
    assert (hello.pid, hello.origin_size, hello.logical_block) == (worker.process.pid, SIZE, 512)


def test_an_origin_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """Fatal says which device and why; the exit code is 1."""
    with WorkerProcess(tmp_path, tmp_path / "absent", ready=False) as worker:
        assert "absent: cannot be opened: No such file" in worker.received(Fatal).reason
        assert worker.process.wait(20) == 1


def test_settings_that_make_no_sense_are_named(tmp_path: Path, origin: Path) -> None:
    """Settings of another version are refused, not guessed at."""
    with WorkerProcess(tmp_path, origin, ready=False, settings=b'{"origin": "x"}') as worker:
        assert "worker settings: fields ['origin']" in worker.received(Fatal).reason
        assert worker.process.wait(20) == 1


def test_a_socket_that_somebody_listens_on_is_refused(tmp_path: Path, origin: Path) -> None:
    """A worker whose socket somebody else serves says so and goes."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(tmp_path / "nbd.sock"))
        other.listen()
        with WorkerProcess(tmp_path, origin, ready=False) as worker:
            assert "somebody listens on it" in worker.received(Fatal).reason


def test_a_dead_socket_file_is_replaced(worker: WorkerProcess, tmp_path: Path, origin: Path) -> None:
    """What a killed worker left behind does not keep its successor from serving."""
    worker.process.kill()
    worker.process.wait()
    assert worker.socket.exists()
    with WorkerProcess(tmp_path, origin) as successor, NbdClient(successor.socket) as client:
        assert client.read(0, 512) == b"o" * 512


def test_no_client_is_let_in_before_the_first_table(tmp_path: Path, origin: Path) -> None:
    """The socket is there, but nobody is greeted before the snapshots are known."""
    with WorkerProcess(tmp_path, origin, ready=False) as worker:
        worker.silent = True
        worker.received(Hello)
        wait_until(worker.socket.exists)
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(os.fspath(worker.socket))
            early.settimeout(0.2)
            with pytest.raises(TimeoutError):
                early.recv(1)
            worker.answer(silent=False)
            early.settimeout(20)
            assert early.recv(8) == b"NBDMAGIC"


def test_the_lock_file_is_held_until_the_worker_is_gone(tmp_path: Path, worker: WorkerProcess) -> None:
    """A successor that takes the lock file knows that no I/O of this worker is left."""
    with open(tmp_path / "lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.process.kill()
        worker.process.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_nothing_inherited_is_passed_on(worker: WorkerProcess) -> None:
    """Every descriptor but the standard ones is close-on-exec: a child of the worker could hold nothing open."""
    for entry in Path(f"/proc/{worker.process.pid}/fdinfo").iterdir():
        if int(entry.name) > 2:
            flags = next(line for line in entry.read_text().splitlines() if line.startswith("flags:"))
            assert int(flags.split()[1], 8) & os.O_CLOEXEC, f"descriptor {entry.name}"


def test_without_privileges_it_works_and_says_what_it_lacks(tmp_path: Path, origin: Path) -> None:
    """No CAP_IPC_LOCK and a small RLIMIT_MEMLOCK: two warnings in Hello, and I/O all the same."""
    weak = ["prlimit", "--memlock=65536:65536"]
    if os.getuid() == 0:
        assert shutil.which("setpriv")
        weak = ["setpriv", "--bounding-set=-all", *weak]
    with WorkerProcess(tmp_path, origin, command=[*weak, *COMMAND]) as worker:
        warnings = worker.received(Hello).warnings
        assert any("RLIMIT_MEMLOCK is 65536" in warning for warning in warnings)
        assert any("PR_SET_IO_FLUSHER" in warning for warning in warnings)
        snapshot(worker, tmp_path)
        with NbdClient(worker.socket) as client:
            assert client.write(0, b"n" * 4 * CHUNK) == 0


def test_memory_is_locked_where_that_is_allowed(worker: WorkerProcess) -> None:
    """With the privilege, pages that were touched cannot be evicted."""
    refused = any("memory not locked" in warning for warning in worker.received(Hello).warnings)
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck:"))
    assert refused or locked > 0


def test_nothing_is_imported_while_it_serves(tmp_path: Path, origin: Path) -> None:
    """In steady state no module is loaded: it would be read from the disk whose I/O may depend on this process."""
    log = tmp_path / "imports"
    program = (
        "import sys, runpy\n"
        f"log = open({str(log)!r}, 'w', buffering=1)\n"
        "sys.addaudithook(lambda event, args: event == 'import' and print(args[0], file=log))\n"
        "runpy.run_module('snapd.worker', run_name='__main__', alter_sys=True)\n"
    )
    with WorkerProcess(tmp_path, origin, command=[sys.executable, "-c", program]) as worker:
        before = log.read_text()
        assert "snapd.worker.main" in before
        snapshot(worker, tmp_path)
        worker.take(make_cow(tmp_path / "w", "w", SIZE, CHUNK, 8 * MIB, writable=True))
        for export in ("origin", "snapshot/w", "snapshot/s1"):
            with NbdClient(worker.socket, export) as client:
                client.read(100 * KIB, 100 * KIB)
                client.write(512, b"n" * 100 * KIB, wire.CMD_FLAG_FUA)
                for kind in (wire.CMD_TRIM, wire.CMD_WRITE_ZEROES):
                    client.do(kind, 0, 2 * MIB)
                client.do(wire.CMD_FLUSH)
                client.do(99)
        worker.lease(False)
        wait_until(lambda: worker.words[counters.STALLED])
        worker.lease(True)
        with NbdClient(worker.socket) as client:
            client.sock.sendall(b"nonsense" * 8)
            assert client.gone()
        worker.drop("s1")
        assert worker.stop() == 0
        assert log.read_text()[len(before) :] == ""


if can_mount():

    def test_a_page_cached_device_is_said(tmp_path: Path) -> None:
        """A file system that refuses O_DIRECT: it works, and Hello, a notice and the counters page say so."""
        with page_cached_disk() as origin, mounted("ramfs") as other, WorkerProcess(tmp_path, origin) as worker:
            assert any("O_DIRECT refused" in warning for warning in worker.received(Hello).warnings)
            worker.take(make_cow(Path(other) / "cow", "s1", SIZE, CHUNK, 8 * MIB))
            assert worker.received(Notice).event == "page_cache_used"
            with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as snapshot:
                assert client.write(0, b"n" * 512, wire.CMD_FLAG_FUA) == 0
                assert snapshot.read(0, 512) == bytes(512)
            assert worker.words[counters.DIRECT] == 0


def test_direct_devices_are_said_to_be(worker: WorkerProcess) -> None:
    """The counters page says that every device is open with O_DIRECT."""
    wait_until(lambda: worker.words[counters.DIRECT] == 1)


# ---- the lease


def test_past_the_deadline_writes_wait_and_go_on_when_it_moves(worker: WorkerProcess, origin: Path) -> None:
    """The control process is stopped: writes stall by themselves, without an error, and go on after revival."""
    worker.lease(False)
    wait_until(lambda: worker.words[counters.STALLED])
    with NbdClient(worker.socket) as client:
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 512)
        assert client.silent()
        assert origin.read_bytes()[:512] == b"o" * 512
        worker.lease(True)
        assert client.answer(number).error == 0
    assert origin.read_bytes()[:512] == b"n" * 512


def test_past_the_deadline_a_snapshot_read_is_not_answered(worker: WorkerProcess, tmp_path: Path) -> None:
    """Reservations do not stop a fenced host's reads, so a late one waits too; afterwards it has the old data."""
    snapshot(worker, tmp_path)
    with NbdClient(worker.socket, "snapshot/s1") as client:
        assert client.read(0, CHUNK) == b"o" * CHUNK
        worker.lease(False)
        wait_until(lambda: worker.words[counters.STALLED])
        number = client.send(wire.CMD_READ, 0, CHUNK)
        assert client.silent()
        worker.lease(True)
        assert client.answer(number).data == b"o" * CHUNK


def test_a_worker_that_was_stopped_past_its_deadline_writes_nothing_when_it_wakes(
    worker: WorkerProcess, origin: Path
) -> None:
    """SIGSTOP across the deadline, with a write in the socket: it looks at the deadline first when it goes on."""
    with NbdClient(worker.socket) as client:
        worker.process.send_signal(signal.SIGSTOP)
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 512)
        worker.lease(False)
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: worker.words[counters.STALLED])
        assert client.silent()
        assert origin.read_bytes()[:512] == b"o" * 512
        worker.lease(True)
        assert client.answer(number).error == 0


# ---- the end


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_do_not_end_it(worker: WorkerProcess, name: signal.Signals) -> None:
    """systemd signals the whole unit; only the control process decides when the worker stops."""
    worker.process.send_signal(name)
    with NbdClient(worker.socket) as client:
        assert client.read(0, 512) == b"o" * 512


def test_it_exits_when_the_channel_closes(worker: WorkerProcess) -> None:
    """The control process died: the worker goes too, with a code that is not success; clients are disconnected."""
    with NbdClient(worker.socket) as client:
        worker.hang_up()
        assert worker.process.wait(20) == 1
        assert client.gone()


def test_stop_answers_what_was_received_and_does_not_wait_for_clients(worker: WorkerProcess, origin: Path) -> None:
    """Writes that the worker has got are done and answered; then their client is disconnected, and Stopped is sent."""
    with NbdClient(worker.socket) as client, NbdClient(worker.socket):
        worker.lease(False)
        wait_until(lambda: worker.words[counters.STALLED])
        numbers = [client.send(wire.CMD_WRITE, index * 512, data=b"n" * 512) for index in range(20)]
        wait_until(lambda: worker.words[counters.INFLIGHT] == 20)
        worker.lease(True)
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 3
        assert [client.answer(number).error for number in numbers] == [0] * 20
        assert client.gone()
    assert isinstance(worker.messages[-1], Stopped)
    assert origin.read_bytes()[: 20 * 512] == b"n" * 20 * 512


def test_stopped_tells_what_was_committed(worker: WorkerProcess, tmp_path: Path) -> None:
    """The last message carries the counts of the stores whose tail is held: nobody else could tell."""
    snapshot(worker, tmp_path)
    with NbdClient(worker.socket) as client:
        assert client.write(0, b"n" * 3 * CHUNK) == 0
    assert worker.stop() == 0
    assert worker.received(Stopped).committed == ((worker.locks.snapshots[0].store, 3),)


def test_stop_without_a_lease_fails_what_waits(worker: WorkerProcess, origin: Path) -> None:
    """etcd is gone and the unit stops: what cannot be done is answered "shutting down", in time, and exit is clean."""
    with NbdClient(worker.socket) as client:
        worker.lease(False)
        wait_until(lambda: worker.words[counters.STALLED])
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 512)
        wait_until(lambda: worker.words[counters.INFLIGHT] == 1)
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 8
        assert client.answer(number).error == ESHUTDOWN
    assert origin.read_bytes()[:512] == b"o" * 512


def test_stop_with_a_lockspace_that_does_not_answer(worker: WorkerProcess, tmp_path: Path) -> None:
    """A write waits for a region that is never granted: it fails, the snapshot is not given up for it."""
    snapshot(worker, tmp_path)
    worker.silent = True
    with NbdClient(worker.socket) as client:
        number = client.send(wire.CMD_WRITE, 0, data=b"n" * 512)
        wait_until(lambda: worker.words[counters.INFLIGHT] == 1)
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 9
        assert client.answer(number).error == ESHUTDOWN
    assert not worker.overflowed()


def test_stop_while_a_copy_waits_for_the_tail(worker: WorkerProcess, tmp_path: Path) -> None:
    """The copy is made but its exception cannot be committed: the write fails, the origin is unchanged."""
    snapshot(worker, tmp_path)
    store = worker.locks.snapshots[0].store
    with NbdClient(worker.socket) as client:
        assert client.write(0, b"n" * 512) == 0  # region, tail and extent are cached
        worker.silent = True
        worker.messages.clear()
        worker.send(Revoke(f"tail/{store}", NL))
        released = worker.received(Done)
        assert (released.resource, released.committed) == (f"tail/{store}", ((store, 1),))
        number = client.send(wire.CMD_WRITE, CHUNK, data=b"n" * 512)
        wait_until(lambda: worker.words[counters.INFLIGHT] == 1)
        assert worker.stop() == 0
        assert client.answer(number).error == ESHUTDOWN
    assert (tmp_path / "origin").read_bytes()[CHUNK : CHUNK + 512] == b"o" * 512


def test_stopped_is_not_sent_while_a_stale_tail_is_being_zeroed(worker: WorkerProcess, tmp_path: Path) -> None:
    """The tail is given away with Stopped: a zeroing write that is still queued is dropped first, not left to land."""
    snapshot(worker, tmp_path)
    store = worker.locks.snapshots[0].store
    stale = b"\xaa" * 512
    with open(tmp_path / "cow-s1", "r+b") as cow:
        cow.seek(2 * CHUNK - 512)
        cow.write(stale)
    worker.messages.clear()
    worker.locks.revision += 1
    worker.locks.counters[store] = (worker.locks.revision, UNTRUSTED)
    worker.silent = True
    worker.lease(False)
    wait_until(lambda: worker.words[counters.STALLED])
    told = (Counter(store, worker.locks.revision, UNTRUSTED),)
    worker.send(Grant("region/0", EX, worker.locks.revision, told))
    worker.wait(lambda: Want(f"tail/{store}", EX) in worker.messages)
    worker.send(Grant(f"tail/{store}", EX, worker.locks.revision, told))
    started = time.monotonic()
    assert worker.stop() == 0
    assert 1 < time.monotonic() - started < 9
    assert worker.received(Stopped).committed == ()
    assert (tmp_path / "cow-s1").read_bytes()[2 * CHUNK - 512 : 2 * CHUNK] == stale


def test_a_fenced_worker_fails_everything_once_and_exits_with_4(worker: WorkerProcess, tmp_path: Path) -> None:
    """Waiting for the lease, for a region, for nothing: each request is answered with EIO, exactly once."""
    snapshot(worker, tmp_path)
    with NbdClient(worker.socket) as client, NbdClient(worker.socket, "snapshot/s1") as reader:
        worker.silent = True
        numbers = [client.send(wire.CMD_WRITE, index * CHUNK, data=b"n" * 512) for index in range(8)]
        late = reader.send(wire.CMD_READ, MIB, 512)
        wait_until(lambda: worker.words[counters.INFLIGHT] == 9)
        worker.lease(False)
        worker.send(FencedNotice("recovered by host-b"))
        assert worker.process.wait(20) == 4
        assert [client.answer(number).error for number in numbers] == [EIO] * 8
        assert reader.answer(late).error == EIO
        assert client.gone()
        assert reader.gone()
    assert (tmp_path / "origin").read_bytes() == b"o" * SIZE
    assert not worker.overflowed()


def test_an_exception_of_its_own_is_told(worker: WorkerProcess) -> None:
    """A bug ends the worker with a Fatal that names it, and a traceback on its standard error."""
    worker.send(Grant("region/x", EX, 1))
    assert "ValueError" in worker.received(Fatal).reason
    assert worker.process.wait(20) == 1
    assert "Traceback" in worker.stderr()
