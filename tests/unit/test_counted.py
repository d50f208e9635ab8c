"""What the volume and its stores count in the page: each word moves for what it stands for, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapd import counters
from snapd.format.layout import Layout
from snapd.messages import UNTRUSTED, Counter
from snapd.units import SECTOR
from tests.support.engine_rig import page
from tests.support.store_rig import CHUNK, EPA, ORIGIN_CHUNKS, StoreRig, cow_device, data_chunks
from tests.support.worker_rig import Host, Rig


def losses(host: Host) -> dict[str, int]:
    return {reason: host.words[at] for reason, at in counters.INVALIDATIONS.items() if host.words[at]}


def corruptions(words: memoryview) -> dict[str, int]:
    return {kind: words[at] for kind, at in counters.CORRUPTIONS.items() if words[at]}


def uses(host: Host) -> dict[tuple[str, str], int]:
    host.volume.publish()
    return {use: host.words[at] for use, at in counters.CACHED.items() if host.words[at]}


# ---- snapshots lost


def test_a_full_store_is_lost_as_full_once_and_only_by_who_found_out() -> None:
    """Many writes find no room, one snapshot is lost; the other host is told by the table and counts nothing."""
    rig = Rig(hosts=2)
    rig.snapshot("s1", cow_chunks=4)
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * 12 * CHUNK)
    assert rig.locks.snapshots[0].state == "invalid"
    assert losses(a) == {"full": 1} and losses(b) == {} and corruptions(a.words) == {}


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
def test_a_device_that_fails_is_the_reason(kind: str) -> None:
    """Of the COW device, or of the origin while the old chunk is read."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    device = rig.origin if kind == "read" else host.volume.stack[0].device
    device.fail = lambda what, offset: 5 if what == kind else 0
    start = rig.write(host, "origin", 0, b"n" * CHUNK)
    assert start == 0 and losses(host) == {"device_error": 1}


def test_corrupt_entries_are_the_reason_and_told_by_kind() -> None:
    """What another host appended makes no sense: the snapshot is lost as corrupt, for entry_out_of_range."""
    rig = Rig(hosts=2)
    spec = rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    rig.devices[spec.path].poke(CHUNK, (1 << 40).to_bytes(8, "little"))
    rig.write(b, "origin", CHUNK, b"n" * CHUNK)
    assert losses(b) == {"corrupt": 1} and corruptions(b.words) == {"entry_out_of_range": 1}


def test_a_header_that_says_invalid_is_the_reason() -> None:
    """valid=0 is found on the device while the table still calls the snapshot live. That is no corruption."""
    rig = Rig()
    spec = rig.format("s1", 64)
    device = rig.devices[spec.path]
    device.poke(4, bytes(4))
    rig.locks.change_table("host-a", lambda: rig.locks.take(spec))
    rig.run()
    host = rig.hosts[0]
    assert losses(host) == {"header": 1} and corruptions(host.words) == {}


def test_a_header_that_is_none_is_counted_when_the_device_is_refused() -> None:
    """The worker does not open such a device, so it serves nothing: the counter says why, at each attempt."""
    rig = Rig()
    spec = rig.format("s1", 64)
    rig.devices[spec.path].poke(0, b"X")
    rig.locks.change_table("host-a", lambda: rig.locks.take(spec))
    rig.run()
    host = rig.hosts[0]
    assert corruptions(host.words) == {"header": 1} and losses(host) == {}
    host.now += 10**10
    host.table.tick()
    assert corruptions(host.words) == {"header": 2}


# ---- corrupt metadata, kind by kind


def poke_entry(rig: StoreRig, index: int, old: int, new: int) -> None:
    rig.device.poke(CHUNK + index * 16, old.to_bytes(8, "little") + new.to_bytes(8, "little"))


FIRST, SECOND = data_chunks(2)
METADATA = Layout(CHUNK // SECTOR, 1 << 50).area_chunk(1)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("entry_out_of_range", (ORIGIN_CHUNKS, SECOND)),
        ("entry_out_of_range", (7, 1 << 40)),
        ("entry_on_metadata", (7, METADATA)),
        ("entry_used_twice", (7, FIRST)),
        ("entry_used_twice", (1, SECOND)),
        ("entries_vanished", (0, 0)),
    ],
)
def test_what_is_wrong_with_an_entry(kind: str, entry: tuple[int, int]) -> None:
    """The counter announces two entries, the second makes no sense, or is not there."""
    words = page()
    rig = StoreRig(cow_device(2 * EPA + 8, [(1, FIRST), (2, SECOND)]))
    rig.config = replace(rig.config, words=words)
    poke_entry(rig, 1, *entry)
    store = rig.clusterized()
    store.counter(Counter("store", 10, 2))
    rig.run()
    assert len(rig.ports.errors) == 1 and corruptions(words) == {kind: 1}


