"""Lost leases, dead members, restarts: the session, joining and recovery in virtual time."""

from __future__ import annotations

import json
import random

import pytest

from snapd.errors import Fenced, Refused
from snapd.lockspace.kv import LeaseResult, Put, Txn
from snapd.messages import CR, EX, NL, UNTRUSTED
from snapd.units import SECOND
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import STORE, TTL, Host, LockRig

REGION, TAIL = "region/7", f"tail/{STORE}"


def busy_host(rig: LockRig, host: Host) -> None:
    """The host holds a region and a tail, has committed without a bump, and has an extent."""
    for resource in (REGION, TAIL):
        host.want(resource, EX)
    rig.settle()
    assert host.holds(REGION) == host.holds(TAIL) == EX
    host.worker.committed[STORE] = 3


def test_holds_outlive_the_lease_until_the_member_is_fenced() -> None:
    """A dead holder's lock is granted to nobody before fencing has succeeded, however long that takes."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    busy_host(rig, rig.a)
    rig.b.fencer.at_once = False
    rig.a.kill()
    rig.b.want(REGION, EX)
    rig.run(60)
    assert rig.b.fencer.asked == ["host-a"]
    assert rig.b.holds(REGION) == NL
    rig.b.fencer.confirm()
    rig.run(2)
    assert rig.b.holds(REGION) == EX
    assert not [key for key in rig.stored() if key.endswith("/host-a")]


def test_recovery_marks_every_counter_before_the_first_hold_goes() -> None:
    """Whoever is granted a lock of the dead reads an untrusted counter with it (seed defect 17)."""
    rig = LockRig("host-a", "host-b")
    other = "99999999-2222-4333-8444-555555555555"
    rig.counter()
    rig.counter(other)
    busy_host(rig, rig.a)
    order: list[str] = []

    def watch(call: Call) -> Fault:
        if call.kind == "txn" and call.client.startswith("host-b"):
            for operation in call.request.success:  # type: ignore[attr-defined]
                order.append(f"{type(operation).__name__} {operation.key.split('/', 3)[3]}")
        return NO_FAULT

    rig.etcd.fault = watch
    rig.a.kill()
    rig.b.want(REGION, EX)
    rig.run(15)
    marks = [index for index, text in enumerate(order) if text.startswith("Put v/")]
    deletes = [index for index, text in enumerate(order) if text.startswith("Delete h/")]
    assert len(marks) == 2
    assert max(marks) < min(deletes)
    (grant,) = rig.b.grants(REGION)
    assert {counter.value for counter in grant.counters} == {UNTRUSTED}


def test_extents_of_the_dead_are_reclaimed_last() -> None:
    """Its reserved COW chunks are free again, but only after its holds are gone."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    busy_host(rig, rig.a)
    rig.a.worker.reserved = 77
    rig.a.worker.give_back(TAIL, NL)
    rig.settle()
    assert rig.key(f"x/{STORE}/host-a") == b"77"
    rig.a.kill()
    rig.run(15)
    assert rig.key(f"x/{STORE}/host-a") is None
    rig.b.want(TAIL, EX)
    rig.settle()
    assert rig.b.grants(TAIL)[0].skip == 0


def test_a_host_that_was_recovered_is_fenced_when_it_wakes() -> None:
    """SIGSTOP past the TTL: its transactions are rejected, its worker is told, it is at its end."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    busy_host(rig, rig.a)
    rig.a.pause()
    rig.b.want(REGION, EX)
    rig.run(20)
    assert rig.b.holds(REGION) == EX
    rig.a.want("region/9", EX)
    rig.a.wake()
    rig.run(10)
    assert isinstance(rig.a.failure, Fenced)
    assert rig.a.fenced
    assert rig.a.states[-1] == "fenced"
    assert rig.key("h/region/9/EX/host-a") is None


def test_a_dead_waiter_leaves_the_queue() -> None:
    """A ticket goes with its owner's lease; those behind it are served without any recovery of holds."""
    rig = LockRig("host-a", "host-b", "host-c")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    rig.b.want(REGION, EX)
    rig.settle()
    rig.c.want(REGION, EX)
    rig.settle()
    rig.b.kill()
    rig.run(TTL - 1)  # less than it takes to give up on host-a
    rig.a.worker.give_back(REGION)
    rig.run(TTL)
    assert rig.c.holds(REGION) == EX


