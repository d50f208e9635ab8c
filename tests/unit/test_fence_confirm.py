"""A person takes the fencer's place: only for a dead member, under the same compares, logged and counted."""

from __future__ import annotations

import json

import pytest

from snapd.daemon.confirming import LIMIT, confirm
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError, Refused
from snapd.lockspace.kv import Put, Txn
from snapd.lockspace.records import ACTIVE, FENCED, FENCING
from snapd.messages import EX
from snapd.units import SECOND
from tests.support.lock_rig import TTL, UUID, Host, LockRig

Outcome = list[CsnapError | None]


def confirmed(host: Host, node: str) -> Outcome:
    outcome: Outcome = []
    host.member.confirm_fenced(node, outcome.append)
    return outcome


def state(rig: LockRig, node: str) -> str:
    value = rig.key(f"m/{node}")
    return json.loads(value)["state"] if value is not None else "gone"


@pytest.fixture
def rig() -> LockRig:
    """Three hosts; host-c holds a region, dies, and its fencing does not succeed."""
    rig = LockRig("host-a", "host-b", "host-c")
    for host in rig.hosts.values():
        host.fencer.at_once = False
    rig.c.want("region/1", EX)
    rig.settle()
    rig.c.kill()
    rig.until(lambda: state(rig, "host-c") == FENCING)
    rig.settle()
    return rig


def test_a_waiting_recovery_goes_on(rig: LockRig) -> None:
    """Nothing happens for as long as nobody confirms; then the dead host's region is free, by any survivor's hand."""
    rig.a.want("region/1", EX)
    rig.run(60)
    assert state(rig, "host-c") == FENCING and rig.a.holds("region/1") != EX
    coordinator = json.loads(rig.key("m/host-c") or b"")["by_node"]
    other = rig.b if coordinator == "host-a" else rig.a
    outcome = confirmed(other, "host-c")
    rig.until(lambda: rig.a.holds("region/1") == EX)
    assert outcome == [None]
    assert state(rig, "host-c") == "gone"
    assert other.events("fenced_by_confirmation") == [{"member": "host-c", "was": FENCING}]
    counted = [labels for name, labels, _ in other.observed if name == "fence_events_total"]
    assert counted == [{"target": "host-c", "method": "confirmed", "result": "done"}]


def test_the_fencer_tries_no_more(rig: LockRig) -> None:
    """It would go on switching off a host that is back."""
    coordinator = rig.hosts[json.loads(rig.key("m/host-c") or b"")["by_node"]]
    assert coordinator.fencer.asked == ["host-c"]
    confirmed(rig.a, "host-c")
    rig.until(lambda: state(rig, "host-c") == "gone")
    assert coordinator.fencer.asked == []


def test_every_host_says_what_is_waited_for(rig: LockRig) -> None:
    """Since when, and by whom; nothing once it is over."""
    rig.run(30)
    by = json.loads(rig.key("m/host-c") or b"")["by_node"]
    for host in (rig.a, rig.b):
        ((node, coordinator, since),) = host.member.fencing_waits()
        assert (node, coordinator) == ("host-c", by)
        assert 30 * SECOND <= host.now() - since < 32 * SECOND
    confirmed(rig.a, "host-c")
    rig.until(lambda: state(rig, "host-c") == "gone")
    rig.settle()
    assert rig.a.member.fencing_waits() == rig.b.member.fencing_waits() == []


def test_a_live_member_cannot_be_confirmed(rig: LockRig) -> None:
    """It may write at any moment; nothing is changed."""
    with pytest.raises(Refused, match="host-b: is alive"):
        rig.a.member.confirm_fenced("host-b", lambda error: None)
    with pytest.raises(Refused, match="host-z: no such member; members: host-a, host-b, host-c"):
        rig.a.member.confirm_fenced("host-z", lambda error: None)
    assert state(rig, "host-b") == ACTIVE


def test_a_member_that_revives_meanwhile_wins(rig: LockRig) -> None:
    """Its liveness key came back and is not seen here yet: the compare fails, nothing is changed, and it is said."""
    alive = Put(f"/csnap/{UUID}/a/host-c", rig.c.settings.incarnation.encode())
    rig.etcd.client("test").txn(Txn((), (alive,)), SECOND, lambda result: None)
    outcome = confirmed(rig.a, "host-c")
    rig.settle()
    assert state(rig, "host-c") == FENCING
    assert "has changed meanwhile" in str(outcome[0])


def test_a_confirmed_member_that_wakes_is_fenced() -> None:
    """Its lease is gone and its record says so: it fails its I/O and ends, however wrong the person was."""
    rig = LockRig("host-a", "host-b")
    rig.a.fencer.at_once = False
    rig.b.pause()
    rig.until(lambda: rig.key("a/host-b") is None)
    rig.run(TTL + 1)
    assert state(rig, "host-b") == FENCING
    confirmed(rig.a, "host-b")
    rig.settle()
    assert state(rig, "host-b") in (FENCED, "gone")
    rig.b.wake()
    rig.until(lambda: rig.b.fenced)
    assert rig.b.failure is not None


def test_the_fencer_hears_of_every_member_that_goes() -> None:
    """In order, after a recovery, or replaced by its next incarnation while nobody looked: once each."""
    rig = LockRig("host-a", "host-b", "host-c")
    first, dead = rig.b.settings.incarnation, rig.c.settings.incarnation
    rig.b.stop()
    rig.c.kill()
    rig.until(lambda: state(rig, "host-c") == "gone")
    rig.settle()
    assert rig.a.fencer.gone == [first, dead]


# ---- the admin socket's command


class Reply:
    def __init__(self) -> None:
        self.said: list[object] = []

    def progress(self, text: str) -> None: ...

    def result(self, value: object) -> None:
        self.said.append(value)

    def error(self, error: CsnapError) -> None:
        self.said.append(str(error))


def test_the_command_answers_once() -> None:
    """What etcd has said; or, after a while, that nobody knows."""
    loop, reply, outcomes = Loop(), Reply(), []

    class Member:
        def confirm_fenced(self, node: str, done: object) -> None:
            outcomes.append(done)

    try:
        confirm(Member(), loop, {"node": "host-b"}, reply)  # type: ignore[arg-type]
        outcomes[0](None)
        assert reply.said == [{"node": "host-b"}]
        assert LIMIT < 10 * SECOND
        with pytest.raises(Refused, match="only starting"):
            confirm(None, loop, {"node": "host-b"}, reply)  # type: ignore[arg-type]
        with pytest.raises(Refused, match="a member's name"):
            confirm(None, loop, {"node": 3}, reply)  # type: ignore[arg-type]
    finally:
        loop.close()
