"""What the simulator has found, each as small as it could be made."""

from __future__ import annotations

from snapd.errors import Fenced
from snapd.lockspace.kv import Delete, Txn
from snapd.messages import CR, EX, NL
from snapd.units import SECOND
from snapd.volume.request import WRITE
from snapd.volume.table import RETRY
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import STORE, UUID, LockRig
from tests.support.worker_rig import CHUNK, Rig


def test_a_restarted_member_believes_no_hold_of_its_older_incarnation() -> None:
    """What the mirror showed of old holds while they were cleaned up is forgotten: nothing of it is confirmed, and a CR
    that is not there is not converted for ever."""
    rig = LockRig("host-a", "host-b")
    rig.a.want("region/5", CR)
    rig.settle()
    rig.a.kill()  # frozen: it has given the table back
    gone = Txn((), (Delete(f"/csnap/{UUID}/h/table/CR/host-a"),))
    rig.etcd.client("test").txn(gone, SECOND, lambda result: None)
    rig.b.want("region/5", EX)
    again = rig.add("host-a")
    rig.until(lambda: again.member.state == "active")
    again.want("region/5", EX)
    rig.until(lambda: again.holds("region/5") == EX)
    assert not again.events("epoch_bump")


def test_a_mark_is_not_overwritten_by_who_does_not_know_yet_that_its_tail_is_gone() -> None:
    """A tail's release was applied and its answer is late; meanwhile another appended, died, and was recovered. What
    this member counted is put by no other release of its any more: everybody must read all."""
    rig = LockRig("host-a", "host-b")
    rig.counter()
    rig.a.want("region/1", EX)
    rig.a.want(f"tail/{STORE}", EX)
    rig.settle()
    rig.a.worker.committed[STORE] = 5

    def late(call: Call) -> Fault:
        mine = call.kind == "txn" and call.client == rig.a.settings.incarnation
        return Fault(response_delay=SECOND) if mine else NO_FAULT

    rig.etcd.fault = late
    rig.b.want(f"tail/{STORE}", EX)
    rig.until(lambda: rig.b.holds(f"tail/{STORE}") == EX)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.put(f"v/{STORE}", b"?")
    rig.a.worker.give_back("region/1", NL)
    rig.run(5)
    assert rig.key(f"v/{STORE}") == b"?"
    assert rig.key("h/region/1/EX/host-a") is None


def test_nothing_is_written_while_a_cow_device_cannot_be_opened() -> None:
    """The tick before the next attempt admits nothing: without its COW device a snapshot would change."""
    rig = Rig()
    host, spec = rig.hosts[0], rig.format("s1", 64)
    device = rig.devices.pop(spec.path)
    rig.locks.change_table(host.name, lambda: rig.locks.take(spec))
    rig.run()
    answers: list[int] = []
    host.submit(host.export("origin"), WRITE, 0, b"n" * CHUNK, lambda error, data: answers.append(error))
    for _ in range(2):
        host.table.tick()
        host.turn()
        rig.run()
    assert not answers and rig.origin.peek(0, 1) != b"n"
    rig.devices[spec.path] = device
    host.now += RETRY
    host.table.tick()
    host.turn()
    rig.run()
    assert answers == [0] and rig.origin.peek(0, 1) == b"n"
    assert rig.read(host, "snapshot/s1", 0, CHUNK) == b"\1" * CHUNK


def test_an_incarnation_that_may_have_been_fenced_while_it_joined_never_joins_again() -> None:
    """Its join was applied and nobody told it; the lease ended, others fenced it and cleaned up. Its key is gone from
    the devices for ever: it ends, and a new incarnation joins."""
    rig = LockRig("host-b")

    def deaf(call: Call) -> Fault:
        """Its join is answered never, its watch is never opened."""
        mine = call.client.startswith("host-a")
        return Fault(drop_request=mine and call.kind == "watch", drop_response=mine and call.kind == "txn")

    host = rig.add("host-a", start=False)
    rig.etcd.fault = deaf
    host.run(host.member.start)
    rig.until(lambda: rig.key("a/host-a") is not None)
    rig.etcd.expire(host.member.session.lease)
    rig.until(lambda: rig.b.fencer.fenced == ["host-a"] and rig.key("m/host-a") is None)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.until(lambda: host.failure is not None)
    assert isinstance(host.failure, Fenced)
    assert rig.key("m/host-a") is None
