"""Taking, deleting and invalidating snapshots: several members over one simulated etcd, scripted workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import NAMESPACE_URL, uuid5

import pytest

from snapd.cluster.cluster import PREPARE_LIMIT
from snapd.errors import CsnapError, Refused
from snapd.lockspace.kv import Delete, Txn
from snapd.messages import (
    CR,
    EX,
    NL,
    Overflow,
    Prepare,
    Prepared,
)
from snapd.units import SECOND
from tests.support.cluster_rig import ClusterRig
from tests.support.fake_etcd import NO_FAULT, Call, Fault
from tests.support.lock_rig import TTL

REGION = "region/3"


def test_a_snapshot_is_taken_and_everybody_is_told_with_the_table() -> None:
    """After take every worker has the table with the new snapshot and its counter; every host opened the device."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    assert rig.same_table(("s1", "active"))
    assert all(len(stores) == 1 for stores in rig.open.values())
    for host in rig.hosts.values():
        assert [counter.value for counter in host.worker.held["table"].counters] == [0]
    assert not [key for key in rig.stored() if key.startswith("o/")]


def test_taking_never_holds_ex() -> None:
    """The granting transaction puts the record and swaps the ticket for CR: no h/table/EX ever exists."""
    rig = ClusterRig("host-a", "host-b")
    seen: list[str] = []

    def watch(call: Call) -> Fault:
        seen.extend(key for key in rig.stored() if key.startswith("h/table/EX/"))
        return NO_FAULT

    rig.etcd.fault = watch
    assert rig.take("host-a", "s1") is None
    assert seen == []


def test_nobody_is_granted_the_table_while_one_host_still_uses_it() -> None:
    """The snapshot is not there before the last host has drained."""
    rig = ClusterRig("host-a", "host-b")
    rig.b.worker.in_use.add("table")
    outcome = rig.start_take("host-a", "s1")
    rig.run(2)
    assert outcome == []
    assert rig.record("s1")["state"] == "creating"
    rig.b.worker.in_use.clear()
    rig.b.worker.give_back("table")
    rig.settle()
    assert outcome == [None]
    assert rig.same_table(("s1", "active"))


def test_a_host_that_does_not_drain_is_named_and_everybody_thaws() -> None:
    """After the freeze limit the ticket is withdrawn, the record deleted, and the command names the host."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    rig.b.worker.in_use.add("table")
    start = rig.scheduler.now()
    error = rig.take("host-a", "s1")
    assert isinstance(error, Refused)
    assert "host-b" in str(error)
    assert "host-c" not in str(error)
    assert rig.scheduler.now() - start < 3 * SECOND
    rig.b.worker.give_back("table")
    rig.settle()
    assert rig.same_table()
    assert "s/s1" not in rig.stored()
    assert not any(rig.open.values())


def test_a_host_that_cannot_open_the_device_refuses_by_name() -> None:
    """Nothing is frozen, nothing is left, and the text says which host and why."""
    rig = ClusterRig("host-a", "host-b")
    rig.refusing["host-b"] = "/dev/s1: no such device"
    grants = len(rig.a.grants("table"))
    error = rig.take("host-a", "s1")
    assert "host-b: /dev/s1: no such device" in str(error)
    assert len(rig.a.grants("table")) == grants
    assert "s/s1" not in rig.stored()
    assert not any(rig.open.values())
    del rig.refusing["host-b"]
    assert rig.take("host-b", "s1") is None


def test_a_host_that_says_nothing_is_named() -> None:
    """A worker that does not answer Prepare within the limit makes the taking fail, by name."""
    rig = ClusterRig("host-a", "host-b")
    rig.silent.add("host-b")
    start = rig.scheduler.now()
    error = rig.take("host-a", "s1")
    assert "host-b" in str(error)
    assert rig.scheduler.now() - start < PREPARE_LIMIT + SECOND


@pytest.mark.parametrize("after", [index * 0.0001 for index in range(16)] + [0.01, 0.05])
def test_the_death_of_the_coordinator_freezes_nobody_and_leaves_all_or_nothing(after: float) -> None:
    """Killed at any point of taking: the others thaw, and the snapshot is there for everybody or for nobody."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    rig.start_take("host-a", "s1")
    rig.run(after)
    rig.a.kill()
    rig.run(6 * TTL)
    del rig.hosts["host-a"]
    states = {key: json.loads(value)["state"] for key, value in rig.stored().items() if key.startswith("s/")}
    assert states in ({}, {"s/s1": "active"})
    assert rig.same_table(*([("s1", "active")] if states else []))
    assert rig.take("host-b", "s2") is None


