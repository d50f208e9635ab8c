"""Where a slow request's time went: stages with virtual time, over devices in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from snapd import trace
from snapd.messages import EX, SnapshotSpec
from snapd.trace import KEPT, LIVE, SIZES, STAGES, UNDER_WAY, Page, Record, half, head, read
from snapd.units import SECOND
from snapd.volume.request import READ, WRITE, Request
from snapd.volume.stages import Stages
from tests.support.nbd_peer import Peer, write
from tests.support.worker_rig import CHUNK, Host, Rig

MS = SECOND // 1000


def page() -> memoryview:
    return memoryview(bytearray(trace.PAGE_BYTES)).cast("Q")


class Traced:
    """A rig's host whose requests arrive with a time, and whose slow ones are noted, as the server does it."""

    def __init__(self, rig: Rig, host: int = 0) -> None:
        self.rig = rig
        self.host: Host = rig.hosts[host]
        self.words = page()
        self.host.now = self.host.now or SECOND
        self.host.volume.stages.page = Page(self.words)
        self.requests: list[Request] = []

    def start(self, operation: int, export: str, offset: int, length: int) -> Request:
        where = self.host.buffers.pop()
        segments = [(where, length)]

        def done(request: Request, error: int) -> None:
            self.host.volume.stages.slow(request, error)
            request.started = 0

        request = Request(self.host.export(export), operation, offset, length, segments, False, done)
        request.started = self.host.now
        self.requests.append(request)
        self.host.volume.submit(request)
        self.host.turn()
        return request

    def passes(self, milliseconds: int) -> None:
        self.host.now += milliseconds * MS

    def one(self) -> Record:
        """Return the only record there is."""
        (record,) = [*read(self.words, KEPT), *read(self.words, LIVE)]
        return record

    def under_way(self) -> list[Record]:
        unanswered = self.host.volume.unanswered()
        assert set(unanswered) == {request for request in self.requests if request.started}
        oldest_first = sorted(unanswered, key=lambda request: request.started)
        self.host.volume.stages.tick(oldest_first, self.host.volume)
        return list(read(self.words, UNDER_WAY))


