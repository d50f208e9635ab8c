"""What the lock machine tells of waits, holds and demotions: enough to say who waits for whom, and no label is new."""

from __future__ import annotations

from snapd.daemon.families import LOCKS
from snapd.lockspace.entry import Exclusive
from snapd.messages import CR, EX, NL
from snapd.units import SECOND
from tests.support.lock_rig import Host, LockRig

REGION = "region/7"


def seen(host: Host, name: str, **labels: str) -> list[int]:
    """What was observed under exactly these labels."""
    return [value for each, found, value in host.observed if (each, found) == (name, labels)]


def all_labels(host: Host) -> set[tuple[str, tuple[str, ...]]]:
    """Every family and combination of labels that was used."""
    families = {family.name: family for family in LOCKS}
    found = set()
    for name, labels, _ in host.observed:
        family = families.get(name.removesuffix("_total"))
        if family is not None:
            found.add((family.name, tuple(labels[label] for label in family.labels)))
    return found


def test_a_demotion_lasts_from_the_question_until_etcd_has_the_release() -> None:
    """The holder answers after 3 s; what is counted is more: others can have it only once etcd knows."""
    rig = LockRig("host-a", "host-b")
    rig.a.want(REGION, EX)
    rig.settle()
    rig.a.worker.in_use.add(REGION)
    rig.b.want(REGION, EX)
    rig.run(3)
    assert not seen(rig.a, "lock_demotion_seconds", resource="region")
    rig.a.worker.give_back(REGION)
    rig.settle()
    (took,) = seen(rig.a, "lock_demotion_seconds", resource="region")
    assert 2.8 * SECOND < took < 3.5 * SECOND
    (waited,) = seen(rig.b, "lock_wait_seconds", mode="EX", resource="region")
    assert waited > took
    assert seen(rig.a, "lock_demotions_total", **{"from": "EX", "to": "NL", "reason": "asked"}) == [1]


def test_what_is_given_up_for_a_stronger_mode_has_a_reason_of_its_own() -> None:
    """A reader that wants to write gives its CR up: nobody asked, and the work is not done."""
    rig = LockRig("host-a")
    rig.a.want(REGION, CR)
    rig.settle()
    rig.a.want(REGION, EX)
    rig.settle()
    assert rig.a.holds(REGION) == EX
    assert seen(rig.a, "lock_demotions_total", **{"from": "CR", "to": "NL", "reason": "upgrade"}) == [1]
    assert not seen(rig.a, "lock_demotion_seconds", resource="region")


def test_a_use_of_the_table_is_a_wait_and_a_hold_like_any_other() -> None:
    """A snapshot is deleted: EX of the table, from the queue to the grant, and until it came down to CR."""
    rig = LockRig("host-a", "host-b")
    done: list[str] = []
    use = Exclusive(True, lambda: (), lambda: done.append("granted"), lambda: None, lambda: done.append("finished"))
    rig.a.member.table.queue(use)
    rig.until(lambda: done == ["granted"])
    rig.run(1)
    rig.a.member.table.finish(use, ())
    rig.until(lambda: done == ["granted", "finished"])
    assert len(seen(rig.a, "lock_wait_seconds", mode="EX", resource="table")) == 1
    (held,) = seen(rig.a, "lock_hold_seconds", mode="EX", resource="table")
    assert held >= SECOND


def test_a_use_of_the_table_that_gives_up_is_withdrawn() -> None:
    """It was queued, its time was up before everybody had answered."""
    rig = LockRig("host-a", "host-b")
    rig.b.worker.in_use.add("table")
    gone: list[str] = []
    use = Exclusive(False, lambda: (), lambda: gone.append("granted"), lambda: gone.append("withdrawn"))
    rig.a.member.table.queue(use)
    rig.run(1)
    rig.a.member.table.expire(use)
    rig.until(lambda: gone == ["withdrawn"])
    labels = {"mode": "EX", "resource": "table", "source": "granted", "result": "withdrawn"}
    rig.settle()
    assert seen(rig.a, "lock_acquisitions_total", **labels) == [1]


def test_a_ticket_that_nobody_wants_any_more_is_withdrawn() -> None:
    """A reader that waits wants to write now: the ticket for CR goes, one for EX comes."""
    rig = LockRig("host-a", "host-b")
    rig.b.want(REGION, EX)
    rig.settle()
    rig.b.worker.in_use.add(REGION)
    rig.a.want(REGION, CR)
    rig.settle()
    rig.a.want(REGION, EX)
    rig.settle()
    rig.b.worker.give_back(REGION)
    rig.settle()
    assert rig.a.holds(REGION) == EX and rig.b.holds(REGION) == NL
    labels = {"mode": "CR", "resource": "region", "source": "granted", "result": "withdrawn"}
    assert seen(rig.a, "lock_acquisitions_total", **labels) == [1]


def test_no_combination_of_labels_is_new() -> None:
    """Everything above and a stop: all of it was there at 0 from the start, so increase() sees the first one."""
    known = {(family.name, labels) for family in LOCKS for labels in family.known}
    rig = LockRig("host-a", "host-b")
    for mode in (CR, EX):
        for host in (rig.a, rig.b):
            host.want(REGION, mode)
            rig.settle()
    rig.a.want(REGION, CR)
    rig.settle()
    rig.a.stop()
    rig.settle()
    found = all_labels(rig.a) | all_labels(rig.b)
    assert found and found <= known, found - known
