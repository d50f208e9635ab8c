"""The lock machine in virtual time: several members, one simulated etcd, scripted workers."""

from __future__ import annotations

from snapd.lockspace.kv import Put, Txn
from snapd.lockspace.records import SnapshotRecord
from snapd.messages import CR, EX, NL, UNTRUSTED, Revoke
from snapd.units import SECOND
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import STORE, UUID, LockRig

REGION, TAIL = "region/7", f"tail/{STORE}"


def test_a_member_joins_and_is_granted_the_table() -> None:
    """After joining, the member record, its liveness and its table CR are in etcd, and the worker has the table."""
    rig = LockRig("host-a")
    assert rig.a.holds("table") == CR
    assert {key.partition("/")[0] for key in rig.stored()} == {"m", "a", "h"}
    assert rig.a.states[-1] == "active"


def test_an_uncontended_lock_takes_one_round_trip() -> None:
    """A free lock is held after one transaction and no other call."""
    rig = LockRig("host-a")
    before = rig.a.member.resources.transactions
    start = rig.scheduler.now()
    rig.a.want(REGION, EX)
    rig.until(lambda: rig.a.holds(REGION) == EX, 1)
    assert rig.a.member.resources.transactions == before + 1
    assert rig.scheduler.now() - start == 2 * rig.etcd.latency


def test_a_host_alone_sends_nothing_but_keepalives_and_progress() -> None:
    """In steady state no transaction and no range leaves a member."""
    rig = LockRig("host-a")
    kinds: list[str] = []

    def record(call: Call) -> Fault:
        kinds.append(call.kind)
        return NO_FAULT

    rig.etcd.fault = record
    rig.run(30)
    assert set(kinds) <= {"lease_keepalive", "progress", "notice"}
    assert "lease_keepalive" in kinds


def test_readers_share_and_a_writer_excludes_them() -> None:
    """CR is held by two at once; EX asks both back and is granted when both have given it up."""
    rig = LockRig("host-a", "host-b", "host-c")
    rig.a.want(REGION, CR)
    rig.b.want(REGION, CR)
    rig.settle()
    assert rig.a.holds(REGION) == rig.b.holds(REGION) == CR
    rig.a.worker.in_use.add(REGION)
    rig.c.want(REGION, EX)
    rig.settle()
    assert rig.c.holds(REGION) == NL
    assert rig.b.holds(REGION) == NL
    rig.a.worker.give_back(REGION)
    rig.settle()
    assert rig.c.holds(REGION) == EX


def test_a_reader_leaves_the_writer_a_cr() -> None:
    """Only CR is asked of an EX holder if readers wait: it keeps CR."""
    rig = LockRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.b.want(REGION, CR)
    rig.settle()
    assert rig.a.holds(REGION) == rig.b.holds(REGION) == CR
    assert Revoke(REGION, CR) in rig.a.worker.received


def test_tickets_are_served_in_order_and_without_vain_grants() -> None:
    """Waiters get the lock in the order they came, and nobody tries a grant that must fail."""
    rig = LockRig("host-a", "host-b", "host-c", "host-d")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    order = []
    for host in (rig.c, rig.b, rig.d):
        host.worker.in_use.add(REGION)
        host.want(REGION, EX)
        rig.settle()
    rig.a.worker.give_back(REGION)
    for _ in range(3):
        rig.settle()
        holder = next(host for host in rig.hosts.values() if host.holds(REGION))
        order.append(holder.node)
        holder.worker.give_back(REGION)
    assert order == ["host-c", "host-b", "host-d"]
    assert sum(host.member.resources.refusals for host in rig.hosts.values()) == 0


def test_two_cr_holders_that_both_convert_do_not_deadlock() -> None:
    """The second conversion gives its CR up and queues; both get EX, one after the other."""
    rig = LockRig("host-a", "host-b")
    for host in (rig.a, rig.b):
        host.want(REGION, CR)
    rig.settle()
    for host in (rig.a, rig.b):
        host.worker.held.pop(REGION)
        host.want(REGION, EX)
    rig.settle()
    assert sorted((rig.a.holds(REGION), rig.b.holds(REGION))) == [NL, EX]
    assert len(rig.a.grants(REGION)) == len(rig.b.grants(REGION)) == 2


def test_converting_alone_takes_one_round_trip() -> None:
    """CR to EX with nobody beside: one transaction, no ticket."""
    rig = LockRig("host-a")
    rig.a.want(REGION, CR)
    rig.settle()
    before = rig.a.member.resources.transactions
    rig.a.worker.held.pop(REGION)
    rig.a.want(REGION, EX)
    rig.settle()
    assert rig.a.holds(REGION) == EX
    assert rig.a.member.resources.transactions == before + 1


