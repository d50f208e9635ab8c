"""Sealing: no host admits I/O under a table before the sidecars of its live stores have the table's generation."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO

import pytest

from snapd.errors import Refused
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import UNTRUSTED, Counter, Done, Message, Revoke, SnapshotSpec
from snapd.volume.cow import Expected, verify
from snapd.volume.request import WRITE
from tests.support.store_rig import StoreRig, cow_device
from tests.support.worker_rig import CHUNK, VOLUME_UUID, Host, Rig

STORE = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"


def generation(rig: Rig, spec: SnapshotSpec) -> int:
    """What the device of ``spec`` says."""
    block = rig.devices[spec.path].peek(0, 512)
    assert Header.from_bytes(block).valid
    sidecar = Sidecar.from_bytes(block, CHUNK // 512)
    assert sidecar is not None
    return sidecar.generation


def raise_to(rig: Rig, number: int, run: bool = True) -> None:
    """Change the table as taking a snapshot does: every live record has a higher generation."""

    def change() -> None:
        rig.locks.snapshots = [replace(spec, generation=number) for spec in rig.locks.snapshots]

    rig.locks.change_table(rig.hosts[0].name, change)
    if run:
        rig.run()


def submit(host: Host, chunk: int, done: list[int]) -> None:
    host.submit(host.export("origin"), WRITE, chunk * CHUNK, b"\x07" * CHUNK, lambda error, _: done.append(error))


def sent(host: Host) -> list[Message]:
    return [*host.port.seen, *host.port.outbox]


def test_the_sidecar_is_raised_and_nothing_else_changes() -> None:
    """The generation of the table is on the device, the header stays valid, the snapshot goes on being right."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    before = rig.read_all(host, "snapshot/s1")
    for index, number in enumerate((5, 3)):  # a lower one changes nothing
        assert rig.write(host, "origin", index * CHUNK, b"\x01" * CHUNK) == 0
        raise_to(rig, number)
        assert generation(rig, spec) == 5
    assert rig.write(host, "origin", 2 * CHUNK, b"\x02" * CHUNK) == 0
    assert rig.read_all(host, "snapshot/s1") == before


def test_nothing_is_admitted_before_the_device_says_so() -> None:
    """At the moment of the first write under the new table every live sidecar has its generation, whoever writes."""
    for seed in range(20):
        rig = Rig(hosts=2, seed=seed)
        spec = rig.snapshot("s1")
        raise_to(rig, 2, run=False)
        for _ in range(40):
            rig.step()
        done: list[int] = []
        for number, host in enumerate(rig.hosts):
            submit(host, number, done)
        while len(done) < 2:
            assert rig.step()
            told = [host for host in rig.hosts if host.volume.stack and host.volume.stack[0].spec.generation == 2]
            assert generation(rig, spec) == 2 or not any(host.volume.admitting for host in told)
        assert generation(rig, spec) == 2
        assert done == [0, 0]


def test_the_table_is_not_given_back_under_a_seal() -> None:
    """Asked back while the header is being written: Done(table) comes when that has ended."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    raise_to(rig, 4, run=False)
    while not any(snapshot.spec.generation == 4 for snapshot in host.volume.stack):
        assert rig.step()
    assert host.engine.inflight
    before = len(sent(host))
    host.receive(Revoke("table", 0))
    assert not [message for message in sent(host)[before:] if isinstance(message, Done)]
    rig.run()
    assert generation(rig, spec) == 4
    assert [message for message in sent(host)[before:] if isinstance(message, Done) and message.resource == "table"]


def test_a_sidecar_that_cannot_be_written_costs_the_snapshot() -> None:
    """A COW device whose first block fails is a failing COW device: invalid, and the origin goes on."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    rig.devices[spec.path].fail = lambda kind, offset: EIO if kind == "write" else 0
    raise_to(rig, 2)
    rig.devices[spec.path].fail = lambda kind, offset: 0
    assert rig.write(host, "origin", 0, b"\x07" * CHUNK) == 0
    assert [snapshot.spec.state for snapshot in host.volume.snapshots.values()] == ["invalid"]


def test_a_store_newer_than_its_record_is_refused() -> None:
    """An etcd that was set back does not know the snapshot taken since: its older one must not be written to."""
    rig = Rig()
    spec = rig.snapshot("s1")
    raise_to(rig, 2)
    device = rig.device(spec.path)
    with pytest.raises(Refused, match="set back in time"):
        verify(Expected(VOLUME_UUID, rig.origin, CHUNK), spec, device, device.peek(0, 512))


def test_the_zeroing_of_a_stale_tail_is_a_use_of_the_table() -> None:
    """Without the table nothing is zeroed, the device may be another's by then; with it, it counts as a use."""
    rig = StoreRig(cow_device(1000, [(1, 2), (2, 3)]))
    store = rig.clusterized()
    rig.device.log = []
    rig.ports.table = False
    store.counter(Counter(STORE, 10, UNTRUSTED))
    store.tail_granted(0)
    rig.run()
    assert not store.current
    assert [kind for kind, *_ in rig.device.log if kind == "write"] == []
    rig.ports.table = True
    uses: list[int] = []

    def look(kind: str, offset: int) -> int:
        if kind == "write":
            uses.append(rig.ports.writes)
        return 0

    rig.device.fail = look
    store.resume(lambda error: None)
    rig.run()
    assert uses
    assert set(uses) == {1}
    assert rig.ports.writes == 0
    assert store.current