def test_a_frozen_member_deletes_a_ticket_that_is_too_old() -> None:
    """A coordinator that lives but never withdraws its ticket cannot keep the others frozen."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    rig.c.worker.in_use.add("table")
    rig.start_take("host-a", "s1")
    rig.run(0.2)
    rig.clusters["host-a"]._time_is_up = lambda: None  # type: ignore[method-assign]
    work = rig.clusters["host-a"]._work
    assert work is not None
    assert work.timer is not None
    work.timer.cancel()
    assert rig.b.holds("table") == NL
    rig.run(10)
    assert rig.b.holds("table") == CR
    assert rig.b.events("table_ticket_deleted")


def generations(rig: ClusterRig) -> dict[str, object]:
    return {key[2:]: json.loads(value)["generation"] for key, value in rig.stored().items() if key.startswith("s/")}


def test_taking_a_snapshot_raises_the_generation_of_every_live_one() -> None:
    """The granting transaction raises the records, and every worker is told with the table: it writes the sidecars."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    assert generations(rig) == {"s1": 1}
    assert rig.take("host-b", "s2") is None
    assert generations(rig) == {"s1": 2, "s2": 2}
    for host in (rig.a, rig.b):
        told = {spec.name: spec.generation for spec in host.worker.held["table"].snapshots}
        assert told == {"s1": 2, "s2": 2}


def test_a_snapshot_that_was_not_taken_raises_nothing() -> None:
    """Refused, the live records are as they were: so are the sidecars, for nobody was granted another table."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    rig.refusing["host-b"] = "no such device"
    assert rig.take("host-a", "s2") is not None
    rig.settle()
    assert generations(rig) == {"s1": 1}


def test_one_snapshot_is_created_at_a_time_in_the_whole_cluster() -> None:
    """Two hosts about to format one device: one is refused, by the other's name, before it touches the device."""
    rig = ClusterRig("host-a", "host-b")
    outcomes: dict[str, list[CsnapError | None]] = {"host-a": [], "host-b": []}
    for node, outcome in outcomes.items():
        rig.clusters[node].reserve("s1", "id-s1", outcome.append)
    rig.settle()
    winner = next(node for node, outcome in outcomes.items() if outcome == [None])
    loser = "host-b" if winner == "host-a" else "host-a"
    assert f"{winner} is creating snapshot s1" in str(outcomes[loser][0])
    rig.clusters[winner].abandon()
    rig.settle()
    assert not [key for key in rig.stored() if key.startswith("c/")]
    assert rig.take(loser, "s1") is None
    assert not [key for key in rig.stored() if key.startswith("c/")]


def test_a_reservation_outlives_the_lease_but_not_the_fencing() -> None:
    """A thread that formats looks at no deadline: only its owner's word, or fencing, lets another host format."""
    rig = ClusterRig("host-a", "host-b")
    outcome: list[CsnapError | None] = []
    rig.clusters["host-a"].reserve("s1", "id-s1", outcome.append)
    rig.settle()
    assert outcome == [None]
    rig.b.fencer.at_once = False
    rig.a.kill()
    rig.until(lambda: bool(rig.b.fencer.asked))
    assert "host-a is creating snapshot s1" in str(rig.take("host-b", "s1"))
    rig.b.fencer.confirm()
    rig.run(3)
    assert rig.take("host-b", "s1") is None


def test_the_formatting_is_undone_before_another_host_may_format() -> None:
    """A refused taking keeps its reservation until the caller has undone what it formatted."""
    rig = ClusterRig("host-a", "host-b")
    rig.refusing["host-b"] = "no such device"
    rig.undoing = True
    assert rig.take("host-a", "s1") is not None
    del rig.refusing["host-b"]
    assert "host-a is creating snapshot s1" in str(rig.take("host-b", "s2"))
    rig.clusters["host-a"].abandon()
    rig.settle()
    rig.undoing = False
    assert rig.take("host-b", "s2") is None


