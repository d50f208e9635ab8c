"""The volume: routing through the stack, copy-outs, region locks, admission. Hosts share devices in memory."""

from __future__ import annotations

from errno import EIO
from typing import Any

import pytest

from snapd.errors import Refused
from snapd.messages import (
    CR,
    EX,
    NL,
    Counter,
    Done,
    Forget,
    Grant,
    Invalidate,
    Invalidated,
    Overflow,
    Prepare,
    Prepared,
    Revoke,
    SnapshotSpec,
    Want,
)
from snapd.volume.cow import Expected, verify
from snapd.volume.request import FLUSH, READ, TRIM, WRITE, ZERO, Request
from tests.support.worker_rig import CHUNK, VOLUME_UUID, Host, Rig


def chunk(index: int) -> bytes:
    return bytes([index % 251 + 1]) * CHUNK


def start_write(host: Host, export: str, offset: int, data: bytes) -> list[int]:
    answers: list[int] = []
    host.submit(host.export(export), WRITE, offset, data, lambda error, _: answers.append(error))
    return answers


def start_read(host: Host, export: str, offset: int, length: int) -> list[tuple[int, bytes]]:
    answers: list[tuple[int, bytes]] = []
    host.submit(host.export(export), READ, offset, length, lambda error, data: answers.append((error, data)))
    return answers


def settle(host: Host) -> None:
    """Complete this host's I/O without delivering any message."""
    while host.reap_one():
        pass


# ---- no snapshot


def test_without_a_snapshot_io_needs_only_the_table() -> None:
    """Origin I/O takes no region or tail lock while there is no snapshot."""
    rig = Rig()
    assert rig.write(rig.hosts[0], "origin", CHUNK, b"n" * CHUNK) == 0
    assert rig.read(rig.hosts[0], "origin", CHUNK, CHUNK) == b"n" * CHUNK
    assert set(rig.locks.holds) == {"table"}


def test_a_request_before_the_table_is_granted_waits() -> None:
    """Nothing runs before the table was read: the request is answered after the grant."""
    rig = Rig()
    rig.hosts[0].volume.freeze()
    answers = start_read(rig.hosts[0], "origin", 0, CHUNK)
    rig.run()
    assert not answers
    rig.hosts[0].volume.thaw()
    rig.hosts[0].turn()
    rig.run()
    assert answers == [(0, chunk(0))]


def test_partial_unaligned_and_long_requests_reach_the_origin() -> None:
    """Requests that start and end within chunks, or span regions, write and read exactly their bytes."""
    rig = Rig(origin_chunks=64, region_chunks=4)
    rig.snapshot("s1")
    expected = bytearray(rig.origin.data)
    for offset, length in [(512, 512), (CHUNK - 512, 1024), (3 * CHUNK + 512, 9 * CHUNK), (0, 16 * CHUNK)]:
        data = bytes([offset % 250]) * length
        assert rig.write(rig.hosts[0], "origin", offset, data) == 0
        expected[offset : offset + length] = data
        assert rig.read(rig.hosts[0], "origin", offset, length) == data
    assert rig.origin.data == expected
    assert rig.read_all(rig.hosts[0], "snapshot/s1") == b"".join(map(chunk, range(64)))


def test_the_last_chunk_of_an_origin_that_ends_within_it() -> None:
    """An origin that is no multiple of the chunk: its last chunk is copied up to the origin's end."""
    rig = Rig(origin_chunks=8)
    rig.origin.size -= CHUNK - 512
    rig.hosts[0].volume.origin.size = rig.origin.size
    rig.snapshot("s1")
    assert rig.write(rig.hosts[0], "origin", 7 * CHUNK, b"n" * 512) == 0
    assert rig.read(rig.hosts[0], "snapshot/s1", 7 * CHUNK, 512) == chunk(7)[:512]


# ---- the life of a copy-out


def test_a_write_waits_for_the_region_and_the_copy() -> None:
    """Origin write to a chunk the snapshot does not own: region EX, copy, commit, and only then the write."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    answers = start_write(host, "origin", 0, b"n" * CHUNK)
    settle(host)
    assert host.port.outbox[0] == Want("region/0", EX) and rig.origin.peek(0, CHUNK) == chunk(0)
    rig.run()
    assert answers == [0] and rig.origin.peek(0, CHUNK) == b"n" * CHUNK
    assert rig.devices[spec.path].peek(2 * CHUNK, CHUNK) == chunk(0)


def test_the_origin_is_unchanged_until_the_exception_is_durable() -> None:
    """At every step before the metadata write has completed, the origin still has its old content."""
    rig = Rig()
    spec = rig.snapshot("s1")
    start_write(rig.hosts[0], "origin", 0, b"n" * CHUNK)
    entry = lambda: rig.devices[spec.path].peek(CHUNK, 16)  # noqa: E731
    while rig.step():
        if rig.origin.peek(0, CHUNK) != chunk(0):
            assert entry() == (0).to_bytes(8, "little") + (2).to_bytes(8, "little")


def test_other_writes_to_the_chunk_queue_behind_the_copy() -> None:
    """Two writes to one chunk share one copy; both are answered after it."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    first = start_write(host, "origin", 0, b"a" * 512)
    second = start_write(host, "origin", 512, b"b" * 512)
    rig.run()
    assert first == second == [0] and host.volume.stack[0].store.core.count == 1


def test_neighbours_are_copied_with_one_write() -> None:
    """The copies of a multi-chunk write go to the COW device together, and commit as one batch."""
    rig = Rig(copy_buffers=8)
    spec = rig.snapshot("s1")
    rig.write(rig.hosts[0], "origin", 0, b"n" * CHUNK)  # the extent is there now
    device = rig.hosts[0].volume.stack[0].device
    device.log = []
    answers = start_write(rig.hosts[0], "origin", CHUNK, b"n" * 4 * CHUNK)
    while rig.hosts[0].engine.reap():  # whole turns, as in the worker's loop
        rig.hosts[0].turn()
    assert answers == [0]
    writes = [offset for kind, offset, _ in device.log if kind == "write"]
    assert writes == [3 * CHUNK, 4 * CHUNK, 5 * CHUNK, 6 * CHUNK, CHUNK]
    assert [kind for kind, _, _ in device.log].count("flush") == 1
    assert rig.devices[spec.path].peek(3 * CHUNK, CHUNK) == chunk(1)


