"""The defects of the 2009 patch on the lockspace's side, each by its number. The others: test_seed_defects_store.py."""

from __future__ import annotations

from snapd.messages import CR, EX, NL
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import STORE, TTL, LockRig

REGION, TAIL = "region/7", f"tail/{STORE}"


def test_defect_1_unlock_unlocks_and_its_result_is_looked_at() -> None:
    """A release that etcd refuses for a while is repeated until the hold is gone; the next waiter is then granted."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    rig.a.want(TAIL, EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 1
    rig.etcd.no_space = True  # the counter cannot be put: the release is refused
    rig.a.worker.give_back(TAIL, NL)
    rig.run(2)
    assert rig.stored()[f"h/{TAIL}/EX/host-a"]
    rig.etcd.no_space = False
    rig.b.want(TAIL, EX)
    rig.run(3)
    assert f"h/{TAIL}/EX/host-a" not in rig.stored()
    assert rig.b.holds(TAIL) == EX


def test_defect_2_after_an_unlock_the_mode_is_none() -> None:
    """What was released must be acquired anew: by a transaction, with a new token."""
    rig = LockRig("host-a")
    rig.a.want(REGION, EX)
    rig.settle()
    first = rig.a.grants(REGION)[0].token
    rig.a.worker.give_back(REGION, NL)
    rig.settle()
    assert f"h/{REGION}/EX/host-a" not in rig.stored()
    rig.a.want(REGION, EX)
    rig.settle()
    assert rig.a.grants(REGION)[1].token > first


def test_defect_3_the_last_unlock_is_waited_for() -> None:
    """Leaving is over only when etcd has confirmed that nothing of this member is left."""
    rig = LockRig("host-a")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.etcd.fault = lambda call: Fault(response_delay=1_000_000_000) if call.kind == "txn" else NO_FAULT
    verdict = rig.a.stop()
    rig.until(lambda: not [key for key in rig.stored() if key.startswith(("h/", "m/"))], 5)
    rig.until(lambda: bool(verdict), 5)
    assert verdict == [True]
    assert rig.stored() == {}


def test_defect_4_without_its_first_lock_a_member_serves_nothing() -> None:
    """While joining fails, no table is granted, the worker admits nothing, and a stop leaves nothing behind."""
    rig = LockRig("host-a", ready=False)
    rig.etcd.fault = lambda call: Fault(drop_request=True) if call.kind == "txn" else NO_FAULT
    rig.run(5 * TTL)
    assert rig.a.member.state == "joining"
    assert rig.a.worker.held == {}
    verdict = rig.a.stop()
    rig.until(lambda: bool(verdict), 6)
    assert rig.stored() == {}


def test_defect_9_no_work_goes_on_without_a_lock_that_was_really_granted() -> None:
    """A lock call that fails or is lost grants nothing: the worker hears of a lock only when etcd has it."""
    for fault in (Fault(drop_request=True), Fault(fail=True), Fault(drop_response=True)):
        rig = LockRig("host-a")
        early: list[int] = []

        def lossy(call: Call, fault: Fault = fault, rig: LockRig = rig, early: list[int] = early) -> Fault:
            if rig.a.holds(REGION) and f"h/{REGION}/EX/host-a" not in rig.stored():
                early.append(rig.scheduler.now())
            return fault if call.kind == "txn" else NO_FAULT

        rig.etcd.fault = lossy
        rig.a.want(REGION, EX)
        rig.run(TTL - 2)
        assert rig.a.holds(REGION) == NL
        rig.etcd.fault = lambda call: NO_FAULT
        rig.run(3 * TTL)
        assert rig.a.holds(REGION) == EX
        assert early == []
        assert rig.a.holds("table") == CR