def test_names_and_devices_are_used_once() -> None:
    """A name or device in use, or a name that cannot be a key, is refused before anything is written."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    cluster = rig.clusters["host-b"]
    with pytest.raises(Refused, match="exists already"):
        cluster.check_new("s1", "id-other")
    with pytest.raises(Refused, match="belongs to snapshot s1"):
        cluster.check_new("s2", "id-s1")
    with pytest.raises(Refused, match="expected 1 to 63"):
        cluster.check_new("a/b", "id-other")


def test_the_newest_snapshot_stands_first_and_deleting_goes_from_the_oldest() -> None:
    """Only the oldest live snapshot may be deleted: others read through the newer ones."""
    rig = ClusterRig("host-a", "host-b")
    for name in ("s1", "s2", "s3"):
        assert rig.take("host-a", name) is None
    assert rig.same_table(("s3", "active"), ("s2", "active"), ("s1", "active"))
    assert "s1" in str(rig.delete("host-b", "s2"))
    assert rig.delete("host-b", "s1") is None
    assert rig.same_table(("s3", "active"), ("s2", "active"))
    assert rig.delete("host-a", "s2") is None
    assert rig.same_table(("s3", "active"))


def test_deleting_invalidates_the_header_and_leaves_no_key() -> None:
    """The coordinator's worker sets valid=0 under EX; record, counter and extents are gone."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    store = rig.store("s1")
    rig.put(f"x/{store}/host-b", b"90")
    assert rig.delete("host-b", "s1") is None
    assert rig.invalidated == [("host-b", store)]
    assert not [key for key in rig.stored() if store in key or key.startswith("s/")]
    assert rig.same_table()
    assert isinstance(rig.delete("host-a", "s1"), Refused)


@pytest.mark.parametrize("after", [index * 0.0001 for index in range(16)] + [0.01])
def test_the_death_of_who_deletes_leaves_a_snapshot_or_none(after: float) -> None:
    """Killed at any point of deleting: it is finished by another, or the snapshot still works."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-b", "s1") is None
    rig.clusters["host-a"].delete("s1", lambda error: None)
    rig.run(after)
    rig.a.kill()
    rig.run(8 * TTL)
    del rig.hosts["host-a"]
    states = {json.loads(value)["state"] for key, value in rig.stored().items() if key.startswith("s/")}
    assert states in (set(), {"active"})
    assert rig.same_table(*([("s1", "active")] if states else []))
    assert "h/table/EX/host-a" not in rig.stored()


def test_a_lost_snapshot_is_invalidated_with_every_older_one() -> None:
    """Table EX, valid=0 for each, then invalid in the table; the newer one lives on."""
    rig = ClusterRig("host-a", "host-b")
    for name in ("s1", "s2", "s3"):
        assert rig.take("host-a", name) is None
    rig.lose("host-b", "s2")
    assert rig.same_table(("s3", "active"), ("s2", "invalid"), ("s1", "invalid"))
    assert {store for _, store in rig.invalidated} == {rig.store("s1"), rig.store("s2")}
    assert {node for node, _ in rig.invalidated} == {"host-b"}


def test_two_hosts_that_lose_a_snapshot_at_once_invalidate_it_once_each_at_most() -> None:
    """Both ask for the table; the second finds it done. Nobody stays frozen."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    store = rig.store("s1")
    for host in rig.hosts.values():
        host.tell(Overflow(store, "full"))
    rig.run(3)
    assert rig.same_table(("s1", "invalid"))
    assert len(rig.invalidated) == 1