def test_an_outage_of_etcd_costs_a_pause_and_nothing_else() -> None:
    """Longer than the TTL without etcd: the deadline stalls the workers; then all revive with every hold, unfenced."""
    rig = LockRig("host-a", "host-b", "host-c")
    rig.counter()
    busy_host(rig, rig.a)
    rig.etcd.stop()
    rig.run(3 * TTL)
    assert all(host.deadline <= rig.scheduler.now() for host in rig.hosts.values())
    assert {host.member.state for host in rig.hosts.values()} == {"stalled"}
    rig.etcd.start()
    rig.run(3 * TTL)
    for host in rig.hosts.values():
        assert host.member.state == "active"
        assert host.failure is None
        assert host.fencer.fenced == []
        assert host.deadline > rig.scheduler.now()
    assert rig.a.holds(REGION) == rig.a.holds(TAIL) == EX
    rig.b.want(REGION, EX)
    rig.settle()
    assert rig.b.holds(REGION) == EX


def test_a_lease_that_ended_revives_under_a_new_one() -> None:
    """The lease is gone, nobody has noticed: a new lease, every hold kept, tickets queued again."""
    rig = LockRig("host-a", "host-b")
    rig.b.want(REGION, EX)
    rig.a.want("region/1", EX)
    rig.settle()
    rig.b.worker.in_use.add(REGION)
    rig.a.want(REGION, EX)
    rig.settle()
    old = rig.a.member.session.lease
    rig.etcd.client("test").lease_revoke(old, SECOND, lambda result: None)
    rig.run(1)
    assert rig.a.member.session.lease != old
    assert rig.a.member.state == "active"
    assert rig.key(f"q/{REGION}/host-a") is not None
    rig.b.worker.give_back(REGION)
    rig.run(1)
    assert rig.a.holds(REGION) == rig.a.holds("region/1") == EX
    assert rig.a.failure is None