def test_a_region_is_kept_for_its_minimum_hold() -> None:
    """A bast goes to the worker of a region only after the minimum hold; to a tail's at once."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    for resource in (REGION, TAIL):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.member.resources.entries[REGION].given_at = rig.scheduler.now()
    for resource in (REGION, TAIL):
        rig.b.want(resource, EX)
    rig.run(0.01)
    assert rig.b.holds(TAIL) == EX
    assert rig.b.holds(REGION) == NL
    rig.run(0.05)
    assert rig.b.holds(REGION) == EX


def test_the_counter_is_bumped_with_the_tail() -> None:
    """What was committed under a tail is in its counter when the next one gets the tail."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 5
    rig.a.worker.reserved = 40
    rig.b.want(TAIL, EX)
    rig.settle()
    (grant,) = rig.b.grants(TAIL)
    assert grant.counters[0].value == 5
    assert grant.skip == 40
    assert rig.a.bumps()[-1].revision == grant.counters[0].revision
    assert rig.key(f"v/{STORE}") == b"5"


def test_demoting_a_region_bumps_the_counter_while_the_tail_stays() -> None:
    """Who gets the region next reads the counter of exceptions that were committed in it, though the tail is cached."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    for resource in (TAIL, REGION):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 3
    rig.b.want(REGION, CR)
    rig.settle()
    assert rig.b.grants(REGION)[0].counters[0].value == 3
    assert rig.a.holds(TAIL) == EX


def test_a_counter_never_goes_back() -> None:
    """A release that names fewer entries than the counter leaves it, and says so."""
    rig = LockRig("host-a")
    rig.counter(value=b"9")
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 4
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") == b"9"
    assert rig.a.events("counter_behind")


def test_an_untrusted_counter_reaches_the_worker_and_is_cleared_with_the_tail() -> None:
    """``?`` is granted as UNTRUSTED; the first release of the tail by who has caught up makes it a number again."""
    rig = LockRig("host-a")
    rig.counter(value=b"?")
    rig.a.want(TAIL, EX)
    rig.settle()
    assert rig.a.grants(TAIL)[0].counters[0].value == UNTRUSTED
    rig.a.worker.committed[STORE] = 2
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") == b"2"


def test_a_dropped_store_gets_no_counter_back() -> None:
    """A release that still knows a store whose counter is gone does not put one."""
    rig = LockRig("host-a")
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 2
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") is None
    assert rig.a.holds(TAIL) == NL


def test_a_live_store_without_a_counter_gets_one() -> None:
    """etcd was restored and its counters deleted: the first release of the tail makes the snapshot's counter anew."""
    rig = LockRig("host-a")
    record = SnapshotRecord("s1", STORE, "/dev/cow", "identity", "active", False, 1, 1)
    rig.put("s/s1", record.to_bytes())
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 2
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") == b"2"
    assert rig.a.holds(TAIL) == NL


def lose_answer(rig: LockRig, applied: bool) -> None:
    """The next transaction of host-a is applied or lost, and its client hears nothing."""
    armed = [True]

    def fault(call: Call) -> Fault:
        if call.kind == "txn" and call.client.startswith("host-a") and armed:
            armed.clear()
            return Fault(drop_response=True) if applied else Fault(drop_request=True)
        return NO_FAULT

    rig.etcd.fault = fault


def test_an_acquire_whose_answer_is_lost_is_confirmed() -> None:
    """Applied but unheard: the epoch is bumped, the hold is found, its counters are read, the worker gets it once."""
    for applied in (True, False):
        rig = LockRig("host-a")
        rig.counter()
        lose_answer(rig, applied)
        rig.a.want(REGION, EX)
        rig.run(5)
        assert rig.a.holds(REGION) == EX
        assert len(rig.a.grants(REGION)) == 1
        assert rig.a.grants(REGION)[0].counters
        assert rig.a.member.session.bumps >= 1
        assert rig.a.failure is None


def test_a_release_whose_answer_is_lost_is_not_believed_before_it_is_read() -> None:
    """Applied or not, the lock and its counter end up released, once."""
    for applied in (True, False):
        rig = LockRig("host-a", "host-b")
        rig.counter()
        rig.a.want(TAIL, EX)
        rig.settle()
        rig.a.worker.committed[STORE] = 6
        lose_answer(rig, applied)
        rig.a.worker.give_back(TAIL, NL)
        rig.run(5)
        assert rig.key(f"h/{TAIL}/EX/host-a") is None
        assert rig.key(f"v/{STORE}") == b"6"
        rig.b.want(TAIL, EX)
        rig.settle()
        assert rig.b.grants(TAIL)[0].counters[0].value == 6