@pytest.mark.parametrize("after", [index * 0.0001 for index in range(14)])
def test_the_death_of_who_invalidates_does_not_stop_the_others(after: float) -> None:
    """Whoever still has the problem begins again; until then nobody skips a copy (seed defect 15)."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    store = rig.store("s1")
    rig.a.tell(Overflow(store, "full"))
    rig.run(after)
    rig.a.kill()
    rig.run(5 * TTL)
    del rig.hosts["host-a"]
    rig.b.tell(Overflow(store, "full"))
    rig.run(2)
    assert rig.same_table(("s1", "invalid"))


def test_an_invalid_snapshot_is_deleted_wherever_it_stands() -> None:
    """Its device need not be there: nothing is written to it."""
    rig = ClusterRig("host-a", "host-b")
    for name in ("s1", "s2"):
        assert rig.take("host-a", name) is None
    rig.lose("host-a", "s2")
    rig.invalidated.clear()
    assert rig.delete("host-b", "s2") is None
    assert rig.invalidated == []
    assert rig.same_table(("s1", "invalid"))


def lost_answers(probability: float, seed: int) -> Callable[[Call], Fault]:
    import random

    rng = random.Random(seed)

    def fault(call: Call) -> Fault:
        if call.kind in ("txn", "lease_keepalive", "range") and rng.random() < probability:
            return rng.choice([Fault(drop_request=True), Fault(drop_response=True), Fault(fail=True)])
        return NO_FAULT

    return fault


@pytest.mark.parametrize("seed", [*range(8), 217])
def test_lost_messages_leave_all_or_nothing(seed: int) -> None:
    """With one message in eight lost, taking and losing end in one state that all hosts share.

    Seed 217: finishing under EX took longer than a TTL because of lost answers; the member gave itself up.
    """
    rig = ClusterRig("host-a", "host-b", "host-c")
    rig.etcd.fault = lost_answers(0.12, seed)
    outcomes = []
    for name in ("s1", "s2"):
        node = ("host-a", "host-b")[seed % 2]
        if rig.hosts[node].member.state == "active":
            outcomes.append(rig.start_take(node, name))
        rig.run(15)
    if "s/s1" in rig.stored() and rig.record("s1")["state"] == "active" and seed % 3:
        rig.b.tell(Overflow(rig.store("s1"), "full"))
    rig.run(15)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.run(10 * TTL)
    assert all(host.failure is None for host in rig.hosts.values())
    assert all(host.member.state == "active" for host in rig.hosts.values())
    states = {key[2:]: json.loads(value)["state"] for key, value in rig.stored().items() if key.startswith("s/")}
    assert set(states.values()) <= {"active", "invalid"}
    told = rig.tables()
    assert len(told) == 3
    assert all(dict(table) == states for table in told.values())
    assert all(outcome for outcome in outcomes)


def test_a_member_that_joins_while_a_snapshot_is_taken_opens_it_too() -> None:
    """A newcomer between the answers and the grant is waited for."""
    rig = ClusterRig("host-a", "host-b")
    rig.b.worker.in_use.add("table")
    outcome = rig.start_take("host-a", "s1")
    rig.run(0.5)
    rig.add("host-c")
    rig.run(0.5)
    rig.b.worker.in_use.clear()
    rig.b.worker.give_back("table")
    rig.run(1)
    assert outcome == [None]
    assert rig.same_table(("s1", "active"))
    assert len(rig.open["host-c"]) == 1


def test_a_host_with_regions_answers_basts_while_the_table_is_frozen() -> None:
    """Frozen members still give regions back: draining may wait for one."""
    rig = ClusterRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.b.worker.in_use.add("table")
    rig.start_take("host-a", "s1")
    rig.settle()
    assert rig.a.holds("table") == NL
    rig.b.want(REGION, EX)
    rig.settle()
    assert rig.b.holds(REGION) == EX


def test_who_comes_too_late_to_invalidate_deletes_nothing() -> None:
    """The ticket went with the lease; meanwhile another host has invalidated it: the record stays for people to see."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    store = rig.store("s1")
    rig.c.worker.in_use.add("table")
    for host in (rig.b, rig.a):
        host.tell(Overflow(store, "full"))
        rig.settle()
    rig.b.pause()
    rig.etcd.expire(rig.b.member.session.lease)
    rig.c.worker.in_use.clear()
    rig.c.worker.give_back("table")
    rig.run(1)
    assert rig.record("s1")["state"] == "invalid"
    rig.b.wake()
    rig.run(2)
    assert rig.b.failure is None
    assert rig.same_table(("s1", "invalid"))
    tokens = [grant.token for grant in rig.b.grants("table")]
    assert len(tokens) == len(set(tokens))