def test_entries_that_were_known_and_are_gone() -> None:
    """The last known entry is zero when the delta behind it is read; and a counter that goes back."""
    for break_it in (True, False):
        words = page()
        rig = StoreRig(cow_device(EPA + 8, [(1, FIRST), (2, SECOND)]))
        rig.config = replace(rig.config, words=words)
        store = rig.clusterized()
        store.counter(Counter("store", 10, 2))
        rig.run()
        if break_it:
            poke_entry(rig, 1, 0, 0)
        store.counter(Counter("store", 11, 3 if break_it else 1))
        rig.run()
        assert corruptions(words) == {"entries_vanished": 1}


def test_a_list_that_runs_into_the_devices_end() -> None:
    """The last area is full and there is no place for a terminator: the kernel could not open it either."""
    news = data_chunks(EPA)
    words = page()
    rig = StoreRig(cow_device(EPA + 2, list(enumerate(news))))
    rig.config = replace(rig.config, words=words)
    store = rig.clusterized()
    store.counter(Counter("store", 10, UNTRUSTED))
    store.tail_granted(0)
    rig.run()
    assert corruptions(words) == {"no_terminator": 1}


def test_a_header_of_another_chunk_size() -> None:
    """The header changed after the device was recognized: kind header."""
    words = page()
    rig = StoreRig(cow_device(64))
    rig.config = replace(rig.config, words=words)
    rig.device.poke(12, (64).to_bytes(4, "little"))
    store = rig.clusterized()
    store.counter(Counter("store", 10, 1))
    rig.run()
    assert corruptions(words) == {"header": 1}


# ---- cached locks


def test_a_request_under_a_held_table_is_a_cached_use_of_it() -> None:
    """One each, read or write, whatever parts it has; not TRIM, which needs no lock, nor what had to wait."""
    rig = Rig(origin_chunks=64, region_chunks=16)
    host = rig.hosts[0]
    rig.read(host, "origin", 0, CHUNK)
    rig.read(host, "origin", 15 * CHUNK, 2 * CHUNK)
    rig.write(host, "origin", 15 * CHUNK, b"n" * 2 * CHUNK)
    rig.zero(host, "origin", 0, 40 * CHUNK)
    rig.flush(host, "origin")
    assert uses(host) == {("table", "CR"): 5}
    host.lease = False
    host.turn()
    answers: list[int] = []
    host.submit(host.export("origin"), 0, 0, CHUNK, lambda error, _: answers.append(error))
    host.lease = True
    rig.run()
    host.turn()
    rig.run()
    assert answers == [0] and uses(host) == {("table", "CR"): 5}


def test_a_copy_has_stages_each_as_often_as_chunks_were_copied() -> None:
    """Read from the origin and written to the COW device; a client's own whole chunk is only written."""
    rig = Rig(origin_chunks=64, region_chunks=64)
    rig.snapshot("s1", writable=True)
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * 5 * CHUNK)
    read, write = (host.words[counters.COPY_STAGES[stage]] for stage in ("read", "write"))
    assert read == write == host.words[counters.COPIES] == 5
    rig.write(host, "snapshot/s1", 10 * CHUNK, b"n" * CHUNK)
    assert host.words[counters.COPY_STAGES["read"]] == 5 and host.words[counters.COPY_STAGES["write"]] == 6


def test_the_use_that_waited_for_a_region_is_not_a_cached_one() -> None:
    """The first copy-out asks for the region, the next ones find it; likewise reads that fall through."""
    rig = Rig(origin_chunks=64, region_chunks=16)
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    assert ("region", "EX") not in uses(host)
    rig.write(host, "origin", CHUNK, b"n" * CHUNK)
    rig.write(host, "origin", 2 * CHUNK, b"n" * CHUNK)
    assert uses(host)["region", "EX"] == 2
    rig.read(host, "snapshot/s1", 32 * CHUNK, CHUNK)
    assert ("region", "CR") not in uses(host)
    rig.read(host, "snapshot/s1", 33 * CHUNK, CHUNK)
    rig.read(host, "snapshot/s1", 0, CHUNK)  # a hit: no lock
    assert uses(host)["region", "CR"] == 1


def test_a_batch_under_a_held_tail_is_a_cached_use_of_it() -> None:
    """The tail comes for the chunks to copy into; each batch, also the first, then finds it held."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    for index in range(5):
        rig.write(host, "origin", index * CHUNK, b"n" * CHUNK)
    assert host.words[counters.COMMITS] == 5
    assert uses(host)["tail", "EX"] == 5


def test_a_batch_that_waited_for_the_tail_is_not_a_cached_use() -> None:
    """Asked back after each batch, the tail is asked for again by the next one."""
    words = page()
    rig = StoreRig(cow_device(EPA + 8))
    rig.config = replace(rig.config, words=words)
    store = rig.clusterized()
    store.counter(Counter("store", 10, 0))
    rig.run()
    for index, new in enumerate(data_chunks(3)):
        store.commit(index, new, lambda durable: None)
        rig.run()
        store.tail_granted(0)
        store.tail_revoked()
        rig.run()
    assert words[counters.COMMITS] == 3 and words[counters.CACHED["tail", "EX"]] == 0
