"""Power fails under a whole volume: what was not flushed is kept, lost or torn, and the snapshot is as it was taken.

This is what the order of a copy-out is for: copies flushed before their entries, entries durable before the origin's
writes, the next area zeroed before one fills.
"""

from __future__ import annotations

import random

import pytest

from snapd.blockdev import memory
from snapd.volume.request import FLUSH, WRITE, ZERO
from tests.support import worker_rig
from tests.support.worker_rig import CHUNK, Host, Rig

CHUNKS = 600  # more than one area's entries: 256 of 4 KiB


class Device(memory.MemoryDevice):
    """One medium that may be opened again and again."""

    def open(self) -> Device:
        return self

    def close(self) -> None:
        """Another host, or the next incarnation, still uses it."""


@pytest.fixture
def volatile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rig's disks forget, as real ones do."""
    monkeypatch.setattr(worker_rig, "MemoryDevice", Device)
    monkeypatch.setattr(worker_rig, "MemoryEngine", memory.MemoryEngine)
    monkeypatch.setattr(worker_rig, "Arena", memory.MemoryArena)


def some_request(host: Host, rng: random.Random, durable: set[int], done: set[int]) -> None:
    """A write; or a flush, behind which everything that was answered before must survive."""
    if not host.buffers:
        return
    if rng.random() < 0.1:
        answered = set(done)

        def flushed(error: int, _: bytes) -> None:
            assert not error
            durable.update(answered)

        host.submit(host.export("origin"), FLUSH, 0, 0, flushed)
        return
    chunk = rng.randrange(CHUNKS - 16)
    length = rng.choice((512, CHUNK, 12 * CHUNK))

    def written(error: int, _: bytes) -> None:
        assert not error
        done.update(range(chunk, chunk + -(-length // CHUNK)))

    if rng.random() < 0.2:
        host.submit(host.export("origin"), ZERO, chunk * CHUNK, length, written)
    else:
        host.submit(host.export("origin"), WRITE, chunk * CHUNK, b"\xfd" * length, written)


@pytest.mark.usefixtures("volatile")
@pytest.mark.parametrize("seed", range(25))
def test_a_snapshot_survives_power_failures(seed: int) -> None:
    """Several failures, each at a random step, on one or two hosts: every incarnation shows the snapshot unchanged."""
    rng = random.Random(seed)
    rig = Rig(hosts=1 + seed % 2, origin_chunks=CHUNKS, region_chunks=64, seed=seed, copy_buffers=8)
    rig.snapshot("s1", cow_chunks=900)
    truth = bytes(rig.origin.data)
    for _ in range(5):
        durable: set[int] = set()
        done: set[int] = set()
        for _ in range(rng.randrange(20, 400)):
            if rng.random() < 0.3:
                some_request(rng.choice(rig.hosts), rng, durable, done)
            for _ in range(rng.randrange(8)):
                rig.step()
        names = [host.name for host in rig.hosts]
        for host in list(rig.hosts):
            rig.crash(host)
        for device in rig.devices.values():
            device.power_loss(rng)  # type: ignore[attr-defined]
        rig.hosts = [Host(rig, name) for name in names]
        rig.run()
        for chunk in durable:
            at = chunk * CHUNK
            assert rig.origin.data[at : at + 512] != truth[at : at + 512], "a flushed write is gone"
        for host in rig.hosts:
            assert rig.read_all(host, "snapshot/s1") == truth, host.name
        assert rig.locks.snapshots[0].state == "active"
