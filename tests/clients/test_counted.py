"""The counters page of a real worker, as the endpoint shows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.registry import CollectorRegistry

from snapd.daemon.metrics import CsnapCollector, Observations, Sample
from snapd.messages import Overflow
from snapd.nbd import wire
from snapd.units import KIB, MIB
from tests.support.nbd_client import NbdClient
from tests.support.worker_process import WorkerProcess, make_cow, wait_until

CHUNK = 16 * KIB
SIZE = 8 * MIB


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    path.write_bytes(b"o" * SIZE)
    return path


def endpoint(worker: WorkerProcess) -> Callable[..., float]:
    """Return what looks up a sample by its name and labels, as a scrape does."""
    registry = CollectorRegistry()
    CsnapCollector(registry, Observations(), worker.words, lambda: Sample(now=0, node="host-a", fencing="unsafe"))

    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(name, labels)
        assert found is not None, f"no {name}{labels}"
        return found

    return value


def test_operations_on_origin_and_cow_device_are_told_apart(tmp_path: Path, origin: Path) -> None:
    """A write that copies a chunk out: read and written on the origin; written and flushed on the COW device."""
    with WorkerProcess(tmp_path, origin, CHUNK) as worker, NbdClient(worker.socket) as client:
        value = endpoint(worker)

        def backend(device: str, op: str) -> float:
            return value("csnap_backend_io_seconds_count", backend=device, op=op)

        for number in range(10):
            client.read(number * 4096, 4096)
        wait_until(lambda: backend("origin", "read") == 10)
        assert value("csnap_backend_io_seconds_sum", backend="origin", op="read") > 0
        table = {"mode": "CR", "resource": "table", "source": "cached", "result": "granted"}
        wait_until(lambda: value("csnap_lock_acquisitions_total", **table) >= 9)  # told at the tick
        assert backend("cow", "write") == backend("cow", "read") == 0
        worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 16 * MIB))
        assert not client.answer(client.send(wire.CMD_WRITE, 0, data=b"n" * 4096)).error
        assert not client.answer(client.send(wire.CMD_FLUSH, 0, 0)).error
        assert (backend("origin", "read"), backend("origin", "write"), backend("origin", "flush")) == (11, 1, 1)
        assert backend("cow", "read") >= 1  # header
        assert backend("cow", "write") >= 2  # chunk, entry
        assert backend("cow", "flush") >= 1


def test_a_corrupt_store_shows_what_and_why(tmp_path: Path, origin: Path) -> None:
    """Another host's entry points behind the device: the snapshot is given up; errors of its reads are EIO."""
    with WorkerProcess(tmp_path, origin, CHUNK) as worker, NbdClient(worker.socket) as client:
        value = endpoint(worker)
        spec = make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 16 * MIB)
        worker.take(spec)
        assert not client.answer(client.send(wire.CMD_WRITE, 0, data=b"n" * 4096)).error
        with open(spec.path, "r+b") as file:
            file.seek(CHUNK + 16)
            file.write((1).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        worker.locks.revision += 1
        worker.locks.counters[spec.store] = (worker.locks.revision, 2)
        assert not client.answer(client.send(wire.CMD_WRITE, 4 * MIB, data=b"n" * 4096)).error  # a region of its own
        worker.received(Overflow)
        assert value("csnap_metadata_corruption_total", what="entry_out_of_range") == 1
        assert value("csnap_snapshot_invalidations_total", reason="corrupt") == 1
        with NbdClient(worker.socket, "snapshot/s1") as reader:
            assert reader.answer(reader.send(wire.CMD_READ, 0, 4096)).error == 5
        wait_until(lambda: value("csnap_io_errors_total", device="snapshot", op="read", errno="EIO") == 1)


def test_a_full_cow_device_and_a_malformed_request(tmp_path: Path, origin: Path) -> None:
    """Lost as full; a write beyond the end is ENOSPC, an unaligned read EINVAL."""
    with WorkerProcess(tmp_path, origin, CHUNK) as worker, NbdClient(worker.socket) as client:
        value = endpoint(worker)
        worker.take(make_cow(tmp_path / "cow", "s1", SIZE, CHUNK, 4 * CHUNK))
        assert not client.answer(client.send(wire.CMD_WRITE, 0, data=b"n" * 8 * CHUNK)).error
        assert value("csnap_snapshot_invalidations_total", reason="full") == 1
        assert client.answer(client.send(wire.CMD_WRITE, SIZE, data=b"n" * 4096)).error == 28
        assert client.answer(client.send(wire.CMD_READ, 1, 4096)).error == 22
        assert value("csnap_io_errors_total", device="origin", op="write", errno="ENOSPC") == 1
        assert value("csnap_io_errors_total", device="origin", op="read", errno="EINVAL") == 1