def test_the_deadline_is_counted_from_the_sending_of_the_keepalive() -> None:
    """Deadline = send time of the last successful keepalive + TTL - margin, whatever the delay."""
    rig = LockRig("host-a")
    sent: list[int] = []

    def slow(call: Call) -> Fault:
        if call.kind == "lease_keepalive":
            sent.append(rig.scheduler.now())
            return Fault(response_delay=SECOND // 4)
        return NO_FAULT

    rig.etcd.fault = slow
    rig.run(10)
    assert rig.a.deadline <= sent[-1] + (TTL - 1) * SECOND
    assert rig.a.deadline in [moment + (TTL - 1) * SECOND for moment in sent]


def test_past_the_deadline_nothing_is_sent() -> None:
    """A stalled member sends no lock transaction, even if etcd hears it."""
    rig = LockRig("host-a")
    rig.etcd.fault = lambda call: Fault(drop_response=True) if call.kind == "lease_keepalive" else NO_FAULT
    rig.run(TTL + 1)
    assert rig.a.member.state == "stalled"
    sent: list[Call] = []

    def record(call: Call) -> Fault:
        if call.kind == "txn":
            sent.append(call)
        return Fault(drop_response=True) if call.kind == "lease_keepalive" else NO_FAULT

    rig.etcd.fault = record
    rig.a.want(REGION, EX)
    rig.run(1)
    assert sent == []
    rig.etcd.fault = lambda call: NO_FAULT
    rig.run(TTL)
    assert rig.a.holds(REGION) == EX


def test_a_revoke_left_unanswered_for_a_ttl_ends_the_lease_for_good() -> None:
    """A hung worker cannot hold the others up: its member stops renewing, never revives, and is recovered."""
    rig = LockRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    rig.b.want(REGION, EX)
    rig.run(5 * TTL)
    assert isinstance(rig.a.failure, Fenced)
    assert rig.b.holds(REGION) == EX


def test_who_waits_for_a_dead_hosts_tail_does_not_count_as_hung() -> None:
    """Fencing takes longer than a TTL: a region that cannot be given back before the tail comes costs no lease."""
    rig = LockRig("host-a", "host-b", "host-c")
    rig.counter()
    rig.c.want(TAIL, EX)
    rig.a.want(REGION, EX)
    rig.settle()
    rig.c.kill()
    for host in (rig.a, rig.b):
        host.fencer.at_once = False
    rig.a.worker.in_use.add(REGION)
    rig.a.want(TAIL, EX)
    rig.b.want(REGION, EX)
    rig.run(10 * TTL)
    assert rig.a.failure is None
    for host in (rig.a, rig.b):
        host.fencer.confirm()
    rig.run(1)
    assert rig.a.holds(TAIL) == EX
    rig.run(2 * TTL)
    assert isinstance(rig.a.failure, Fenced)  # now it had all it needs, and a TTL to give the region back


def test_stopping_in_the_own_clean_up_leaves_the_rest_to_recovery() -> None:
    """Old holds are not given up before every counter is marked, also if the daemon is stopped before it could."""
    rig = LockRig("host-a")
    rig.counter()
    busy_host(rig, rig.a)
    new = restart(rig)

    def no_marks(call: Call) -> Fault:
        marks = isinstance(call.request, Txn) and any(
            isinstance(operation, Put) and operation.value == b"?" for operation in call.request.success
        )
        return Fault(drop_request=marks)

    rig.etcd.fault = no_marks
    rig.until(lambda: new.member.session.phase == "up")
    verdict = new.stop()
    rig.run(6)
    assert verdict == [False]
    assert rig.key(f"h/{TAIL}/EX/host-a") is not None
    rig.etcd.fault = lambda call: NO_FAULT
    third = rig.add("host-a")
    rig.run(2)
    assert third.member.state == "active"
    assert rig.key(f"v/{STORE}") == b"?"
    assert rig.key(f"h/{TAIL}/EX/host-a") is None


def test_the_deadline_is_that_of_the_lease_on_the_liveness_key() -> None:
    """A late attempt to revive is applied under a lease that may be about to end: it has to be renewed first."""
    rig = LockRig("host-a")
    leases: list[int] = []
    client = rig.etcd.client("test")
    client.lease_grant(
        3 * TTL, SECOND, lambda result: leases.append(result.lease if isinstance(result, LeaseResult) else 0)
    )
    rig.etcd.fault = lambda call: Fault(drop_request=call.client != "test" and call.kind in ("txn", "lease_keepalive"))
    client.lease_revoke(rig.a.member.session.lease, SECOND, lambda result: None)
    rig.run(0.5)
    assert rig.a.member.session.phase == "lost"
    put = Put(rig.a.member.keys.alive("host-a"), rig.a.settings.incarnation.encode(), leases[0])
    client.txn(Txn((), (put,)), SECOND, lambda result: None)
    rig.until(lambda: rig.a.member.session.phase == "up", 2.5)
    assert rig.a.deadline == 0
    rig.etcd.fault = lambda call: NO_FAULT
    rig.run(1)
    assert rig.a.member.state == "active"
    assert rig.a.member.session.lease == leases[0]


def test_an_outage_does_not_count_against_who_was_asked() -> None:
    """etcd goes away while a lock is asked back: a stalled worker cannot finish, and has a whole TTL afterwards."""
    rig = LockRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    rig.b.want(REGION, EX)
    rig.settle()
    rig.etcd.stop()
    rig.run(3 * TTL)
    rig.etcd.start()
    rig.until(lambda: rig.a.member.state == rig.b.member.state == "active")
    rig.run(TTL / 2)
    assert rig.a.failure is None
    rig.a.worker.give_back(REGION)
    rig.run(1)
    assert rig.b.holds(REGION) == EX
    assert rig.a.failure is None


def test_who_was_stalled_leaves_the_others_time_to_revive() -> None:
    """One lease survives an outage and the other does not: nobody is recovered who revives within a TTL."""
    rig = LockRig("host-a", "host-b")
    busy_host(rig, rig.a)
    lease = rig.a.member.session.lease
    rig.etcd.fault = lambda call: Fault(drop_request=True)
    rig.until(lambda: rig.a.member.state == rig.b.member.state == "stalled")
    rig.etcd.fault = lambda call: Fault(request_delay=SECOND) if call.client.startswith("host-a") else NO_FAULT
    rig.etcd.client("test").lease_revoke(lease, SECOND, lambda result: None)
    rig.until(lambda: rig.b.member.state == "active")
    assert rig.key("a/host-a") is None
    rig.run(1)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.run(2 * TTL)
    assert rig.a.failure is None
    assert rig.b.fencer.fenced == []
    assert rig.a.member.state == "active"
    assert rig.a.holds(REGION) == EX


def test_nobody_recovers_before_it_has_had_a_lease_and_a_watch_for_one_ttl() -> None:
    """No fencing storm: a member that has just joined leaves a missing liveness key alone for one TTL."""
    rig = LockRig("host-a")
    busy_host(rig, rig.a)
    rig.a.kill()
    rig.run(2 * TTL)
    joined = rig.scheduler.now()
    rig.add("host-b")
    rig.until(lambda: bool(rig.b.fencer.fenced))
    assert rig.scheduler.now() - joined >= TTL * SECOND


def test_recovery_is_taken_over_when_its_coordinator_dies() -> None:
    """The coordinator dies at each step; another survivor finishes, and fences both."""
    for seconds in (0.0, 0.001, 0.002, 0.005, 0.02, 1.0):
        rig = LockRig("host-a", "host-b", "host-c")
        rig.counter()
        busy_host(rig, rig.a)
        rig.b.fencer.at_once = rig.c.fencer.at_once = False
        rig.a.kill()
        rig.until(lambda: bool(rig.b.fencer.asked or rig.c.fencer.asked))  # noqa: B023
        first, second = (rig.b, rig.c) if rig.b.fencer.asked else (rig.c, rig.b)
        second.fencer.at_once = True
        if seconds < 1:
            first.fencer.confirm()
            rig.run(seconds)
        first.kill()
        second.want(REGION, EX)
        rig.run(8 * TTL)
        assert second.holds(REGION) == EX
        assert [key for key in rig.stored() if key.startswith("m/")] == [f"m/{second.node}"]


def restart(rig: LockRig, boot: str = "boot-1", machine: str = "") -> Host:
    """A new incarnation of host-a."""
    rig.a.kill()
    return rig.add("host-a", machine, boot)


def test_a_restart_recovers_its_own_old_holds_at_once() -> None:
    """kill -9 and restart with the lock file free: active again in less than the TTL, all counters marked."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    busy_host(rig, rig.a)
    rig.b.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    new = restart(rig)
    rig.until(lambda: new.member.state == "active", 1)
    assert rig.key(f"v/{STORE}") == b"?"
    rig.until(lambda: rig.b.holds(REGION) == EX, 1)
    assert rig.b.fencer.fenced == []


def test_a_restart_waits_while_the_old_processes_live() -> None:
    """Without proof that the old worker is gone the new incarnation joins nothing, and says for what it waits."""
    rig = LockRig("host-a", "host-b")
    busy_host(rig, rig.a)
    rig.a.kill()
    new = rig.add("host-a", start=False)
    new.proven = lambda record: False
    new.member.start()
    rig.b.fencer.at_once = False
    rig.run(2)
    assert new.member.state == "joining"
    assert any("/run/host-a/lock" in str(fields["why"]) for fields in new.events("join_waits"))
    new.proven = lambda record: True
    rig.run(2)
    assert new.member.state == "active"


def test_another_boot_of_the_same_machine_is_its_own_proof() -> None:
    """After a power cut the host cleans up its own old holds without anybody fencing it."""
    rig = LockRig("host-a")
    busy_host(rig, rig.a)
    rig.a.kill()
    rig.run(2 * TTL)
    new = rig.add("host-a", boot="boot-2", start=False)
    new.proven = lambda record: False  # it cannot even be asked
    new.member.start()
    rig.run(2)
    assert new.member.state == "active"
    assert rig.key(f"h/{REGION}/EX/host-a") is None


def test_another_machine_under_the_same_name_is_refused_by_name() -> None:
    """A node name that another machine uses is refused, whether that one lives or not."""
    for seconds in (0, 2 * TTL):
        rig = LockRig("host-a")
        rig.a.kill()
        rig.run(seconds)
        new = rig.add("host-a", machine="machine-x")
        rig.run(2)
        assert isinstance(new.failure, Refused)
        assert "host-a" in str(new.failure)


def test_a_victim_whose_rescuer_died_is_not_locked_out() -> None:
    """m/<a> says "fenced by host-b", host-b is dead too: host-a cleans up after itself."""
    rig = LockRig("host-a", "host-b")
    busy_host(rig, rig.a)
    rig.b.fencer.at_once = False
    rig.a.kill()
    rig.until(lambda: bool(rig.b.fencer.asked))
    rig.b.kill()
    new = rig.add("host-a", boot="boot-2")
    rig.run(3 * TTL)
    assert new.member.state == "active"


def test_a_victim_waits_for_a_living_rescuer() -> None:
    """While host-b recovers host-a, a new host-a waits; then it joins as if it were new."""
    rig = LockRig("host-a", "host-b")
    busy_host(rig, rig.a)
    rig.b.fencer.at_once = False
    rig.a.kill()
    rig.until(lambda: bool(rig.b.fencer.asked))
    new = rig.add("host-a", boot="boot-2")
    rig.run(3)
    assert new.member.state == "joining"
    rig.b.fencer.confirm()
    rig.run(3)
    assert new.member.state == "active"


def test_a_restart_that_dies_in_its_own_clean_up_is_finished_by_the_next() -> None:
    """Any prefix of the self-recovery is resumed."""
    for steps in range(12):
        rig = LockRig("host-a")
        rig.counter()
        busy_host(rig, rig.a)
        new = restart(rig)
        rig.run(steps * 0.0001)
        new.kill()
        third = rig.add("host-a")
        rig.run(2)
        assert third.member.state == "active"
        assert rig.key(f"h/{REGION}/EX/host-a") is None
        assert rig.key(f"v/{STORE}") == b"?"


def test_another_etcd_is_the_loss_of_all_holds() -> None:
    """Restored from a backup, or another cluster: the member is at its end and says why."""
    rig = LockRig("host-a")
    backup = rig.etcd.backup()
    rig.a.want(REGION, EX)
    rig.settle()
    rig.etcd.restore(backup)
    rig.run(2 * TTL)
    assert isinstance(rig.a.failure, Fenced)


def test_a_watch_that_falls_silent_or_is_compacted_is_opened_anew() -> None:
    """Nothing is missed: the mirror is read again and the lock goes on changing hands."""
    rig = LockRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.etcd.disconnect_watches()
    rig.etcd.compact(rig.etcd.store.revision)
    rig.b.want(REGION, EX)
    rig.run(5)
    assert rig.b.holds(REGION) == EX
    assert rig.a.failure is None


def test_a_member_record_that_makes_no_sense_is_named_and_harms_nobody() -> None:
    """A damaged m/ key is logged once; the others go on."""
    rig = LockRig("host-a", "host-b")
    rig.put("m/host-z", b"{]")
    rig.run(2 * TTL)
    assert len(rig.a.events("bad_record")) == 1
    rig.a.want(REGION, EX)
    rig.settle()
    assert rig.a.holds(REGION) == EX


def test_a_member_record_under_another_name_fences_nobody() -> None:
    """A copy of a live host's record, said to be under recovery by this very host, is named and left alone."""
    rig = LockRig("host-a", "host-b")
    record = json.loads(rig.key("m/host-b") or b"")
    record.update(state="fencing", by=rig.a.settings.incarnation, by_node="host-a")
    rig.put("m/host-z", json.dumps(record).encode())
    rig.run(3 * TTL)
    assert rig.a.fencer.fenced == []
    assert len(rig.a.events("bad_record")) == 1
    assert rig.b.member.state == "active"


@pytest.mark.parametrize("seed", range(30))
def test_no_two_members_ever_hold_conflicting_locks(seed: int) -> None:
    """Random wants, deaths, pauses, restarts, lost and delayed messages: at any moment one EX or many CR."""
    rng = random.Random(seed)
    rig = LockRig("host-a", "host-b", "host-c")
    rig.counter()
    resources = ["region/1", "region/2", TAIL]
    faulty = [True]

    def fault(call: Call) -> Fault:
        if not faulty or rng.random() > 0.05 or call.kind in ("notice", "watch"):
            return NO_FAULT
        return rng.choice(
            [
                Fault(drop_request=True), Fault(drop_response=True), Fault(fail=True),
                Fault(request_delay=rng.randrange(4 * SECOND)), Fault(response_delay=rng.randrange(4 * SECOND)),
            ]
        )  # fmt: skip

    rig.etcd.fault = fault
    for host in rig.hosts.values():
        host.worker.committed[STORE] = 0
    for _ in range(150):
        host = rng.choice(list(rig.hosts.values()))
        act = rng.random()
        if host.frozen and act < 0.3:
            host.wake()
        elif act < 0.5 and not host.dead and host.worker.serving and host.failure is None:
            resource = rng.choice(resources)
            if host.holds(resource) == NL and resource not in host.wanted:
                host.wanted.add(resource)
                host.want(resource, EX if resource == TAIL else rng.choice([CR, EX]))
            elif host.holds(resource):
                host.worker.in_use ^= {resource}
        elif act < 0.52 and not host.frozen:
            host.pause()
        elif act < 0.54 and (host.failure or host.dead or not host.frozen):
            host.kill()
            rig.add(host.node)
        for host in rig.hosts.values():
            for resource in list(host.worker.asked):
                if rng.random() < 0.5 and not host.frozen:
                    host.worker.give_back(resource)
            host.wanted -= set(host.worker.held)
        rig.run(rng.choice([0.001, 0.01, 0.1, 1.0]))
        _check_exclusion(rig)
        if rig.b.failure or rig.a.failure or rig.c.failure:
            for dead in [host for host in rig.hosts.values() if host.failure]:
                dead.kill()
                rig.add(dead.node)
    faulty.clear()
    for host in rig.hosts.values():
        host.worker.in_use.clear()
        if host.frozen:
            host.wake()
        for resource in list(host.worker.asked):
            host.worker.give_back(resource)
    rig.run(20 * TTL)
    for host in rig.hosts.values():
        assert host.member.state in ("active", "fenced")


def _check_exclusion(rig: LockRig) -> None:
    """Of live workers whose deadline has not passed: those may act on what they hold."""
    now = rig.scheduler.now()
    acting = [host for host in rig.hosts.values() if not host.dead and host.deadline > now and host.failure is None]
    for resource in {name for host in acting for name in host.worker.held}:
        modes = [host.holds(resource) for host in acting if host.holds(resource)]
        assert EX not in modes or len(modes) == 1, (resource, modes)


def test_regression_a_lease_that_etcd_ended_by_mistake_costs_nobody_a_fencing() -> None:
    """A woken old leader ends a lease that was renewed: its owner hears of it late, and revives before it is taken."""
    rig = LockRig("host-a", "host-b")
    rig.run(2 * TTL)  # host-b may recover others by now

    def late(call: Call) -> Fault:
        slow = call.kind == "notice" and call.client.startswith("host-a")
        return Fault(response_delay=SECOND // 2) if slow else NO_FAULT

    rig.etcd.fault = late
    rig.etcd.client("test").lease_revoke(rig.a.member.session.lease, SECOND, lambda result: None)
    rig.run(3)
    assert rig.b.fencer.fenced == []
    assert rig.a.failure is None
    assert rig.a.member.state == "active"