def test_a_queued_acquire_whose_answer_is_lost_keeps_one_ticket() -> None:
    """A ticket that nobody heard of is found again and served."""
    for applied in (True, False):
        rig = LockRig("host-a", "host-b")
        rig.b.want(REGION, EX)
        rig.settle()
        rig.b.worker.in_use.add(REGION)
        lose_answer(rig, applied)
        rig.a.want(REGION, EX)
        rig.run(2.9)  # less than the TTL: nobody gives up
        rig.b.worker.give_back(REGION)
        rig.run(3)
        assert rig.a.holds(REGION) == EX
        assert rig.key(f"q/{REGION}/host-a") is None


def test_a_late_transaction_of_an_older_epoch_is_void() -> None:
    """An acquire that reaches etcd after its epoch was bumped changes nothing."""
    rig = LockRig("host-a", "host-b")
    armed = [True]

    def fault(call: Call) -> Fault:
        if call.kind == "txn" and call.client.startswith("host-a") and armed:
            armed.clear()
            return Fault(request_delay=10_000_000_000)
        return NO_FAULT

    rig.etcd.fault = fault
    rig.a.want(REGION, EX)
    rig.run(5)
    assert rig.a.holds(REGION) == EX
    rig.a.worker.give_back(REGION, NL)
    rig.settle()
    rig.run(10)
    assert rig.key(f"h/{REGION}/EX/host-a") is None


def test_the_table_comes_back_by_itself_after_it_was_given_up() -> None:
    """Done(table) is followed by a new grant with the whole table, without a Want."""
    rig = LockRig("host-a")
    rig.a.worker.give_back("table", NL)
    rig.settle()
    assert len(rig.a.grants("table")) == 2


def test_no_space_keeps_every_hold_and_whoever_waits_waits() -> None:
    """Without space nothing is granted and nothing is lost; with space again, it goes on."""
    rig = LockRig("host-a")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.etcd.no_space = True
    rig.a.want("region/8", EX)
    rig.run(20)
    assert rig.a.holds("region/8") == NL
    assert rig.a.holds(REGION) == EX
    assert rig.a.member.state == "active"
    rig.etcd.no_space = False
    rig.run(3)
    assert rig.a.holds("region/8") == EX


def test_leaving_releases_everything() -> None:
    """A clean stop leaves counters that are true, and no hold, extent, record or ticket."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    for resource in (TAIL, *(f"region/{number}" for number in range(250))):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 11
    verdict = rig.a.stop()
    rig.until(lambda: bool(verdict), 5)
    rig.settle()
    assert verdict == [True]
    assert rig.key(f"v/{STORE}") == b"11"
    assert not [key for key in rig.stored() if key.endswith("/host-a")]
    assert rig.a.failure is None


def test_leaving_without_etcd_ends_in_time() -> None:
    """With etcd gone, leaving gives up within its limit and says that it was not clean."""
    rig = LockRig("host-a")
    rig.etcd.stop()
    start = rig.scheduler.now()
    verdict = rig.a.stop()
    rig.until(lambda: bool(verdict), 10)
    assert verdict == [False]
    assert rig.scheduler.now() - start <= 5_000_000_000


def test_what_is_owed_is_put_though_the_watch_lags() -> None:
    """A tail is released before the mirror has shown its counter: the counter is bumped all the same."""
    rig = LockRig("host-a", "host-b")

    def slow(call: Call) -> Fault:
        late = call.kind == "notice" and call.client.startswith("host-a")
        return Fault(response_delay=2_000_000_000) if late else NO_FAULT

    rig.etcd.fault = slow
    rig.counter()
    rig.a.want(TAIL, EX)
    rig.settle()
    assert f"v/{STORE}" not in rig.a.member.mirror.counters
    assert rig.a.holds(TAIL) == EX
    rig.a.worker.committed[STORE] = 7
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") == b"7"


def test_two_releases_that_owe_one_counter_need_no_doubt() -> None:
    """Tail and region given back at once: one puts the counter, the other is made anew; the epoch stays."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    for resource in (TAIL, REGION):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 3
    bumps = rig.a.member.session.bumps
    rig.a.worker.give_back(REGION, NL)
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"v/{STORE}") == b"3"
    assert not [key for key in rig.stored() if key.startswith((f"h/{TAIL}", f"h/{REGION}"))]
    assert rig.a.member.session.bumps == bumps


