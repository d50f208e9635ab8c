"""The clusterized store: tail, counter and extent around a core store."""

from __future__ import annotations

import pytest

from snapd.errors import Corrupt, StoreFull, WouldBlock
from snapd.messages import EX, NL, UNTRUSTED, Counter
from tests.support.store_rig import CHUNK, EPA, StoreRig, cow_device, data_chunks

STORE = "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10"


def counter(revision: int, value: int) -> Counter:
    return Counter(STORE, revision, value)


def loaded(rig: StoreRig, value: int = 0) -> object:
    store = rig.clusterized()
    store.counter(counter(10, value))
    rig.run()
    assert store.current
    return store


def test_loading_goes_exactly_as_far_as_the_counter() -> None:
    """A first load believes the counter: entries behind it may be in flight on another host."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3), (3, 4)]))
    store = loaded(rig, 2)
    assert (store.lookup(1), store.core.count) == (2, 2)
    with pytest.raises(WouldBlock):
        store.lookup(3)


def test_an_equal_counter_reads_nothing_and_a_different_one_reads_the_delta() -> None:
    """The counter's revision says whether to re-read; its value says how far."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = loaded(rig, 1)
    reads: list[int] = []
    rig.device.fail = lambda kind, offset: reads.append(offset) or 0
    store.counter(counter(10, 1))
    rig.run()
    assert not reads
    store.counter(counter(11, 2))
    assert not store.current
    rig.run()
    assert reads == [CHUNK] and store.current and store.core.count == 2


def test_an_untrusted_counter_waits_for_the_tail_then_zeroes_what_is_stale() -> None:
    """After a recovery: take the tail, read to the end, zero behind it, flush, and only then go on."""
    rig = StoreRig(cow_device(1000, [(1, 2), (2, 3)]))
    rig.device.poke(CHUNK + 3 * 16, (77).to_bytes(8, "little") + (5).to_bytes(8, "little"))
    store = rig.clusterized()
    store.counter(counter(10, UNTRUSTED))
    rig.run()
    assert not store.current and rig.ports.asked == ["tail"]
    rig.device.log = []
    store.tail_granted(0)
    rig.run()
    assert store.current and store.core.count == 2
    assert [kind for kind, _, _ in rig.device.log][-1] == "flush"
    assert rig.device.peek(CHUNK + 2 * 16, CHUNK - 2 * 16) == bytes(CHUNK - 2 * 16)


def test_an_absent_counter_never_equals_anything() -> None:
    """Revision 0 means the key is missing: untrusted, every time."""
    rig = StoreRig(cow_device(100, [(1, 2)]))
    store = loaded(rig, 1)
    store.counter(counter(0, UNTRUSTED))
    assert not store.current


def test_an_absent_counter_is_read_for_once_a_tail() -> None:
    """Who has read to the end under the tail that it still holds knows everything: only others' appends are news."""
    rig = StoreRig(cow_device(100, [(1, 2)]))
    store = rig.clusterized()
    store.counter(counter(0, UNTRUSTED))
    store.tail_granted(0)
    rig.run()
    assert store.current and store.core.count == 1
    store.counter(counter(0, UNTRUSTED))
    assert store.current
    store.tail_revoked()
    assert store.tail == NL
    store.counter(counter(0, UNTRUSTED))
    assert not store.current


def test_a_counter_that_goes_back_stops_the_store() -> None:
    """A newer counter with a lower value is a named error: somebody lost entries."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = loaded(rig, 2)
    store.counter(counter(12, 1))
    rig.run()
    assert isinstance(rig.ports.errors[0], Corrupt) and "1 entries at revision 12, 2 before" in str(rig.ports.errors[0])
    with pytest.raises(Corrupt):
        store.prepare(9)


def test_an_answer_that_was_overtaken_changes_nothing() -> None:
    """Transaction responses may be handled out of order: a counter older than what is known is ignored."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = loaded(rig, 2)
    store.counter(counter(9, 1))
    assert store.current


def test_chunks_are_reserved_under_the_tail_only() -> None:
    """Without an extent prepare asks for the tail and would block; the grant reserves behind everybody's extents."""
    rig = StoreRig(cow_device(1000))
    store = loaded(rig)
    with pytest.raises(WouldBlock):
        store.prepare(1)
    assert rig.ports.asked == ["tail"]
    store.tail_granted(skip=40)
    rig.run()
    assert rig.woken and store.prepare(1) == 40