def test_a_snapshot_that_became_invalid_meanwhile_is_never_told_as_active_again() -> None:
    """Deleting waits behind an invalidation: it goes from invalid to gone."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    rig.etcd.fault = lambda call: Fault(response_delay=SECOND // 100) if call.kind == "notice" else NO_FAULT
    rig.c.worker.in_use.add("table")
    rig.b.tell(Overflow(rig.store("s1"), "full"))
    rig.settle()
    outcome: list[CsnapError | None] = []
    rig.clusters["host-a"].delete("s1", outcome.append)
    rig.settle()
    begun = [len(host.grants("table")) for host in rig.hosts.values()]
    rig.c.worker.in_use.clear()
    rig.c.worker.give_back("table")
    rig.run(2)
    assert outcome == [None]
    assert "s/s1" not in rig.stored()
    for host, first in zip(rig.hosts.values(), begun, strict=True):
        told = [spec.state for grant in host.grants("table")[first:] for spec in grant.snapshots]
        assert set(told) <= {"invalid"}


def test_a_snapshot_that_is_lost_before_the_watch_shows_it_is_invalidated() -> None:
    """The worker hears of a new snapshot with the table, which may be before this member's mirror shows it."""
    rig = ClusterRig("host-a", "host-b")
    rig.b.worker.in_use.add("table")
    outcome = rig.start_take("host-a", "s1")
    rig.settle()

    def lag(call: Call) -> Fault:
        if call.client.startswith("host-b"):
            return Fault(response_delay=SECOND if call.kind == "notice" else 0, request_delay=SECOND // 1000)
        return NO_FAULT

    rig.etcd.fault = lag
    rig.b.worker.in_use.clear()
    rig.b.worker.give_back("table")
    rig.until(lambda: rig.b.holds("table") == CR, 0.5)
    assert outcome == [None]
    assert [spec.name for spec in rig.b.worker.held["table"].snapshots] == ["s1"]
    assert not rig.b.member.snapshots() or rig.b.member.snapshots()[0].state == "creating"
    rig.b.tell(Overflow(rig.store("s1"), "full"))
    rig.run(0.1)
    rig.etcd.fault = lambda call: NO_FAULT
    rig.run(3)
    assert rig.same_table(("s1", "invalid"))


def test_a_newcomers_answer_lets_the_grant_go_on_at_once() -> None:
    """Everybody has drained and only a newcomer's device is waited for: its answer is enough, nobody is refused."""
    rig = ClusterRig("host-a", "host-b")
    rig.b.worker.in_use.add("table")
    outcome = rig.start_take("host-a", "s1")
    rig.run(0.3)
    rig.silent.add("host-c")
    rig.add("host-c")
    rig.run(0.3)
    rig.b.worker.in_use.clear()
    rig.b.worker.give_back("table")
    rig.run(0.3)
    assert outcome == []
    request = next(message.request for message in rig.c.worker.received if isinstance(message, Prepare))
    rig.c.tell(Prepared(request, ""))
    rig.run(0.3)
    assert outcome == [None]
    assert rig.same_table(("s1", "active"))


def test_a_reservation_that_is_being_released_is_not_had_again() -> None:
    """Its deletion is not shown yet: a new creation waits for it, or another host could format the same device."""
    rig = ClusterRig("host-a", "host-b")
    cluster = rig.clusters["host-a"]
    outcome: list[CsnapError | None] = []
    cluster.reserve("s1", "id-1", outcome.append)
    rig.settle()
    cluster.abandon()
    cluster.reserve("s2", "id-2", outcome.append)
    assert outcome == [None]
    rig.settle()
    assert outcome == [None, None]
    assert rig.key("c/host-a") == b"s2"


def test_a_table_ticket_deleted_by_others_is_noticed() -> None:
    """Nothing else of the table is left on the host whose ticket it was: it still goes on by itself."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    rig.c.worker.in_use.add("table")
    rig.a.tell(Overflow(rig.store("s1"), "full"))
    rig.settle()
    assert rig.a.holds("table") == NL
    rig.etcd.client("test").txn(Txn((), (Delete(rig.a.member.keys.ticket("table", "host-a")),)), SECOND, lambda r: None)
    rig.run(0.001)
    rig.a.member.ready()  # as after any pause: what is known of nothing is forgotten
    rig.run(1)
    assert "q/table/host-a" in rig.stored()
    rig.c.worker.in_use.clear()
    rig.c.worker.give_back("table")
    rig.run(1)
    assert rig.same_table(("s1", "invalid"))


def test_a_lost_snapshot_freezes_nobody_while_a_dead_host_is_fenced() -> None:
    """The table of the dead cannot be had before: until then nobody is asked for his."""
    rig = ClusterRig("host-a", "host-b", "host-c")
    assert rig.take("host-a", "s1") is None
    for host in (rig.a, rig.b):
        host.fencer.at_once = False
    rig.c.kill()
    rig.run(2 * TTL)
    rig.a.tell(Overflow(rig.store("s1"), "full"))
    for _ in range(20):
        rig.run(1)
        assert rig.a.holds("table") == rig.b.holds("table") == CR
    for host in (rig.a, rig.b):
        host.fencer.confirm()
    rig.run(1)
    del rig.hosts["host-c"]
    assert rig.same_table(("s1", "invalid"))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"}, {"store": "x"}, {"store": "../m"}, {"path": "dev"}, {"state": "gone"}, {"place": -1},
        {"by": 7}, {"generation": 2**70},
    ],
)  # fmt: skip
def test_a_snapshot_record_that_makes_no_sense_is_named_once_and_harms_nobody(change: dict[str, object]) -> None:
    """Hosts and other snapshots go on, also if it pretends to be being created by nobody."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    record = {
        **rig.record("s1"),
        "name": "s2",
        "store": str(uuid5(NAMESPACE_URL, "s2")),
        "state": "creating",
        "by": "x",
    }
    rig.put("s/s2", json.dumps({**record, **change}).encode())
    rig.a.want(REGION, EX)
    rig.run(5)
    assert rig.a.holds(REGION) == EX
    assert len([event for event in rig.a.events("bad_record") if "s/s2" in str(event["error"])]) == 1
    assert rig.take("host-b", "s3") is None
    assert rig.same_table(("s3", "active"), ("s1", "active"))


