"""The persistent store: the kernel's format for one writer at a time."""

from __future__ import annotations

import pytest

from snapd.errors import Corrupt, CsnapError, DeviceError, Refused, StoreFull, StoreInvalid
from snapd.exstore.base import Action, StatusKind
from tests.support.store_rig import CHUNK, EPA, ORIGIN_CHUNKS, StoreRig, cow_device, data_chunks


def fill(rig: StoreRig, store: object, count: int, first: int = 0) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for old in range(first, first + count):
        new = store.prepare(old)  # type: ignore[attr-defined]
        made.append((old, new))
        store.commit(old, new, lambda durable: None)  # type: ignore[attr-defined]
    rig.run()
    return made


def test_a_fresh_store_says_what_the_kernel_says() -> None:
    """An empty store of 8-sector chunks has the kernel's words 16/N 16, and P 8 in the table."""
    rig = StoreRig(cow_device(512))
    store = rig.loaded()
    assert store.status(StatusKind.INFO) == "16/4096 16"
    assert store.status(StatusKind.TABLE) == "P 8"
    assert store.fraction_full() == (16, 4096)


def test_what_is_committed_is_read_back_across_areas() -> None:
    """Exceptions of three areas are read back in order, with the same next free chunk."""
    rig = StoreRig(cow_device(2000))
    store = rig.loaded()
    made = fill(rig, store, 2 * EPA + 10)
    assert [new for _, new in made] == data_chunks(2 * EPA + 10)
    again = StoreRig(rig.device).loaded()
    assert sorted(again.map.items()) == sorted(made) == sorted(rig.entries())
    assert again.next_free == store.next_free and again.count == 2 * EPA + 10


def test_a_second_resume_reads_only_the_delta() -> None:
    """Resume any number of times: only the blocks from the last known entry on are read."""
    entries = list(zip(range(300), data_chunks(300), strict=True))
    rig = StoreRig(cow_device(1000, entries[:10]))
    store = rig.loaded()
    rig.device.data[:] = cow_device(1000, entries[:12]).data
    reads: list[int] = []
    rig.device.fail = lambda kind, offset: reads.append(offset) or 0  # type: ignore[func-returns-value]
    errors: list[CsnapError | None] = []
    store.resume(errors.append)
    rig.run()
    assert errors == [None] and store.count == 12 and reads == [CHUNK]


def test_a_limited_reread_goes_exactly_that_far() -> None:
    """What lies behind the counter may be in flight: it is not believed, and not kept in the image."""
    entries = list(zip(range(10), data_chunks(10), strict=True))
    rig = StoreRig(cow_device(100, entries))
    store = rig.persistent()
    store.reread(7, lambda error: None)
    rig.run()
    assert store.count == 7 and store.lookup(7) == 0
    store.reserve(1, skip=50)
    fill(rig, store, 1, first=99)
    assert rig.entries() == [*entries[:7], (99, 50)]