def test_more_chunks_than_buffers_are_copied_piece_by_piece() -> None:
    """A write of more chunks than there are copy buffers is answered all the same."""
    rig = Rig(copy_buffers=2)
    rig.snapshot("s1")
    assert rig.write(rig.hosts[0], "origin", 0, b"n" * 16 * CHUNK) == 0
    assert rig.read_all(rig.hosts[0], "snapshot/s1") == b"".join(map(chunk, range(64)))


def test_write_zeroes_copies_out_first_and_trim_changes_nothing() -> None:
    """WRITE_ZEROES is a write; TRIM is answered and changes nothing."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    assert rig.zero(host, "origin", 512, 40 * CHUNK) == 0
    assert rig.origin.peek(512, 40 * CHUNK) == bytes(40 * CHUNK)
    answers: list[int] = []
    host.submit(host.export("origin"), TRIM, 0, 50 * CHUNK, lambda error, _: answers.append(error))
    assert answers == [0] and rig.origin.peek(0, 512) == chunk(0)[:512]
    assert rig.read_all(host, "snapshot/s1") == b"".join(map(chunk, range(64)))


def test_flush_reaches_the_device_of_the_export() -> None:
    """FLUSH on the origin flushes the origin, on a snapshot its COW device; errors come back."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    host.volume.stack[0].device.fail = lambda kind, offset: 5 if kind == "flush" else 0
    assert rig.flush(host, "origin") == 0
    assert rig.flush(host, "snapshot/s1") == 5


# ---- reads of a snapshot


def test_a_hit_needs_no_lock() -> None:
    """A committed exception is read without a region lock, also while another host holds the region."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    assert rig.read(b, "snapshot/s1", 0, CHUNK) == chunk(0)
    rig.write(a, "origin", CHUNK, b"n" * CHUNK)
    assert rig.locks.holds["region/0"] == {"host-a": EX}
    before = rig.locks.grants
    assert rig.read(b, "snapshot/s1", 0, CHUNK) == chunk(0)
    assert rig.locks.grants == before


def test_a_miss_needs_the_region_and_is_final_under_a_cached_hold() -> None:
    """The first miss takes the region's CR; later misses in the region ask for nothing."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    assert rig.read(host, "snapshot/s1", 0, CHUNK) == chunk(0)
    assert rig.locks.holds["region/0"] == {"host-a": CR}
    before = rig.locks.grants
    assert rig.read(host, "snapshot/s1", CHUNK, CHUNK) == chunk(1)
    assert rig.locks.grants == before


def test_a_miss_below_a_newer_stores_hit_needs_the_region_too() -> None:
    """Falling through a level needs the lock even if the next newer store has the chunk."""
    rig = Rig(hosts=2)
    rig.snapshot("old")
    rig.snapshot("new")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    answers = start_read(b, "snapshot/old", 0, CHUNK)
    settle(b)
    assert not answers and Want("region/0", CR) in b.port.outbox
    rig.run()
    assert answers == [(0, chunk(0))]


def test_a_miss_below_a_known_hit_of_a_newer_store_needs_the_region_too() -> None:
    """The same when this host has seen the newer store's entry: only its own store's entries need no lock."""
    rig = Rig(hosts=2)
    rig.snapshot("old")
    rig.snapshot("new")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    assert rig.read(b, "snapshot/new", 0, CHUNK) == chunk(0)
    rig.write(a, "origin", CHUNK, b"n" * CHUNK)  # which takes the region away from b
    answers = start_read(b, "snapshot/old", 0, CHUNK)
    settle(b)
    assert not answers and Want("region/0", CR) in b.port.outbox
    rig.run()
    assert answers == [(0, chunk(0))]


def test_seed_defect_16_a_read_through_the_snapshot_never_sees_the_new_origin() -> None:
    """The region is given away only after the read has its data; the other host's write waits for that."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.read(a, "snapshot/s1", 0, CHUNK)
    answers = start_read(a, "snapshot/s1", CHUNK, CHUNK)
    start_write(b, "origin", CHUNK, b"n" * CHUNK)
    while rig.locks.deliver() or (b.port.inbox and not b.receive(b.port.inbox.popleft())) or b.reap_one():
        pass
    a.receive(a.port.inbox.popleft())
    assert not any(isinstance(message, Done) for message in a.port.outbox), "the region was given away under a read"
    assert rig.origin.peek(CHUNK, CHUNK) == chunk(1)
    rig.run()
    assert answers == [(0, chunk(1))] and rig.origin.peek(CHUNK, CHUNK) == b"n" * CHUNK


def test_a_copy_is_not_committed_while_a_read_looks_at_the_origin() -> None:
    """Another host may act on an entry as soon as it can be read: this host's reads of the chunk end first."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)  # region EX, tail and extent are cached
    answers = start_read(host, "snapshot/s1", CHUNK, CHUNK)
    read = host.engine._running.pop()  # its completion is held back
    start_write(host, "origin", CHUNK, b"n" * CHUNK)
    rig.run()
    assert host.volume.stack[0].store.core.count == 1 and rig.origin.peek(CHUNK, CHUNK) == chunk(1)
    late = start_read(host, "snapshot/s1", CHUNK, 512)
    rig.run()
    assert not late, "a read began while the chunk was about to be committed"
    host.engine._running.append(read)
    rig.run()
    assert answers == [(0, chunk(1))] and late == [(0, chunk(1)[:512])]
    assert rig.origin.peek(CHUNK, CHUNK) == b"n" * CHUNK