def test_a_snapshot_whose_device_is_gone_can_be_deleted_though_every_host_is_joining() -> None:
    """All hosts restarted, none can open the COW device: nobody serves, and deleting the snapshot frees them all."""
    rig = ClusterRig("host-a", "host-b")
    assert rig.take("host-a", "s1") is None
    for node in ("host-a", "host-b"):
        rig.hosts[node].kill()
        rig.add(node, start=False).worker.opens = "/dev/s1: no such device"
        rig.hosts[node].member.start()
    rig.run(2 * TTL)
    assert {host.member.state for host in rig.hosts.values()} == {"joining"}
    assert isinstance(rig.start_take("host-a", "s2")[0], Refused)
    for host in rig.hosts.values():
        host.worker.opens = ""  # once the table has no such snapshot
    assert rig.delete("host-b", "s1") is None
    assert rig.same_table()
    assert {host.member.state for host in rig.hosts.values()} == {"active"}


def test_an_older_snapshot_that_is_being_deleted_goes_invalid_with_a_newer_one() -> None:
    """``deleting`` works until it is gone: it reads through the newer one, so it is lost with it, and then deleted."""
    rig = ClusterRig("host-a", "host-b")
    for name in ("s1", "s2"):
        assert rig.take("host-a", name) is None
    record = {**rig.record("s1"), "state": "deleting", "by": "somebody-long-gone"}
    rig.hosts["host-a"].worker.in_use.add("table")  # nobody gets to delete it yet
    rig.put("s/s1", json.dumps(record).encode())
    assert "s1" in str(rig.delete("host-b", "s2"))
    rig.hosts["host-a"].worker.in_use.clear()
    rig.b.tell(Overflow(rig.store("s2"), "full"))
    rig.hosts["host-a"].worker.give_back("table")
    rig.run(10)
    states = {key[2:]: json.loads(value)["state"] for key, value in rig.stored().items() if key.startswith("s/")}
    assert states["s2"] == "invalid"
    assert states.get("s1", "invalid") == "invalid"