def test_fewer_entries_than_the_counter_says_is_named() -> None:
    """A device that does not have what the counter promised is an error that stops appending."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = rig.persistent()
    errors: list[CsnapError | None] = []
    store.reread(3, errors.append)
    rig.run()
    assert isinstance(errors[0], Corrupt) and "2 entries found, the counter says 3" in str(errors[0])
    with pytest.raises(Corrupt):
        store.prepare(5)


def test_a_vanished_entry_is_named() -> None:
    """Finding fewer entries than were known is an error: somebody else wrote to the device."""
    rig = StoreRig(cow_device(100, [(1, 2), (2, 3)]))
    store = rig.loaded()
    rig.device.poke(CHUNK, bytes(CHUNK))
    errors: list[CsnapError | None] = []
    store.resume(errors.append)
    rig.run()
    assert isinstance(errors[0], Corrupt) and "2 were known" in str(errors[0])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((1, 100), "the device has"),
        ((1, 1), "the device has"),
        ((1, 1 + EPA + 1), "metadata area"),
        ((ORIGIN_CHUNKS, 5), "the origin has"),
        ((7, 5), "already"),
        ((1, 2), "used twice"),
    ],
)
def test_an_impossible_entry_is_corrupt(entry: tuple[int, int], words: str) -> None:
    """Outside the device, on a metadata area, or used twice: each is named, nothing is guessed."""
    chunks = 600 if entry[1] > 100 else 100
    rig = StoreRig(cow_device(chunks, [(7, 2), entry]))
    store = rig.persistent()
    errors: list[CsnapError | None] = []
    store.resume(errors.append)
    rig.run()
    assert isinstance(errors[0], Corrupt) and words in str(errors[0])


def test_the_copies_are_flushed_before_the_entry_is_written() -> None:
    """Group commit: flush of the COW device first, then the metadata with FUA; one write for the batch."""
    rig = StoreRig(cow_device(100))
    store = rig.loaded()
    rig.device.log = []
    store.append([(1, 2), (2, 3)], lambda error: None)
    rig.run()
    assert [(kind, offset) for kind, offset, _ in rig.device.log] == [("flush", 0), ("write", CHUNK)]


def test_a_commit_is_published_only_when_durable() -> None:
    """Seed defect 12: nothing can be looked up before the metadata write has completed."""
    rig = StoreRig(cow_device(100))
    store = rig.loaded()
    store.commit(1, store.prepare(1), lambda durable: None)
    rig.engine.kick()
    assert rig.engine.reap_one() and store.lookup(1) == 0 and store.count == 0  # the flush
    rig.run()
    assert store.lookup(1) == 2 and store.count == 1


def test_what_comes_during_a_commit_is_the_next_batch() -> None:
    """Commits that arrive while one runs are made durable together."""
    rig = StoreRig(cow_device(100))
    store = rig.loaded()
    rig.device.log = []
    for old in range(5):
        store.commit(old, store.prepare(old), lambda durable: None)
    rig.run()
    assert [kind for kind, _, _ in rig.device.log] == ["flush", "write"] * 2


def test_the_next_area_is_zeroed_before_one_is_filled() -> None:
    """Stale bytes of the next area never become entries."""
    rig = StoreRig(cow_device(1000))
    store = rig.loaded()
    fill(rig, store, EPA - 1)
    rig.device.log = []
    fill(rig, store, 1, first=EPA - 1)
    next_area = (1 + EPA + 1) * CHUNK
    assert rig.device.log[0] == ("write", next_area, bytes(CHUNK)) and rig.device.log[1][0] == "flush"
    assert StoreRig(rig.device).loaded().count == EPA


def test_trap_1_the_last_area_always_keeps_its_terminator() -> None:
    """A device that ends exactly at an area boundary is full one chunk earlier, not invalid (trap 1)."""
    chunks = 1 + 1 + EPA
    rig = StoreRig(cow_device(chunks))
    store = rig.loaded()
    fill(rig, store, EPA - 1)
    with pytest.raises(StoreFull):
        store.prepare(9999)
    assert StoreRig(rig.device).loaded().count == EPA - 1


def test_a_full_last_area_without_terminator_is_refused() -> None:
    """What the kernel cannot open (-EIO), we name."""
    chunks = 1 + 1 + EPA
    rig = StoreRig(cow_device(chunks, list(zip(range(EPA), data_chunks(EPA), strict=True))))
    errors: list[CsnapError | None] = []
    rig.persistent().resume(errors.append)
    rig.run()
    assert isinstance(errors[0], Corrupt) and "no terminator" in str(errors[0])


def test_trap_2_a_stale_tail_does_not_come_alive() -> None:
    """Entries behind a hole are zeroed, in their area and the next, before anything is appended (trap 2)."""
    rig = StoreRig(cow_device(1000, [(1, 2), (2, 3)]))
    stale = (77).to_bytes(8, "little") + (5).to_bytes(8, "little")
    rig.device.poke(CHUNK + 3 * 16, stale)
    rig.device.poke((1 + EPA + 1) * CHUNK, stale)
    store = rig.loaded()
    store.take_over(lambda error: None)
    rig.run()
    fill(rig, store, 1, first=50)
    assert rig.entries() == [(1, 2), (2, 3), (50, 4)]
    assert rig.device.peek((1 + EPA + 1) * CHUNK, CHUNK) == bytes(CHUNK)


def test_extents_skip_metadata_and_what_others_reserved() -> None:
    """Reserved chunks lie behind `skip`, leave out the areas, and are handed out in order (CVE-2013-4299, trap 4)."""
    rig = StoreRig(cow_device(1000))
    store = rig.loaded()
    area = 1 + EPA + 1
    assert store.reserve(4, skip=area - 2) == 4
    assert [store.prepare(old) for old in range(4)] == [area - 2, area - 1, area + 1, area + 2]
    assert store.reserved_until == area + 3


def test_a_failed_metadata_write_stops_appending() -> None:
    """A device error in a commit is reported to its callbacks, and nothing is appended afterwards."""
    rig = StoreRig(cow_device(100))
    store = rig.loaded()
    rig.device.fail = lambda kind, offset: 5 if kind == "write" else 0
    told: list[bool] = []
    store.commit(1, store.prepare(1), told.append)
    rig.run()
    assert told == [False] and isinstance(store.broken, DeviceError) and store.lookup(1) == 0
    with pytest.raises(DeviceError):
        store.prepare(2)


def test_invalidate_keeps_all_but_the_flag() -> None:
    """modify(INVALIDATE) sets valid=0 and leaves the sidecar's bytes alone; a later load says so."""
    rig = StoreRig(cow_device(100))
    rig.device.poke(16, b"sidecar bytes")
    store = rig.loaded()
    before = rig.device.peek(0, 512)
    store.modify(Action.INVALIDATE, lambda error: None)
    rig.run()
    after = rig.device.peek(0, 512)
    assert [i for i in range(512) if before[i] != after[i]] == [4] and after[4] == 0
    assert store.status(StatusKind.INFO) == "Invalid"
    with pytest.raises(StoreInvalid):
        store.prepare(1)
    errors: list[CsnapError | None] = []
    StoreRig(rig.device).persistent().resume(errors.append)
    again = StoreRig(rig.device)
    again.persistent().resume(errors.append)
    again.run()
    assert isinstance(errors[-1], StoreInvalid)


