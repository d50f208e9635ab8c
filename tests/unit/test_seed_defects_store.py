"""The seed's defects that concern the exception store, each by its number."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from snapd.blockdev.device import open_device
from snapd.blockdev.sync import pread
from snapd.errors import Refused, WouldBlock
from snapd.exstore.base import StatusKind, StoreConfig
from snapd.exstore.clusterized import Clusterized, split_cluster_uuid
from snapd.exstore.create import create
from snapd.exstore.persistent import Persistent
from snapd.exstore.registry import Registry
from snapd.exstore.transient import Transient
from snapd.exstore.types import store_types
from snapd.format.sidecar import Sidecar
from snapd.messages import EX, NL, Counter, SnapshotSpec
from snapd.units import MIB
from snapd.volume.cow import Expected, verify
from tests.support.mem_engine import MemoryDevice
from tests.support.store_rig import CHUNK, VOLUME_UUID, StoreRig, cow_device

STORE = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"


def loaded(rig: StoreRig, value: int = 0, revision: int = 10) -> Clusterized:
    store = rig.clusterized()
    store.counter(Counter(STORE, revision, value))
    rig.run()
    return store


def test_defect_5_registration_reports_failure_as_failure() -> None:
    """The seed's init inverted its check: here a bad registration raises and leaves the registry as it was."""
    registry = Registry(Clusterized)
    registry.register(Persistent)
    with pytest.raises(Refused, match="registered already"):
        registry.register(Persistent)
    assert registry.names() == ["clusterized_persistent", "persistent"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("P",),
        ("cluster_uuid:",),
        ("cluster_uuid:" + "a" * 64,),
        ("cluster_uuid:" + "a" * 5000,),
        ("cluster_uuid:5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a1",),
        (f"cluster_uuid:{{{VOLUME_UUID}}}",),
        (f"cluster_uuid:{VOLUME_UUID}", "P"),
        (f"cluster_uuid:{VOLUME_UUID}", f"cluster_uuid:{VOLUME_UUID}"),
    ],
)
def test_defect_6_a_missing_misplaced_or_overlong_uuid_is_refused(options: tuple[str, ...]) -> None:
    """No underflow on zero arguments, no cut UUID: a clear error."""
    with pytest.raises(Refused, match="cluster_uuid"):
        split_cluster_uuid(options)


def test_defect_7_suspend_reaches_the_core_store() -> None:
    """The seed passed its wrapper to the core: here the core itself starts no new batch."""
    store = loaded(StoreRig(cow_device(100)))
    store.presuspend()
    assert store.core._suspended
    store.postsuspend()


def test_defect_8_destroy_goes_through_the_core() -> None:
    """Destroying the wrapper destroys the core, which closes the device it was given."""
    rig = StoreRig(cow_device(100))
    store = loaded(rig)
    store.destroy()
    assert rig.device.closed


def test_defect_10_two_exceptions_in_flight_do_not_collide() -> None:
    """Two copies at once get two chunks, one batch, and the tail is not dropped under the second."""
    rig = StoreRig(cow_device(100))
    store = loaded(rig)
    store.tail_granted(0)
    one, two = store.prepare(1), store.prepare(2)
    assert one != two
    store.commit(1, one, lambda durable: None)
    store.commit(2, two, lambda durable: None)
    rig.run()
    assert (store.lookup(1), store.lookup(2), store.tail) == (one, two, EX)


def test_defect_11_a_lookup_miss_changes_no_lock() -> None:
    """A miss while a copy is under way asks for nothing and gives nothing back."""
    rig = StoreRig(cow_device(100))
    store = loaded(rig)
    store.tail_granted(0)
    store.commit(1, store.prepare(1), lambda durable: None)
    rig.ports.regions.add(5)
    assert store.lookup(5) == 0
    assert store.tail == EX and not rig.ports.released and not rig.ports.wanted_regions


def test_defect_12_nothing_is_announced_before_the_metadata_is_on_disk() -> None:
    """The count that a release announces moves only when the batch is on stable storage."""
    rig = StoreRig(cow_device(100))
    store = loaded(rig)
    store.tail_granted(0)
    store.commit(1, store.prepare(1), lambda durable: None)
    for call in rig.ports.deferred:
        call()
    rig.ports.deferred.clear()
    store.tail_revoked()
    rig.engine.kick()
    rig.engine.reap_one()  # the flush has completed, the entry has not been written
    assert store.core.count == 0 and store.tail == EX and not rig.ports.released
    rig.run()
    assert store.core.count == 1 and rig.ports.released


def test_defect_13_two_hosts_never_take_the_same_chunk_or_slot() -> None:
    """The second host re-reads and skips the first one's extent before it takes a chunk."""
    device = cow_device(200)
    rig_a, rig_b = StoreRig(device), StoreRig(device)
    a, b = loaded(rig_a), loaded(rig_b)
    a.tail_granted(0)
    a.commit(1, a.prepare(1), lambda durable: None)
    rig_a.run()
    a.tail_revoked()
    rig_a.run()
    b.counter(Counter(STORE, 11, 1))
    b.tail_granted(skip=rig_a.ports.released[0])
    rig_b.run()
    new = b.prepare(2)
    assert new == rig_a.ports.released[0] > a.lookup(1)
    b.commit(2, new, lambda durable: None)
    rig_b.run()
    assert rig_b.entries() == [(1, a.lookup(1)), (2, new)]