def test_a_read_that_arrives_after_the_deadline_is_repeated_not_answered() -> None:
    """Data that arrived past the lease's deadline may be of after a take-over: it is read again after revival."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.read(host, "snapshot/s1", 0, CHUNK)
    answers = start_read(host, "snapshot/s1", CHUNK, CHUNK)
    host.lease = False
    rig.run()
    assert not answers
    host.lease = True
    host.turn()
    rig.run()
    assert answers == [(0, chunk(1))]


def test_past_the_deadline_no_write_reaches_a_device() -> None:
    """Writes that were queued before the deadline stay queued behind it, and go out after revival."""
    rig = Rig()
    host = rig.hosts[0]
    answers: list[int] = []
    host.volume.set_stalled(False)
    host.lease = False
    start = start_write(host, "origin", 0, b"n" * CHUNK)
    rig.run()
    assert not start and rig.origin.peek(0, CHUNK) == chunk(0) and not answers
    host.lease = True
    host.turn()
    rig.run()
    assert start == [0] and rig.origin.peek(0, CHUNK) == b"n" * CHUNK


# ---- locks between hosts


def test_a_bast_waits_for_the_batch_that_the_regions_chunks_are_in() -> None:
    """A region asked back is given up only when its copies are published."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    start_write(a, "origin", CHUNK, b"n" * CHUNK)
    start_read(b, "snapshot/s1", 2 * CHUNK, CHUNK)
    while b.port.outbox:
        rig.locks.deliver()
    a.receive(a.port.inbox.popleft())
    assert a.volume.regions.held(0) == EX and not a.port.outbox
    settle(a)
    released = [message for message in a.port.outbox if isinstance(message, Done)]
    assert released and released[0].resource == "region/0" and released[0].committed[0][1] == 2


def test_a_part_that_waits_for_a_region_is_not_in_flight() -> None:
    """Two hosts that each wait for the other's region both answer basts: nobody waits for ever."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    rig.write(b, "origin", 16 * CHUNK, b"n" * CHUNK)
    across = [start_write(a, "origin", 17 * CHUNK, b"x" * CHUNK), start_write(b, "origin", CHUNK, b"y" * CHUNK)]
    rig.run()
    assert across == [[0], [0]]


def test_a_frozen_host_still_answers_region_and_tail_basts() -> None:
    """While the table drains, a host whose copies need another host's tail gets it."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    rig.write(b, "origin", 16 * CHUNK, b"n" * CHUNK)
    start = start_write(a, "origin", 2 * CHUNK, b"x" * CHUNK)
    b.volume.freeze()
    rig.run()
    assert start == [0]