def test_a_region_released_before_its_tail_carries_what_the_tail_owes() -> None:
    """The tail's release is late, the region's is not: who gets the region must find what was committed in it."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    for resource in (TAIL, REGION):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.worker.in_use |= {TAIL, REGION}
    rig.a.worker.committed[STORE] = 3
    rig.b.want(REGION, CR)
    rig.run(1)

    delayed: list[Call] = []

    def late(call: Call) -> Fault:
        if delayed or call.kind != "txn" or not call.client.startswith("host-a"):
            return NO_FAULT
        delayed.append(call)
        return Fault(request_delay=500_000_000)

    rig.etcd.fault = late
    rig.a.worker.give_back(TAIL, NL)
    rig.a.worker.give_back(REGION)
    rig.run(3)
    assert delayed
    assert rig.b.grants(REGION)[0].counters[0].value == 3


def test_leaving_puts_what_a_release_under_way_owes() -> None:
    """The worker gave the tail back just before it stopped: its Stopped does not name the store any more."""
    rig = LockRig("host-a")
    rig.counter()
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 5
    lose_answer(rig, applied=False)
    rig.a.worker.give_back(TAIL, NL)
    rig.run(0.1)
    verdict = rig.a.stop()
    rig.until(lambda: bool(verdict), 10)
    rig.settle()
    assert verdict == [True]
    assert rig.key(f"v/{STORE}") == b"5"


def test_an_old_count_does_not_clear_a_mark() -> None:
    """A region's release that is still under way when its tail was given back and had again counts for nothing."""
    rig = LockRig("host-a")
    rig.counter()
    for resource in ("region/1", TAIL):
        rig.a.want(resource, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 5
    slow = rig.etcd.calls + 1
    rig.etcd.fault = lambda call: Fault(request_delay=SECOND) if call.number == slow else NO_FAULT
    rig.a.worker.give_back("region/1", NL)
    rig.run(0.01)
    rig.a.worker.give_back(TAIL, NL)
    rig.run(0.01)
    assert rig.key(f"v/{STORE}") == b"5"
    rig.etcd.client("test").txn(Txn((), (Put(f"/csnap/{UUID}/v/{STORE}", b"?"),)), SECOND, lambda result: None)
    rig.a.worker.committed.clear()
    rig.a.want(TAIL, EX)
    rig.run(0.01)
    assert rig.a.grants(TAIL)[-1].counters[0].value == UNTRUSTED
    rig.run(2)
    assert rig.key("h/region/1/EX/host-a") is None
    assert rig.key(f"v/{STORE}") == b"?"


def test_a_release_that_was_overtaken_does_not_lower_a_marked_counter() -> None:
    """Two regions are given back under one tail; between their releases a recovery marks the counter."""
    rig = LockRig("host-a")
    rig.counter()
    for resource in ("region/1", "region/2", TAIL):
        rig.a.want(resource, EX)
    rig.settle()
    slow = rig.etcd.calls + 1
    rig.etcd.fault = lambda call: Fault(request_delay=SECOND) if call.number == slow else NO_FAULT
    for region, count in (("region/1", 6), ("region/2", 7)):
        rig.a.worker.committed[STORE] = count
        rig.a.worker.give_back(region, NL)
        rig.run(0.01)
    assert rig.key(f"v/{STORE}") == b"7"
    rig.etcd.client("test").txn(Txn((), (Put(f"/csnap/{UUID}/v/{STORE}", b"?"),)), SECOND, lambda result: None)
    rig.run(2)
    assert rig.key("h/region/1/EX/host-a") is None
    assert rig.key(f"v/{STORE}") == b"7"


def test_a_stop_while_the_join_is_under_way_leaves_no_dead_member() -> None:
    """Applied and unheard, lost, or late: a host that stops at its start is gone, or others would fence it."""
    for fault in (
        Fault(response_delay=1_500_000_000),
        Fault(drop_response=True),
        Fault(drop_request=True),
        Fault(fail=True),
    ):
        for after in (0.0, 0.0002, 0.5):
            rig = LockRig("host-a", ready=False)
            armed = [True]

            def first(call: Call, fault: Fault = fault, armed: list[bool] = armed) -> Fault:
                if call.kind == "txn" and armed:
                    armed.clear()
                    return fault
                return NO_FAULT

            rig.etcd.fault = first
            rig.until(lambda armed=armed: not armed, 5)  # type: ignore[misc]
            rig.run(after)
            verdict = rig.a.stop()
            rig.until(lambda verdict=verdict: bool(verdict), 6)  # type: ignore[misc]
            rig.run(1)
            assert verdict == [True], (fault, after)
            assert not [key for key in rig.stored() if key.startswith(("m/", "h/"))], (fault, after)