def test_defect_14_after_a_reread_the_counter_is_remembered() -> None:
    """The same counter again causes no read, and what is announced next is never lower."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = loaded(rig, 1)
    store.counter(Counter(STORE, 11, 2))
    rig.run()
    reads: list[int] = []
    rig.device.fail = lambda kind, offset: reads.append(offset) or 0
    for _ in range(3):
        store.counter(Counter(STORE, 11, 2))
        rig.run()
    assert not reads and store.core.count == 2


def test_defect_17_an_untrustworthy_counter_is_never_used() -> None:
    """A counter that a holder's death made untrusted stops misses and allocations until the tail was read."""
    rig = StoreRig(cow_device(100))
    store = loaded(rig)
    store.counter(Counter(STORE, 12, -1))
    rig.ports.regions.add(5)
    with pytest.raises(WouldBlock):
        store.lookup(5)
    with pytest.raises(WouldBlock):
        store.prepare(5)
    assert store.tail == NL and rig.ports.asked == ["tail"]


class SharedStore(Persistent):
    """A core that declares itself shared."""

    name = "shared_thing"
    shared = True


class UndeclaredStore:
    """A core that declares nothing."""

    name = "undeclared"

    def __init__(self, config: StoreConfig) -> None:
        raise AssertionError("must not be constructed")


def test_defect_18_shared_and_unreadable_cores_are_really_refused() -> None:
    """What cannot be wrapped is refused by name; what declares nothing is not even registered."""
    registry = store_types()
    registry.register(SharedStore)
    with pytest.raises(Refused, match=r"shared_thing.*shared"):
        registry.find("clusterized_shared_thing")
    with pytest.raises(Refused, match=r"clusterized_transient.*cannot be re-read"):
        registry.find("clusterized_transient")
    with pytest.raises(Refused, match="does not declare"):
        registry.register(UndeclaredStore)  # type: ignore[arg-type]


def test_defect_19_every_registered_type_is_found_by_its_name() -> None:
    """The registry finds each type it names, and names what it knows when asked for another."""
    registry = store_types()
    assert registry.names() == ["clusterized_persistent", "persistent", "transient"]
    for name in registry.names():
        assert registry.find(name).name == name
    with pytest.raises(Refused, match="known are clusterized_persistent, persistent, transient"):
        registry.find("clusterized_nothing")


def test_the_table_line_ends_in_the_cluster_uuid() -> None:
    """status TABLE is the core's words and the wrapper's."""
    store = loaded(StoreRig(cow_device(100)))
    assert store.status(StatusKind.TABLE) == f"P 8 cluster_uuid:{VOLUME_UUID}"
    assert store.status(StatusKind.INFO) == "16/800 16"


def test_a_transient_store_is_a_store_too() -> None:
    """The same operations, in memory: chunks until it is full, then a named error; invalid after modify."""
    rig = StoreRig(cow_device(4))
    store = Transient(replace(rig.config, options=()))
    store.commit(7, store.prepare(7), lambda durable: None)
    assert store.lookup(7) == 1 and store.status(StatusKind.TABLE) == "N 8"


def test_defect_20_a_created_cow_device_is_tied_to_its_volume_and_store(tmp_path: Path) -> None:
    """What create writes names volume, store, snapshot and origin; any other is refused by name when it is opened."""
    path = tmp_path / "cow"
    path.write_bytes(bytes(MIB))
    device = open_device(str(path), exclusive=False)
    origin = MemoryDevice(64 * CHUNK)
    spec = SnapshotSpec("s1", STORE, str(path), "active", False, 1)
    create(device, CHUNK, Sidecar(VOLUME_UUID, STORE, "s1", origin.size, 1))
    block = pread(device, 0, 512)
    verify(Expected(VOLUME_UUID, origin, CHUNK), spec, device, block)
    wrong = [
        (Expected(STORE, origin, CHUNK), spec, "sidecar: volume is"),
        (Expected(VOLUME_UUID, MemoryDevice(65 * CHUNK), CHUNK), spec, "sidecar: origin size is"),
        (Expected(VOLUME_UUID, origin, 2 * CHUNK), spec, "chunk size 4096, the volume has 8192"),
        (Expected(VOLUME_UUID, origin, CHUNK), replace(spec, store=VOLUME_UUID), "sidecar: store is"),
        (Expected(VOLUME_UUID, origin, CHUNK), replace(spec, name="s2"), "sidecar: snapshot is s1, expected s2"),
    ]
    for expected, other, words in wrong:
        with pytest.raises(Refused, match=words):
            verify(expected, other, device, block)
    device.close()


def test_every_one_of_the_twenty_has_a_test_named_after_it() -> None:
    """test_defect_<n>_... or test_seed_defect_<n>_... somewhere under tests/."""
    named = re.compile(r"def test_(?:seed_)?defect_(\d+)_")
    tests = Path(__file__).parent.parent
    found = {int(number) for path in tests.rglob("test_*.py") for number in named.findall(path.read_text())}
    assert found >= set(range(1, 21)), f"without a test: {sorted(set(range(1, 21)) - found)}"
