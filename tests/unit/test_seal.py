"""Sealing: taking a snapshot raises the generation in the sidecars of all live ones, so that an older etcd is seen."""

from __future__ import annotations

import pytest

from snapd.errors import Refused
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.messages import Message, Revoke, Seal, Sealed, SnapshotSpec
from snapd.volume.cow import Expected, verify
from tests.support.worker_rig import CHUNK, VOLUME_UUID, Host, Rig


def generation(rig: Rig, spec: SnapshotSpec) -> int:
    """What the device of ``spec`` says."""
    block = rig.devices[spec.path].peek(0, 512)
    assert Header.from_bytes(block).valid
    sidecar = Sidecar.from_bytes(block, CHUNK // 512)
    assert sidecar is not None
    return sidecar.generation


def answers(host: Host) -> list[Sealed]:
    messages: list[Message] = [*host.port.outbox, *host.port.seen]
    return [message for message in messages if isinstance(message, Sealed)]


def test_a_seal_reaches_the_sidecar_and_nothing_else() -> None:
    """The generation is raised on the device, the header stays valid, the snapshot goes on being right."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    before = rig.read_all(host, "snapshot/s1")
    assert rig.write(host, "origin", 0, b"\x01" * CHUNK) == 0
    host.receive(Seal(7, spec.store, 5))
    rig.run()
    assert answers(host) == [Sealed(7, "")]
    assert generation(rig, spec) == 5
    assert rig.write(host, "origin", CHUNK, b"\x02" * CHUNK) == 0
    assert rig.read_all(host, "snapshot/s1") == before


def test_a_generation_never_goes_back() -> None:
    """A lower one is answered and changes nothing."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    for number in (4, 2):
        host.receive(Seal(number, spec.store, number))
        rig.run()
    assert [message.error for message in answers(host)] == ["", ""]
    assert generation(rig, spec) == 4


def test_a_seal_waits_for_the_batch_and_the_table_waits_for_the_seal() -> None:
    """Under writes the header is rewritten between two batches; the table is given back only after it."""
    rig = Rig(seed=3)
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    done: list[int] = []
    for index in range(3):
        host.submit(host.export("origin"), 1, index * CHUNK, b"\x07" * CHUNK, lambda error, _: done.append(error))
    for _ in range(10):
        rig.step()
    host.receive(Seal(1, spec.store, 9))
    host.receive(Revoke("table", 0))
    rig.run()
    order = [type(message).__name__ for message in [*host.port.seen, *host.port.outbox]]
    assert order.index("Sealed") < max(index for index, name in enumerate(order) if name == "Done")
    assert generation(rig, spec) == 9
    assert done == [0, 0, 0]


def test_what_is_not_in_use_is_not_sealed() -> None:
    """Frozen, or of an unknown store: answered with why, nothing written."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    host.volume.freeze()
    host.receive(Seal(1, spec.store, 3))
    host.receive(Seal(2, "no-such-store", 3))
    assert all("not in use" in message.error for message in answers(host))
    assert generation(rig, spec) == 1


def test_a_store_newer_than_its_record_is_refused() -> None:
    """An etcd that was set back does not know the snapshot taken since: its older one must not be written to."""
    rig = Rig()
    (host,) = rig.hosts
    spec = rig.snapshot("s1")
    host.receive(Seal(1, spec.store, 2))
    rig.run()
    device = rig.device(spec.path)
    with pytest.raises(Refused, match="set back in time"):
        verify(Expected(VOLUME_UUID, rig.origin, CHUNK), spec, device, device.peek(0, 512))