def test_another_chunk_size_is_refused_by_name() -> None:
    """The header's chunk size is not the volume's: refused, nothing is read with the wrong geometry."""
    rig = StoreRig(cow_device(100, chunk=2 * CHUNK))
    errors: list[CsnapError | None] = []
    rig.persistent().resume(errors.append)
    rig.run()
    assert isinstance(errors[0], Refused) and "chunk_size 16" in str(errors[0])


def test_suspend_starts_no_new_batch() -> None:
    """After presuspend what runs is finished and nothing new begins; resume goes on."""
    rig = StoreRig(cow_device(100))
    store = rig.loaded()
    store.presuspend()
    store.commit(1, store.prepare(1), lambda durable: None)
    rig.run()
    store.postsuspend()
    assert store.count == 0
    store.resume(lambda error: None)
    rig.run()
    assert store.count == 1


def test_blocks_of_4096_are_written_and_read_whole() -> None:
    """A device with 4096-byte logical blocks: every transfer is aligned to them, also deltas and the zeroing."""
    chunk = 4 * CHUNK
    rig = StoreRig(cow_device(1200, chunk=chunk), chunk)
    rig.device.logical_block = 4096
    store, reader = rig.loaded(), StoreRig(rig.device, chunk).persistent()
    other = reader._engine
    for first, count in ((0, 1), (1, 255), (256, 300), (556, 500)):
        fill(rig, store, count, first)
        errors: list[CsnapError | None] = []
        reader.reread(store.count, errors.append)
        other.kick()
        while other.reap():
            other.kick()
        assert errors == [None] and sorted(reader.map.items()) == sorted(store.map.items())
    errors = []
    store.take_over(errors.append)
    rig.run()
    assert errors == [None] and StoreRig(rig.device, chunk).loaded().count == 1056


def test_a_broken_store_fails_all_that_waits() -> None:
    """More commits wait than one batch takes: none of them is left without an answer."""
    rig = StoreRig(cow_device(1000))
    store = rig.loaded()
    rig.device.fail = lambda kind, offset: 5 if kind == "write" else 0
    told: list[bool] = []
    for old in range(EPA + 20):
        store.commit(old, store.prepare(old), told.append)
    rig.run()
    assert told == [False] * (EPA + 20)