def spent(record: Record) -> dict[str, int]:
    """Return the stages that took time, in ms."""
    return {name: took // MS for name, took in zip(STAGES, record.spent, strict=True) if took}


def settle(host: Host) -> None:
    """Complete this host's I/O without delivering any message."""
    while host.reap_one():
        pass


def deliver(rig: Rig, traced: Traced, stage: int) -> None:
    """Deliver messages, completing no I/O, until the request is in ``stage``."""
    while traced.requests[0].timeline.stage != stage:
        if traced.host.port.inbox:
            traced.host.receive(traced.host.port.inbox.popleft())
        else:
            assert rig.locks.deliver(None)


def snapshot(rig: Rig) -> SnapshotSpec:
    return rig.snapshot("s1")


# ---- stages


def test_a_slow_origin_is_io() -> None:
    """A read and a write that the device answers late spent their time there, from the first moment on."""
    rig = Rig()
    for operation in (READ, WRITE):
        traced = Traced(rig)
        traced.start(operation, "origin", CHUNK, CHUNK)
        traced.passes(120)
        settle(traced.host)
        record = traced.one()
        assert spent(record) == {"io": 120}
        assert (record.operation, record.offset, record.length, record.export, record.took) == (
            operation, CHUNK, CHUNK, 0, 120 * MS,
        )  # fmt: skip


def test_every_stage_of_a_copy_out() -> None:
    """An origin write under a new snapshot: lock, tail, read, copy, commit, write; the sum is what it took."""
    rig = Rig()
    spec = snapshot(rig)
    traced = Traced(rig)
    host = traced.host
    traced.start(WRITE, "origin", 20 * CHUNK, CHUNK)
    traced.passes(5)  # waits for region 1
    deliver(rig, traced, trace.SPACE)
    traced.passes(7)  # waits for chunks, which are reserved under the tail
    deliver(rig, traced, trace.READ_OLD)
    traced.passes(11)
    host.reap_one()  # the old content
    traced.passes(13)
    host.reap_one()  # the copy; the tail is held, the batch begins with a flush
    traced.passes(17)
    host.reap_one()  # the flush
    host.reap_one()  # the entries
    traced.passes(19)
    settle(host)
    record = traced.one()
    assert spent(record) == {"region": 5, "tail": 7, "read_old": 11, "write_cow": 13, "commit": 17, "io": 19}
    assert sum(record.spent) == record.took == 72 * MS
    assert record.region == 1 and record.store == half(spec.store) and record.export == 0


def test_a_commit_that_waits_for_the_tail_says_so() -> None:
    """Another host appends meanwhile: what is waited for is the tail, not the device."""
    rig = Rig(hosts=2)
    spec = snapshot(rig)
    first, second = rig.hosts
    rig.write(first, "origin", 0, b"n" * CHUNK)  # an extent of its own
    rig.write(second, "origin", 20 * CHUNK, b"n" * CHUNK)
    rig.write(second, "origin", 21 * CHUNK, b"n" * CHUNK)  # the tail is there
    traced = Traced(rig, 0)
    if rig.locks.holds.get(f"tail/{spec.store}", {}).get(first.name):
        pytest.fail("the tail went back")
    traced.start(WRITE, "origin", CHUNK, CHUNK)
    settle(first)
    traced.passes(30)
    rig.run()
    record = traced.one()
    assert spent(record) == {"tail": 30} and record.store == half(spec.store)


def test_a_table_that_is_asked_back_and_a_lease_that_ran_out() -> None:
    """Requests that are not admitted say why."""
    rig = Rig()
    traced = Traced(rig)
    traced.host.volume.freeze()
    traced.start(READ, "origin", 0, CHUNK)
    traced.passes(40)
    assert [(spent(record), STAGES[record.stage]) for record in traced.under_way()] == []  # not slow yet
    traced.passes(80)
    assert [(spent(record), STAGES[record.stage]) for record in traced.under_way()] == [({"table": 120}, "table")]
    traced.host.volume.thaw()
    traced.host.turn()
    settle(traced.host)
    assert spent(traced.one()) == {"table": 120}
    assert traced.under_way() == []
    traced = Traced(rig)
    traced.host.lease = False
    traced.host.turn()
    traced.start(WRITE, "origin", 0, CHUNK)
    traced.passes(50)
    traced.host.lease = True
    traced.host.turn()
    traced.passes(60)
    settle(traced.host)
    assert spent(traced.one()) == {"lease": 50, "io": 60}


def test_a_write_that_the_gate_held_back_waited_for_the_lease() -> None:
    """It was on its way to the device when the deadline passed: the device is not to blame."""
    rig = Rig()
    traced = Traced(rig)
    traced.host.lease = False  # seen by the engine first, by the volume in its next turn
    traced.start(WRITE, "origin", 0, CHUNK)
    traced.passes(70)
    traced.host.lease = True
    traced.host.turn()
    traced.passes(50)
    settle(traced.host)
    assert spent(traced.one()) == {"lease": 70, "io": 50}


def test_reads_behind_a_commit_and_of_a_snapshot() -> None:
    """A snapshot read that falls through waits for its region; one that hits does not."""
    rig = Rig()
    spec = snapshot(rig)
    traced = Traced(rig)
    traced.start(READ, "snapshot/s1", 0, CHUNK)
    traced.passes(15)
    rig.run()
    record = traced.one()
    assert spent(record) == {"region": 15} and record.export == half(spec.store) and record.region == 0


def test_the_part_that_was_last_is_told() -> None:
    """A write over two regions, of which one is another host's: the wait is the record's, and counted once."""
    rig = Rig(hosts=2, region_chunks=4)
    snapshot(rig)
    rig.write(rig.hosts[0], "origin", 0, b"n" * 4 * CHUNK)
    rig.write(rig.hosts[1], "origin", 4 * CHUNK, b"n" * CHUNK)
    traced = Traced(rig)
    traced.start(WRITE, "origin", 2 * CHUNK, 4 * CHUNK)
    settle(traced.host)
    traced.passes(25)
    rig.run()
    record = traced.one()
    assert spent(record) == {"region": 25} and record.region == 1
    assert rig.locks.holds["region/1"][traced.host.name] == EX


def test_a_request_that_hangs_in_a_copy_shows_the_stage_it_is_in() -> None:
    """What is under way is looked at, also while the COW device does not answer."""
    rig = Rig()
    snapshot(rig)
    rig.write(rig.hosts[0], "origin", 0, b"n" * CHUNK)
    traced = Traced(rig)
    traced.start(WRITE, "origin", CHUNK, CHUNK)
    traced.passes(10)
    traced.host.reap_one()
    traced.passes(400)
    (record,) = traced.under_way()
    assert spent(record) == {"read_old": 10, "write_cow": 400} and STAGES[record.stage] == "write_cow"
    traced.host.reap_one()
    traced.passes(300)
    (record,) = traced.under_way()
    assert spent(record) == {"read_old": 10, "write_cow": 400, "commit": 300} and STAGES[record.stage] == "commit"


def test_what_is_in_use_is_told() -> None:
    """Regions with a copy-out under way, and nothing any more when it has ended."""
    rig = Rig()
    snapshot(rig)
    traced = Traced(rig)
    traced.start(WRITE, "origin", 20 * CHUNK, CHUNK)
    while not traced.host.volume.stack[0].copies:
        rig.step()
    traced.under_way()
    assert trace.used(traced.words).regions == {1} and trace.used(traced.words).running == 1
    rig.run()
    traced.under_way()
    assert trace.used(traced.words).regions == set() and trace.used(traced.words).running == 0


def test_a_payload_that_comes_slowly_is_no_fault_of_the_disk() -> None:
    """A WRITE whose payload took its time was queued; one whose payload is awaited is shown as queued."""
    peer = Peer()
    words = page()
    stages = Stages(lambda: peer.now)
    stages.page = Page(words)
    desk = peer.desk
    desk.slow, desk.on_slow, desk.on_late = trace.KEPT_FROM, stages.slow, stages.queued
    peer.now = SECOND
    said = write(0, b"x" * 4096, 1)
    peer.say(said[:2000])
    peer.volume.hold = True
    peer.now += 150 * MS
    peer.talk.received_later(len(said) - 2000)
    peer.now = desk.now = peer.now + 20 * MS
    peer.volume.release()
    (record,) = read(words, KEPT)
    assert spent(record) == {"queued": 150, "io": 20}


# ---- the ring


def record(took: int = trace.KEPT_FROM, ended: int = 5) -> list[int]:
    return [ended, took, 1 | 5 << 8, 4096, 512, 7, 3, 9, 2, *range(len(STAGES))]


def test_a_ring_keeps_the_last_and_loses_the_first() -> None:
    """Numbers go on; who reads behind the ring's length gets what is there."""
    words = page()
    writer = Page(words)
    for took in range(1, SIZES[KEPT] + 11):
        writer.note(record(took + trace.KEPT_FROM))
    found = list(read(words, KEPT, 5))
    assert [each.sequence for each in found] == list(range(11, SIZES[KEPT] + 11))
    assert found[0].took == 11 + trace.KEPT_FROM and head(words, KEPT) == SIZES[KEPT] + 10
    assert next(read(words, KEPT, SIZES[KEPT] + 9)) == Record(
        SIZES[KEPT] + 10, 5, SIZES[KEPT] + 10 + trace.KEPT_FROM, 1, 5, 4096, 512, 7, 2, 9, 2, tuple(range(len(STAGES)))
    )
    assert list(read(words, LIVE)) == []


def test_a_torn_record_is_left_out() -> None:
    """Whatever word the writer had come to: the record is not shown, the others are."""
    tears: list[Callable[[memoryview, int], None]] = [
        lambda words, at: words.__setitem__(at, 0),
        lambda words, at: words.__setitem__(at + trace.AGAIN, 0),
        lambda words, at: words.__setitem__(at, 2 + SIZES[KEPT]),
    ]
    for tear in tears:
        words = page()
        for _ in range(3):
            Page(words).note(record())
        tear(words, trace.RINGS[KEPT] + trace.RECORD)
        assert [each.sequence for each in read(words, KEPT)] == [1, 3]


def test_the_worst_of_a_long_incident_are_kept() -> None:
    """Of each ten seconds the four slowest, also when a thousand others have come since."""
    words = page()
    writer = Page(words)
    for second in range(60):
        for index in range(100):
            writer.note(record(trace.KEPT_FROM + second * 1000 + index, second * SECOND))
    worst = [(each.ended // SECOND, each.took - trace.KEPT_FROM) for each in read(words, trace.WORST)]
    assert sorted(worst) == [(second, second * 1000 + index) for second in range(9, 60, 10) for index in range(96, 100)]
    assert next(read(words, KEPT)).ended > 48 * SECOND