def test_upgrading_drains_the_reads_first() -> None:
    """EX wanted under CR: the reads under the CR end before the Want is sent."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.read(host, "snapshot/s1", 0, CHUNK)
    start_read(host, "snapshot/s1", CHUNK, CHUNK)
    start_write(host, "origin", 2 * CHUNK, b"n" * CHUNK)
    assert not host.port.outbox
    settle(host)
    assert host.port.outbox[0] == Want("region/0", EX) and host.volume.regions.held(0) == NL


def test_a_table_bast_waits_for_what_runs_and_admits_nothing_new() -> None:
    """Taking a snapshot drains every host: what runs is finished, what comes waits."""
    rig = Rig()
    host = rig.hosts[0]
    running = start_write(host, "origin", 0, b"n" * CHUNK)
    host.receive(Revoke("table", NL))
    waiting = start_write(host, "origin", CHUNK, b"n" * CHUNK)
    assert not host.port.outbox
    settle(host)
    assert running == [0] and not waiting
    assert host.port.outbox[0] == Done("table", NL, ())


def test_everything_acknowledged_before_is_in_the_snapshot_and_nothing_after() -> None:
    """A write that waits for the table to come back is not in the snapshot; one answered before is."""
    rig = Rig(hosts=2)
    a, b = rig.hosts
    rig.write(b, "origin", 0, b"b" * CHUNK)
    spec = rig.snapshot("s1", run=False)
    while not a.volume.frozen or not b.volume.frozen:
        rig.step()
    late = start_write(b, "origin", 0, b"l" * CHUNK)
    rig.run()
    assert late == [0] and rig.read(a, "snapshot/s1", 0, CHUNK) == b"b" * CHUNK
    assert spec.name in {export.name[9:] for export in a.volume.exports()}


# ---- the stack


def test_an_origin_write_is_copied_once_into_the_newest_snapshot() -> None:
    """Two snapshots: one copy, in the newest; the older one reads it through."""
    rig = Rig(hosts=2)
    rig.snapshot("old")
    rig.write(rig.hosts[0], "origin", 0, b"1" * CHUNK)
    rig.snapshot("new")
    rig.write(rig.hosts[1], "origin", 0, b"2" * CHUNK)
    rig.write(rig.hosts[1], "origin", CHUNK, b"2" * CHUNK)
    new, old = rig.hosts[1].volume.stack
    assert (new.store.core.count, old.store.core.count) == (2, 1)
    for host in rig.hosts:
        assert rig.read(host, "snapshot/old", 0, 2 * CHUNK) == chunk(0) + chunk(1)
        assert rig.read(host, "snapshot/new", 0, 2 * CHUNK) == b"1" * CHUNK + chunk(1)


def test_a_write_to_a_snapshot_copies_for_the_next_older_one_first() -> None:
    """The older snapshot keeps what it showed, the newer one changes, the origin is untouched."""
    rig = Rig(hosts=2)
    rig.snapshot("old", writable=True)
    rig.snapshot("new", writable=True)
    a, b = rig.hosts
    assert rig.write(a, "snapshot/new", 512, b"w" * 512) == 0
    for host in rig.hosts:
        assert rig.read(host, "snapshot/new", 0, CHUNK) == chunk(0)[:512] + b"w" * 512 + chunk(0)[1024:]
        assert rig.read(host, "snapshot/old", 0, CHUNK) == chunk(0)
        assert rig.read(host, "origin", 0, CHUNK) == chunk(0)
    assert rig.write(b, "snapshot/new", 1024, b"v" * 512) == 0
    assert rig.read(a, "snapshot/new", 512, 1024) == b"w" * 512 + b"v" * 512


def test_a_write_that_covers_a_whole_chunk_of_a_snapshot_copies_nothing() -> None:
    """Whole chunks go straight to the new chunk; the partial ends of the request are copied."""
    rig = Rig()
    rig.snapshot("s1", writable=True)
    host = rig.hosts[0]
    data = b"h" * 512 + b"i" * CHUNK + b"j" * CHUNK + b"t" * 512
    assert rig.write(host, "snapshot/s1", 2 * CHUNK - 512, data) == 0
    assert rig.read(host, "snapshot/s1", 2 * CHUNK - 512, len(data)) == data
    assert rig.read(host, "snapshot/s1", CHUNK, 512) == chunk(1)[:512]
    assert rig.read(host, "snapshot/s1", 4 * CHUNK + 512, 512) == chunk(4)[:512]
    from snapd import counters

    assert host.words[counters.COPIES] == 4 and rig.origin.data[: 64 * CHUNK] == b"".join(map(chunk, range(64)))


def test_a_read_only_snapshot_refuses_writes() -> None:
    """EPERM, and nothing changes."""
    rig = Rig()
    rig.snapshot("s1")
    assert rig.write(rig.hosts[0], "snapshot/s1", 0, b"w" * 512) == 1
    assert rig.hosts[0].volume.stack[0].store.core.count == 0


# ---- losing and dropping


def test_seed_defect_15_an_invalidated_snapshot_is_noticed_everywhere() -> None:
    """A hit that was cached before the invalidation gives EIO on the other host, not old data."""
    rig = Rig(hosts=2)
    rig.snapshot("s1", cow_chunks=8)
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    assert rig.read(b, "snapshot/s1", 0, CHUNK) == chunk(0)
    assert rig.write(a, "origin", CHUNK, b"n" * 12 * CHUNK) == 0
    answers = start_read(b, "snapshot/s1", 0, CHUNK)
    rig.run()
    assert answers[0][0] == 5


def test_until_the_table_says_so_nobody_skips_a_copy() -> None:
    """Overflow: the write that cannot be copied stalls until the snapshot is invalid in the table."""
    rig = Rig(hosts=2)
    rig.snapshot("s1", cow_chunks=3)
    a, _ = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    stalled = start_write(a, "origin", CHUNK, b"n" * CHUNK)
    settle(a)
    while not any(isinstance(message, Overflow) for message in a.port.outbox):
        assert rig.step()
    settle(a)
    assert not stalled and rig.origin.peek(CHUNK, CHUNK) == chunk(1)
    rig.run()
    assert stalled == [0]


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
def test_a_device_error_in_a_copy_costs_the_snapshot_not_the_write(kind: str) -> None:
    """An error of the COW device (or of the old chunk's read) invalidates; the origin's writer sees none."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    snapshot = host.volume.stack[0]
    if kind == "read":
        failed: list[int] = []
        rig.origin.fail = lambda what, offset: failed.append(1) or 5 if what == "read" and not failed else 0
    else:
        snapshot.device.fail = lambda what, offset: 5 if what == kind else 0
    assert rig.write(host, "origin", 0, b"n" * CHUNK) == 0
    assert rig.locks.snapshots[0].state == "invalid"


def test_an_error_is_reported_to_exactly_its_request() -> None:
    """One bad sector of the origin: that read fails, its neighbours do not."""
    rig = Rig()
    host = rig.hosts[0]
    rig.origin.fail = lambda kind, offset: 5 if offset == 2 * CHUNK else 0
    answers = [start_read(host, "origin", index * CHUNK, CHUNK) for index in range(4)]
    rig.run()
    assert [answer[0][0] for answer in answers] == [0, 0, 5, 0]


def test_dropping_a_snapshot_closes_its_device_and_frees_its_tail() -> None:
    """After a drop the export is gone, the device is closed, and origin writes copy nothing."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    device = a.volume.stack[0].device
    rig.drop("s1")
    assert device.closed and not a.volume.stack and [export.name for export in b.volume.exports()] == ["origin"]
    assert not any(holds for resource, holds in rig.locks.holds.items() if resource.startswith("tail/"))
    assert rig.write(b, "origin", CHUNK, b"n" * CHUNK) == 0


def test_a_name_may_be_used_again() -> None:
    """A snapshot of the same name later is another store: nothing of the first shows."""
    rig = Rig()
    host = rig.hosts[0]
    rig.snapshot("s1")
    rig.write(host, "origin", 0, b"1" * CHUNK)
    rig.drop("s1")
    rig.devices.pop("cow-s1")
    rig.snapshot("s1")
    assert rig.read(host, "snapshot/s1", 0, CHUNK) == b"1" * CHUNK


def test_a_member_that_cannot_open_a_cow_device_serves_nothing() -> None:
    """Without the COW device this host could not keep the snapshot: its I/O waits until it can be opened."""
    rig = Rig(hosts=2)
    a, b = rig.hosts
    spec = rig.format("s1", 64)
    device = rig.devices.pop(spec.path)
    rig.locks.change_table(a.name, lambda: rig.locks.take(spec))
    rig.run()
    start = start_write(b, "origin", 0, b"n" * CHUNK)
    rig.run()
    assert not start and not b.volume.admitting
    rig.devices[spec.path] = device
    for host in rig.hosts:
        host.now += 10**10
        host.table.tick()
        host.turn()
    rig.run()
    assert start == [0] and rig.read(a, "snapshot/s1", 0, CHUNK) == chunk(0)


def test_seed_defect_20_a_wrong_cow_device_is_refused_by_name() -> None:
    """The sidecar ties a COW device to its volume, store, snapshot and origin: anything else is refused."""
    rig = Rig()
    spec = rig.format("s1", 64)
    device = rig.devices[spec.path]
    expected = Expected(VOLUME_UUID, rig.origin, CHUNK)
    verify(expected, spec, device, device.peek(0, 512))
    other = SnapshotSpec("s2", spec.store, spec.path, "active", False, 1)
    with pytest.raises(Refused, match="snapshot is s1, expected s2"):
        verify(expected, other, device, device.peek(0, 512))
    with pytest.raises(Refused, match=r"volume is .* expected 00000000"):
        verify(Expected("00000000-0000-0000-0000-000000000000", rig.origin, CHUNK), spec, device, device.peek(0, 512))
    device.poke(16, bytes(496))
    with pytest.raises(Refused, match="no sidecar"):
        verify(expected, spec, device, device.peek(0, 512))
    with pytest.raises(Refused, match="the origin itself"):
        verify(expected, spec, rig.origin, device.peek(0, 512))


def test_a_store_newer_than_the_table_says_is_refused() -> None:
    """etcd restored from a backup: the device's generation is beyond the table's."""
    rig = Rig()
    spec = rig.format("s1", 64)
    device = rig.devices[spec.path]
    older = SnapshotSpec(spec.name, spec.store, spec.path, "active", False, 0)
    with pytest.raises(Refused, match="set back in time"):
        verify(Expected(VOLUME_UUID, rig.origin, CHUNK), older, device, device.peek(0, 512))


def test_a_grant_of_a_tail_whose_snapshot_is_gone_is_given_back() -> None:
    """Messages cross: a tail granted after the drop is released at once."""
    rig = Rig()
    host = rig.hosts[0]
    host.receive(Grant("tail/3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10", EX, 5))
    assert host.port.outbox[-1] == Done("tail/3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10", NL)


def test_flush_before_any_grant_waits_too() -> None:
    """Every kind of request waits for admission; none is lost."""
    rig = Rig()
    host = rig.hosts[0]
    host.volume.freeze()
    answers: list[int] = []
    host.submit(host.export("origin"), FLUSH, 0, 0, lambda error, _: answers.append(error))
    rig.run()
    assert not answers
    host.volume.thaw()
    host.turn()
    rig.run()
    assert answers == [0]


# ---- sentences of the design that close a hole


def answers_of(host: Host, export: str, operation: int, offset: int, length: int) -> list[int]:
    """Start a request without data and return the list that its answers go to."""
    answers: list[int] = []
    host.submit(host.export(export), operation, offset, length, lambda error, _: answers.append(error))
    return answers


def test_a_member_that_committed_beyond_its_last_bump_announces_it_also_when_its_store_has_failed() -> None:
    """An append failed; what was committed before it is still announced with the region, or others would miss it."""
    rig = Rig(hosts=2)
    spec = rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    assert rig.locks.counters[spec.store][1] == 0  # not bumped: nobody asked
    a.volume.stack[0].device.fail = lambda kind, offset: 5 if kind == "write" and offset < 2 * CHUNK else 0
    start_write(a, "origin", CHUNK, b"n" * CHUNK)
    settle(a)
    a.port.outbox.clear()  # the Overflow is on its way; meanwhile the other host reads the snapshot
    answers = start_read(b, "snapshot/s1", 0, CHUNK)
    rig.run()
    assert answers == [(0, chunk(0))]


def test_a_members_own_bump_that_arrives_with_a_grant_first_hides_nothing() -> None:
    """The grant that shows this member's own bump may overtake the Bumped: what it commits meanwhile is announced."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    rig.write(host, "origin", 16 * CHUNK, b"n" * CHUNK)
    start_write(host, "origin", CHUNK, b"n" * CHUNK)
    store = host.volume.stack[0].store
    while not store.core.busy:
        assert host.reap_one()
    host.receive(Grant("region/2", CR, 1000, (Counter(spec.store, 999, 1),)))
    host.receive(Revoke("region/1", NL))
    assert host.port.outbox[-1] == Done("region/1", NL, ((spec.store, 2),))


def test_a_store_that_the_grant_has_no_counter_for_is_not_trusted() -> None:
    """An absent counter is an untrusted one: the tail is taken and the list read to its end."""
    rig = Rig()
    host = rig.hosts[0]
    spec = rig.format("s1", 64)
    host.receive(Revoke("table", NL))
    host.receive(Grant("table", CR, 50, (), 0, (spec,)))
    assert host.port.outbox[-1] == Want(f"tail/{spec.store}", EX)
    assert not host.volume.admitting


def test_a_region_is_not_trusted_either_while_a_counter_is_absent() -> None:
    """etcd restored, its counters deleted: until one is put again, every grant makes this member read to the end."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    store = host.volume.stack[0].store
    assert store.current
    host.receive(Grant("region/0", CR, 1000))
    assert not store.current and host.port.outbox[-1] == Want(f"tail/{spec.store}", EX)


def test_write_zeroes_on_a_lost_snapshot_fails_once_however_long_it_is() -> None:
    """Thousands of parts that fail at once: one answer, no recursion."""
    rig = Rig()
    rig.snapshot("s1", cow_chunks=3, writable=True)
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * 4 * CHUNK)
    assert rig.locks.snapshots[0].state == "invalid"
    answers: list[int] = []
    request = Request(host.export("snapshot/s1"), ZERO, 0, 4 << 30, [], False, lambda _, error: answers.append(error))
    host.volume.submit(request)
    assert answers == [EIO]


def test_parts_that_wait_for_a_region_do_not_keep_the_table() -> None:
    """A request waiting for a lock is not in flight: the table is given back although the region never comes."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(b, "origin", 0, b"n" * CHUNK)
    waiting = start_write(a, "origin", CHUNK, b"n" * CHUNK)
    assert a.port.outbox[-1] == Want("region/0", EX)
    a.receive(Revoke("table", NL))
    assert a.port.outbox[-1] == Done("table", NL, ())
    assert not waiting
    rig.run()
    assert waiting == [0]


def test_a_region_revoked_while_stalled_is_kept_until_its_copy_is_published() -> None:
    """Past the deadline a copy can neither be written nor forgotten: the region stays; an unused one goes at once."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    rig.write(a, "origin", 16 * CHUNK, b"n" * CHUNK)
    a.lease = False
    a.turn()
    a.lease = True
    a.volume.set_stalled(False)
    start = start_write(a, "origin", CHUNK, b"n" * CHUNK)
    a.lease = False
    a.turn()
    reads = [start_read(b, "snapshot/s1", 2 * CHUNK, CHUNK), start_read(b, "snapshot/s1", 17 * CHUNK, CHUNK)]
    rig.run()
    assert not reads[0] and reads[1] == [(0, chunk(17))]
    assert not start and rig.origin.peek(CHUNK, CHUNK) == chunk(1)
    a.lease = True
    a.turn()
    rig.run()
    assert start == [0] and reads[0] == [(0, chunk(2))]


def test_a_demotion_to_cr_lets_reads_of_both_hosts_go_on() -> None:
    """A reader elsewhere costs the writer its EX but not its CR."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    rig.read(b, "snapshot/s1", CHUNK, CHUNK)
    assert rig.locks.holds["region/0"] == {"host-a": CR, "host-b": CR}
    before = rig.locks.grants
    assert rig.read(a, "snapshot/s1", 2 * CHUNK, CHUNK) == chunk(2)
    assert rig.locks.grants == before


def test_requests_are_split_at_region_boundaries() -> None:
    """A write over a boundary holds one region a part: the other region may be elsewhere all the time."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(b, "origin", 17 * CHUNK, b"n" * CHUNK)
    rig.write(a, "origin", 0, b"n" * CHUNK)
    answers = start_write(a, "origin", 15 * CHUNK, b"x" * 2 * CHUNK)
    while rig.locks.deliver() or rig._receive(a) or a.reap_one():
        pass  # the other host gets nothing to see, and gives nothing back
    assert not answers
    assert rig.origin.peek(15 * CHUNK, CHUNK) == b"x" * CHUNK  # its first half went through
    assert rig.origin.peek(16 * CHUNK, CHUNK) == chunk(16)


def test_a_grant_that_shows_a_moved_counter_is_used_only_after_the_delta_is_read() -> None:
    """A miss under a fresh hold waits for the re-read that began after the grant, and then looks again."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    answers = start_read(b, "snapshot/s1", 0, CHUNK)
    while not b.port.inbox:
        assert rig.locks.deliver() or rig._receive(a) or a.reap_one()
    b.receive(b.port.inbox.popleft())
    assert b.volume.regions.held(0) == CR and not b.volume.stack[0].store.current
    assert all(operation[1] is not rig.origin for operation in b.engine._running)
    rig.run()
    assert answers == [(0, chunk(0))]


def test_an_error_of_the_next_older_store_costs_the_older_snapshots_only() -> None:
    """A write to a snapshot copies into the older one; if that fails the older one is lost, the write is done."""
    rig = Rig()
    rig.snapshot("old")
    rig.snapshot("new", writable=True)
    host = rig.hosts[0]
    host.volume.stack[1].device.fail = lambda kind, offset: 5 if kind == "write" else 0
    assert rig.write(host, "snapshot/new", 0, b"w" * 512) == 0
    assert {spec.name: spec.state for spec in rig.locks.snapshots} == {"new": "active", "old": "invalid"}
    assert rig.read(host, "snapshot/new", 0, 512) == b"w" * 512


def test_write_zeroes_to_a_snapshot_copies_for_the_next_older_one_first() -> None:
    """WRITE_ZEROES is a write on every level."""
    rig = Rig()
    rig.snapshot("old")
    rig.snapshot("new", writable=True)
    host = rig.hosts[0]
    assert rig.zero(host, "snapshot/new", 512, 3 * CHUNK) == 0
    assert rig.read(host, "snapshot/new", 0, 4 * CHUNK) == (chunk(0)[:512] + bytes(3 * CHUNK) + chunk(3)[512:])
    assert rig.read_all(host, "snapshot/old") == b"".join(map(chunk, range(64)))


@pytest.mark.parametrize("length", [512, CHUNK])
def test_fua_on_a_snapshot_is_durable_when_answered(length: int) -> None:
    """In place: the write itself carries FUA. A whole new chunk: the commit flushes the COW device behind it."""
    rig = Rig()
    rig.snapshot("s1", writable=True)
    host = rig.hosts[0]
    device = host.volume.stack[0].device
    asked: list[bool] = []
    write = host.engine.write

    def spy(which: Any, where: int, size: int, offset: int, done: Any, arg: Any, fua: bool = False) -> None:
        if which is device and offset >= 2 * CHUNK:
            asked.append(fua)
        write(which, where, size, offset, done, arg, fua)

    host.engine.write = spy  # type: ignore[method-assign]
    device.log = []
    answers: list[int] = []
    where = host.buffers[0]
    host.volume.submit(
        Request(host.export("snapshot/s1"), WRITE, 0, length, [(where, length)], True, lambda _, e: answers.append(e))
    )
    host.turn()
    rig.run()
    assert answers == [0]
    assert asked == ([False] if length == CHUNK else [True])
    kinds = [(kind, offset) for kind, offset, _ in device.log]
    assert kinds.index(("flush", 0)) < kinds.index(("write", CHUNK))  # data, flush, entry


def test_reads_of_other_chunks_begin_while_one_is_closing() -> None:
    """Only reads of the chunk that is being committed wait."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    start_read(host, "snapshot/s1", CHUNK, CHUNK)
    read = host.engine._running.pop()
    start_write(host, "origin", CHUNK, b"n" * CHUNK)
    rig.run()
    assert rig.read(host, "snapshot/s1", 2 * CHUNK, CHUNK) == chunk(2)
    host.engine._running.append(read)
    rig.run()


def test_chunks_that_are_reserved_while_a_write_asks_for_one_are_used_by_it() -> None:
    """A tail granted and asked back at once serves one reservation: the write that causes it must not go to sleep."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    core = host.volume.stack[0].store.core
    answers = start_write(host, "origin", 0, b"n" * CHUNK)
    while Want(f"tail/{spec.store}", EX) not in host.port.outbox:
        assert rig.step()
    host.port.outbox.clear()
    core.busy = True
    host.receive(Grant(f"tail/{spec.store}", EX, 100, (Counter(spec.store, 1, 0),)))
    host.receive(Revoke(f"tail/{spec.store}", NL))
    core.busy = False
    host.volume.wake()
    host.turn()
    assert core.reserved_until and host.port.outbox[0].resource == f"tail/{spec.store}"
    assert host.engine.inflight, "the write did not go on"
    rig.locks.holds[f"tail/{spec.store}"] = {host.name: EX}
    rig.run()
    assert answers == [0]


def test_a_host_alone_sends_nothing_in_steady_state() -> None:
    """Locks are cached: once warm, writes, copies, commits and snapshot reads exchange no message."""
    rig = Rig(origin_chunks=64, region_chunks=16)
    rig.snapshot("s1")
    host = rig.hosts[0]
    for region in range(4):
        rig.write(host, "origin", region * 16 * CHUNK, b"n" * CHUNK)
    before = len(host.port.seen)
    for index in range(8):
        rig.write(host, "origin", (index % 4 * 16 + 1 + index // 4) * CHUNK, b"m" * CHUNK)
        rig.read(host, "snapshot/s1", (index % 4 * 16 + 5) * CHUNK, 2 * CHUNK)
    assert len(host.port.seen) == before
    assert host.volume.stack[0].store.core.count == 12


def test_a_region_that_is_asked_back_admits_nothing_new() -> None:
    """While its last copy is under way, new reads and writes of the region wait, so that the drain has an end."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    start_write(host, "origin", CHUNK, b"n" * CHUNK)
    host.receive(Revoke("region/0", NL))
    before = host.engine.inflight
    late = [start_write(host, "origin", 2 * CHUNK, b"n" * CHUNK), start_read(host, "snapshot/s1", 3 * CHUNK, CHUNK)]
    assert host.engine.inflight == before
    hit = start_read(host, "snapshot/s1", 0, CHUNK)
    settle(host)
    assert hit == [(0, chunk(0))] and late == [[], []]
    assert host.port.outbox[0].resource == "region/0"
    rig.locks.revoked["region/0"] = {host.name}
    rig.run()
    assert late == [[0], [(0, chunk(3))]]


def test_tails_are_leaves_two_hosts_that_want_each_others_get_on() -> None:
    """A tail is given back whatever else its holder waits for: each host has one and needs the other's."""
    rig = Rig(hosts=2)
    rig.snapshot("old", writable=True)
    rig.write(rig.hosts[0], "snapshot/old", 0, b"w" * CHUNK)
    rig.snapshot("new", writable=True)
    a, b = rig.hosts
    rig.write(b, "snapshot/new", 16 * CHUNK, b"w" * CHUNK)
    across = [
        start_write(a, "snapshot/new", 32 * CHUNK, b"x" * 512),
        start_write(b, "snapshot/old", 48 * CHUNK, b"y" * 512),
    ]
    rig.run()
    assert across == [[0], [0]]


def test_a_frozen_host_gives_its_regions_back() -> None:
    """The coordinator of a snapshot may need a region before it can drain: frozen or not, it is given."""
    rig = Rig(hosts=2)
    rig.snapshot("s1")
    a, b = rig.hosts
    rig.write(b, "origin", 16 * CHUNK, b"n" * CHUNK)
    b.volume.freeze()
    answers = start_write(a, "origin", 17 * CHUNK, b"x" * CHUNK)
    rig.run()
    assert answers == [0] and not b.volume.admitting


def test_an_in_place_write_to_a_snapshot_needs_no_lock() -> None:
    """Its own store and the next older one have the chunk: nothing can be copied any more, so nothing is locked."""
    rig = Rig(hosts=2)
    rig.snapshot("old")
    rig.snapshot("new", writable=True)
    a, b = rig.hosts
    rig.write(a, "snapshot/new", 0, b"w" * CHUNK)
    rig.write(b, "origin", CHUNK, b"n" * CHUNK)  # the region is b's; its grant made a's exceptions known
    rig.read(a, "snapshot/old", 2 * CHUNK, CHUNK)
    rig.write(b, "origin", 3 * CHUNK, b"n" * CHUNK)
    assert rig.locks.holds["region/0"] == {"host-b": EX}
    before = rig.locks.grants
    assert rig.write(a, "snapshot/new", 512, b"v" * 512) == 0
    assert rig.locks.grants == before
    assert rig.read(b, "snapshot/old", 0, CHUNK) == chunk(0)


def test_a_hit_without_an_older_hit_is_not_written_in_place() -> None:
    """The older store lacks the chunk: its copy comes first, under the region's EX."""
    rig = Rig(hosts=2)
    rig.snapshot("old")
    rig.snapshot("new", writable=True)
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)  # copied into "new" only
    assert rig.write(b, "snapshot/new", 0, b"w" * 512) == 0
    assert rig.read(a, "snapshot/old", 0, CHUNK) == chunk(0)
    assert rig.read(a, "snapshot/new", 0, CHUNK) == b"w" * 512 + chunk(0)[512:]


def test_other_chunks_go_on_while_one_is_copied() -> None:
    """Only writes to the chunk that is being copied wait for it."""
    rig = Rig()
    rig.snapshot("s1")
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    first = start_write(host, "origin", CHUNK, b"a" * 512)
    read = host.engine._running.pop()  # its copy does not get on
    behind = start_write(host, "origin", CHUNK + 512, b"b" * 512)
    other = start_write(host, "origin", 2 * CHUNK, b"c" * 512)
    rig.run()
    assert (first, behind, other) == ([], [], [0])
    host.engine._running.append(read)
    rig.run()
    assert first == behind == [0]


def test_a_write_that_cannot_be_copied_gives_its_region_back() -> None:
    """The store is full: the write stalls without a lock, and another host's reads of the region go on."""
    rig = Rig(hosts=2)
    rig.snapshot("s1", cow_chunks=3)
    a, b = rig.hosts
    rig.write(a, "origin", 0, b"n" * CHUNK)
    stalled = start_write(a, "origin", CHUNK, b"n" * CHUNK)
    settle(a)
    while not any(isinstance(message, Overflow) for message in a.port.outbox):
        assert rig.step()
    settle(a)
    overflow = [message for message in a.port.outbox if isinstance(message, Overflow)]
    a.port.outbox.clear()  # the control process takes its time
    assert rig.read(b, "snapshot/s1", 2 * CHUNK, CHUNK) == chunk(2)
    assert not stalled
    a.port.outbox.extend(overflow)
    rig.run()
    assert stalled == [0]


def test_a_lost_snapshot_that_the_table_still_calls_active_is_told_again() -> None:
    """The first Overflow met another change of the table: with the next grant it is repeated, so no write hangs."""
    rig = Rig()
    rig.snapshot("s1", cow_chunks=3)
    host = rig.hosts[0]
    rig.write(host, "origin", 0, b"n" * CHUNK)
    stalled = start_write(host, "origin", CHUNK, b"n" * CHUNK)
    while not any(isinstance(message, Overflow) for message in host.port.outbox):
        assert rig.step()
    host.port.outbox.clear()
    rig.locks.change_table(host.name, lambda: None)
    rig.run()
    assert stalled == [0] and rig.locks.snapshots[0].state == "invalid"


def test_invalidating_writes_valid_0_with_fua_and_leaves_the_rest_of_the_header() -> None:
    """On the member that holds table EX; it reports when that is on stable storage."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    device = rig.devices[spec.path]
    before = device.peek(0, CHUNK)
    asked: list[bool] = []
    write = host.engine.write

    def spy(which: Any, where: int, size: int, offset: int, done: Any, arg: Any, fua: bool = False) -> None:
        asked.append(fua)
        write(which, where, size, offset, done, arg, fua)

    host.engine.write = spy  # type: ignore[method-assign]
    host.receive(Invalidate(7, spec.store))
    assert not host.port.outbox
    settle(host)
    assert host.port.outbox[0] == Invalidated(7, "") and asked == [True]
    assert device.peek(0, CHUNK) == before[:4] + bytes(4) + before[8:]
    host.receive(Invalidate(8, spec.store))
    assert host.port.outbox[1] == Invalidated(8, "") and len(asked) == 1


def test_invalidating_that_fails_is_reported() -> None:
    """The control process must not mark invalid what a kernel would still read as valid."""
    rig = Rig()
    spec = rig.snapshot("s1")
    host = rig.hosts[0]
    host.volume.stack[0].device.fail = lambda kind, offset: 5 if kind == "write" else 0
    host.receive(Invalidate(7, spec.store))
    settle(host)
    (answer,) = (message for message in host.port.outbox if isinstance(message, Invalidated))
    assert "header: Input/output error" in answer.error


def test_a_member_that_cannot_use_a_new_snapshots_device_refuses_by_name() -> None:
    """Prepare opens the device and verifies its sidecar before anything is taken; what was opened is used then."""
    rig = Rig()
    host = rig.hosts[0]
    spec = rig.format("s1", 64)
    absent = SnapshotSpec("s2", spec.store, "nowhere", "creating", False, 1)
    wrong = SnapshotSpec("s2", "3a0e8a70-6d8a-4c8f-a3a5-0f2f4f0f6a10", spec.path, "creating", False, 1)
    for number, asked in enumerate((absent, wrong, spec)):
        host.receive(Prepare(number, asked))
    errors = [message.error for message in host.port.outbox if isinstance(message, Prepared)]
    assert errors[0] == "nowhere: no such device" and "a wrong device" in errors[1] and errors[2] == ""
    assert [export.name for export in host.volume.exports()] == ["origin"]
    rig.devices.pop(spec.path)  # it must not be opened a second time
    rig.locks.change_table(host.name, lambda: rig.locks.take(spec))
    rig.run()
    assert rig.read(host, "snapshot/s1", 0, CHUNK) == chunk(0)


def test_a_snapshot_that_was_not_taken_after_all_leaves_no_device_open() -> None:
    """Forget closes what Prepare opened."""
    rig = Rig()
    host = rig.hosts[0]
    spec = rig.format("s1", 64)
    host.receive(Prepare(1, spec))
    device = host.table._prepared[spec.store]
    host.receive(Forget(spec.store))
    assert device.closed and not host.table._prepared
    host.receive(Forget(spec.store))  # again: nothing to do


# ---- the end


def wind_up(host: Host, error: int) -> None:
    """What the worker does when it is fenced: nothing is handed over, what is with the device ends."""
    host.volume.fail_all(error)
    while host.volume.running or host.engine.inflight:
        host.engine.abort_queued(error)
        host.engine.reap()
        host.volume.end_turn()


def test_fencing_answers_every_request_exactly_once() -> None:
    """Requests in every queue and at every stage of a copy: each is answered once, and no snapshot is given up."""
    for steps in range(40):
        rig = Rig(hosts=2, copy_buffers=2, seed=steps)
        rig.snapshot("old")
        rig.snapshot("new", writable=True)
        a, b = rig.hosts
        rig.write(b, "origin", 32 * CHUNK, b"n" * CHUNK)
        a.buffers += [a.arena.allocate(32 * CHUNK) for _ in range(6)]
        answers = [
            start_write(a, "origin", 0, b"x" * 4 * CHUNK),
            start_write(a, "origin", 512, b"y" * 512),
            start_write(a, "origin", 15 * CHUNK, b"z" * 20 * CHUNK),
            start_write(a, "snapshot/new", 3 * CHUNK, b"w" * 3 * CHUNK),
            start_write(a, "snapshot/new", 40 * CHUNK + 512, b"w" * 512),
        ]
        reads = [start_read(a, name, 0, 8 * CHUNK) for name in ("origin", "snapshot/new", "snapshot/old")]
        more = [
            answers_of(a, "origin", ZERO, 0, 64 * CHUNK),
            answers_of(a, "snapshot/new", ZERO, 512, 60 * CHUNK),
            answers_of(a, "origin", FLUSH, 0, 0),
            answers_of(a, "snapshot/new", FLUSH, 0, 0),
        ]
        for _ in range(steps * 3):
            rig.step()
        a.volume.set_stalled(steps % 2 == 1)
        before = len(a.port.outbox)
        wind_up(a, EIO)
        assert all(len(answer) == 1 for answer in [*answers, *reads, *more]), steps
        late = [start_write(a, "origin", 0, b"l" * 512), answers_of(a, "origin", ZERO, 0, 64 * CHUNK)]
        assert late == [[EIO], [EIO]]
        assert not any(isinstance(message, Overflow) for message in list(a.port.outbox)[before:])
        assert a.volume.regions.waiting == 0 and not a.volume.copies.closing._count