def test_a_commit_waits_for_the_tail_and_what_waits_is_one_batch() -> None:
    """Commits gather until the tail is granted, then go out together."""
    rig = StoreRig(cow_device(1000))
    store = loaded(rig)
    store.tail_granted(0)
    chunks = [store.prepare(old) for old in range(3)]
    store.tail_revoked()
    rig.run()
    assert rig.ports.released and store.tail == NL
    told: list[bool] = []
    for old, new in enumerate(chunks):
        store.commit(old, new, told.append)
    rig.run()
    assert not told and rig.ports.asked == ["tail"]
    rig.device.log = []
    store.tail_granted(0)
    rig.run()
    assert told == [True] * 3 and [kind for kind, _, _ in rig.device.log] == ["flush", "write"]


def test_the_tail_is_given_back_after_the_batch_that_runs() -> None:
    """A bast on the tail: the batch in flight is finished and published first, then the tail goes."""
    rig = StoreRig(cow_device(1000))
    store = loaded(rig)
    store.tail_granted(0)
    store.commit(1, store.prepare(1), lambda durable: None)
    for call in rig.ports.deferred:
        call()
    rig.ports.deferred.clear()
    store.tail_revoked()
    assert store.tail == EX and not rig.ports.released
    rig.run()
    assert store.core.count == 1 and rig.ports.released == [store.core.reserved_until]


def test_a_grant_that_is_asked_back_at_once_still_serves_one_batch() -> None:
    """Two hosts that contend for the tail both get on: a grant serves what waited before it is given back."""
    rig = StoreRig(cow_device(1000))
    store = loaded(rig)
    store.tail_granted(0)
    new = store.prepare(1)
    store.tail_revoked()
    rig.run()
    told: list[bool] = []
    store.commit(1, new, told.append)
    rig.run()
    store.tail_granted(0)
    store.tail_revoked()
    rig.run()
    assert told == [True] and store.tail == NL


def test_a_batch_never_crosses_an_area() -> None:
    """What does not fit the area is the next batch, so a torn write never leaves a hole before an area's end."""
    entries = list(zip(range(EPA - 1), data_chunks(EPA - 1), strict=True))
    rig = StoreRig(cow_device(1000, entries))
    store = loaded(rig, EPA - 1)
    store.tail_granted(0)
    for old in range(1000, 1003):
        store.commit(old, store.prepare(old), lambda durable: None)
    rig.device.log = []
    rig.run()
    assert [kind for kind, _, _ in rig.device.log] == ["write", "flush", "write", "flush", "write"]
    assert store.core.count == EPA + 2


def test_extents_shrink_as_the_store_fills() -> None:
    """Near the end extents are single chunks, so no host sits on space that another one needs."""
    rig = StoreRig(cow_device(80))
    store = loaded(rig)
    store.tail_granted(0)
    sizes = []
    with pytest.raises(StoreFull):
        for old in range(100):
            store.prepare(old)
            sizes.append(store.core.available + 1)
    assert sizes[0] == 4 and sizes[-1] == 1 and len(sizes) == store.core.layout.capacity


def test_a_full_store_is_named_when_others_hold_the_rest() -> None:
    """Everything free is reserved by other hosts: full, not a silent wait."""
    rig = StoreRig(cow_device(80))
    store = loaded(rig)
    with pytest.raises(WouldBlock):
        store.prepare(1)
    store.tail_granted(skip=80)
    rig.run()
    with pytest.raises(StoreFull):
        store.prepare(1)


def test_a_failed_append_fails_everything_that_waits() -> None:
    """After a device error in the metadata no commit is left waiting, and the snapshot is reported lost."""
    rig = StoreRig(cow_device(1000))
    store = loaded(rig)
    store.tail_granted(0)
    rig.device.fail = lambda kind, offset: 5 if kind == "write" else 0
    told: list[bool] = []
    store.commit(1, store.prepare(1), told.append)
    rig.engine.kick()
    for call in rig.ports.deferred:
        call()
    rig.ports.deferred.clear()
    store.commit(2, store.prepare(2), told.append)
    rig.run()
    assert told == [False, False] and rig.ports.errors
