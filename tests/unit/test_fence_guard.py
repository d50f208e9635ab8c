"""Between member and worker: no write before this host can be fenced, and nothing taken from others at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snapd.daemon.gate import Gate
from snapd.daemon.loop import Loop
from snapd.daemon.petting import WatchdogGuard
from snapd.daemon.registering import ReservationGuard
from snapd.errors import CsnapError, Fenced, NoDaemon
from snapd.helper.client import Helper
from snapd.messages import (
    CR,
    NL,
    Done,
    Forget,
    Grant,
    Message,
    Prepare,
    Prepared,
    Revoke,
    Serving,
    SnapshotSpec,
)
from snapd.units import SECOND

KEY = "a" * 16
ORIGIN, COW = "/dev/origin", "/dev/cow"


def spec(name: str = "s1", path: str = COW, state: str = "active") -> SnapshotSpec:
    return SnapshotSpec(name, f"store-{name}", path, state, False, 1)


def table(*snapshots: SnapshotSpec) -> Grant:
    return Grant("table", CR, 7, (), 0, snapshots)


class FakeHelper(Helper):
    """Answers at once; ``fails`` names devices that do not answer."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.asked: list[tuple[str, str]] = []
        self.deadlines: list[int] = []
        self.fails: set[str] = set()
        self.error: CsnapError = CsnapError("no path")
        self.kept = False

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        device = fields.get("device", "")
        if device in self.fails or verb in self.fails:
            raise self.error
        self.asked.append((verb, device))
        if verb == "pet":
            self.deadlines.append(fields["deadline"])
            return {"identity": "x", "timeout": 15, "nowayout": False}
        return {"holder": True, "found": True, "aborted": True, "kept": self.kept, "disarmed": True}


class FakeMember:
    """As much of a member as a guard asks."""

    def __init__(self, **keys: str) -> None:
        self.keys = {"host-a": KEY, **keys}
        self.records: list[Any] = []

        class Settings:
            node = "host-a"

        self.settings = Settings

    def fence_keys(self) -> dict[str, str]:
        return dict(self.keys)

    def snapshots(self) -> tuple[Any, ...]:
        return tuple(self.records)


class Desk:
    """A guard with a fake helper; what reached the worker, what the member was told, what ended the daemon."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.helper = FakeHelper()
        self.sent: list[Message] = []
        self.told: list[Message] = []
        self.errors: list[CsnapError] = []
        self.deadlines: list[int] = []
        self.events: list[str] = []
        self.member = FakeMember()

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def set_deadline(self, deadline: int) -> None:
        self.deadlines.append(deadline)

    def log(self, priority: int, event: str, fields: dict[str, object]) -> None:
        self.events.append(event)

    def reservations(self) -> ReservationGuard:
        guard = ReservationGuard(
            self.loop, self, self.log, self.told.append, self.errors.append, self.helper, ORIGIN, KEY
        )
        guard.member = self.member  # type: ignore[assignment]
        return guard

    def watchdog(self) -> WatchdogGuard:
        return WatchdogGuard(self.loop, self, self.log, self.told.append, self.helper, "watchdog:15:10")

    def until(self, reached: Callable[[], object]) -> None:
        end = self.loop.now() + 20 * SECOND
        while not reached():
            assert self.loop.now() < end, (self.sent, self.told, self.events)
            self.loop.turn(0.01)
            self.loop._run_due()


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(Gate, "AGAIN", SECOND // 20)
    made = Desk()
    yield made
    made.loop.close()


# ---- the gate


def test_the_table_waits_for_the_keys(desk: Desk) -> None:
    """The grant reaches the worker when origin and every live COW device have the key; the next one at once."""
    guard = desk.reservations()
    grant = table(spec(), spec("s0", "/dev/gone", "invalid"))
    guard.send(grant)
    assert desk.sent == []
    desk.until(lambda: desk.sent)
    assert desk.sent == [grant]
    assert desk.helper.asked == [("register", ORIGIN), ("register", COW)]
    guard.send(grant)
    assert desk.sent == [grant, grant]


def test_everything_else_passes_at_once(desk: Desk) -> None:
    """Only the table's grant is held back: who waits for a region of this host is not."""
    guard = desk.reservations()
    guard.send(table())
    others: list[Message] = [Revoke("region/1", NL), Grant("region/2", CR, 1), Forget("x")]
    for message in others:
        guard.send(message)
    assert desk.sent == others


def test_a_host_that_cannot_register_stays_joining(desk: Desk) -> None:
    """The member is told why; it is tried again, and the grant goes when it succeeds."""
    desk.helper.fails.add(ORIGIN)
    guard = desk.reservations()
    guard.send(table())
    desk.until(lambda: len(desk.told) > 1)
    assert desk.told[0] == Serving("fencing: no path") and desk.sent == []
    desk.helper.fails.clear()
    desk.until(lambda: desk.sent)
    assert desk.sent == [table()]


def test_a_table_that_is_asked_back_meanwhile_is_given_back(desk: Desk) -> None:
    """As the worker would, which never had it: nobody waits for a host that cannot register."""
    desk.helper.fails.add(ORIGIN)
    guard = desk.reservations()
    guard.send(table())
    guard.send(Revoke("table", NL))
    desk.until(lambda: Done("table", NL) in desk.told)
    desk.helper.fails.clear()
    guard.send(Revoke("table", NL))  # the worker has nothing, and says so itself
    assert desk.sent == [Revoke("table", NL)]


# ---- snapshots that are taken


def test_a_new_cow_device_is_registered_before_it_is_opened(desk: Desk) -> None:
    """Prepare reaches the worker behind it; its answer is what tells the cluster that this host is ready."""
    guard = desk.reservations()
    prepare = Prepare(1, spec(state="creating"))
    guard.send(prepare)
    assert desk.sent == []
    desk.until(lambda: desk.sent)
    assert desk.sent == [prepare] and desk.helper.asked == [("register", COW)]


def test_a_cow_device_without_reservations_refuses_the_snapshot(desk: Desk) -> None:
    """By name, in the worker's place."""
    desk.helper.fails.add(COW)
    guard = desk.reservations()
    guard.send(Prepare(1, spec(state="creating")))
    desk.until(lambda: desk.told)
    assert desk.told == [Prepared(1, "cannot be fenced there: no path")] and desk.sent == []


def test_a_snapshot_that_is_forgotten_meanwhile_is_not_prepared(desk: Desk) -> None:
    """Forget does not overtake its Prepare: the worker would keep the device open."""
    guard = desk.reservations()
    guard.send(Prepare(1, spec(state="creating")))
    guard.send(Forget("store-s1"))
    desk.until(lambda: "registered" in desk.events)
    assert desk.sent == [Forget("store-s1")]


def test_a_device_that_was_in_use_before_is_registered_before_it_is_formatted(desk: Desk) -> None:
    """It may be reserved still; one that the helper does not take is just formatted."""
    guard = desk.reservations()
    guard.before_format(COW)
    assert desk.helper.asked == [("register", COW)]
    desk.helper.fails.add(COW)
    guard.before_format(COW)


# ---- fencing others


class Ended:
    def __init__(self) -> None:
        self.answers: list[tuple[str, bool]] = []

    def __call__(self, error: str, aborted: bool) -> None:
        self.answers.append((error, aborted))


class Record:
    def __init__(self, path: str, state: str) -> None:
        self.path, self.state = path, state


def test_the_victim_is_preempted_everywhere(desk: Desk) -> None:
    """On the origin and on every live snapshot's COW device, also on one that has not our own key yet."""
    guard = desk.reservations()
    desk.member.records = [Record(COW, "active"), Record("/dev/invalid", "invalid")]
    ended = Ended()
    guard.preempt("b" * 16, ended)
    desk.until(lambda: ended.answers)
    assert ended.answers == [("", True)]
    assert desk.helper.asked == [("register", ORIGIN), ("register", COW), ("preempt", ORIGIN), ("preempt", COW)]


def test_one_device_that_does_not_answer_is_no_fencing(desk: Desk) -> None:
    """The dead host may still write there."""
    guard = desk.reservations()
    desk.member.records = [Record(COW, "active")]
    desk.helper.fails.add(COW)
    ended = Ended()
    guard.preempt("b" * 16, ended)
    desk.until(lambda: ended.answers)
    assert ended.answers == [("no path", False)] and not desk.errors


def test_who_finds_its_own_key_gone_is_fenced_itself(desk: Desk) -> None:
    """The daemon ends, with 4."""
    guard = desk.reservations()
    desk.helper.fails.add("preempt")
    desk.helper.error = Fenced("not registered")
    ended = Ended()
    guard.preempt("b" * 16, ended)
    desk.until(lambda: ended.answers)
    assert isinstance(desk.errors[0], Fenced) and ended.answers[0][0]


# ---- leaving


def test_the_key_of_a_member_that_left_is_removed(desk: Desk) -> None:
    """It may hold the reservation: preempting it hands that over. A failure is said and ends nothing."""
    guard = desk.reservations()
    guard.send(table(spec()))
    desk.until(lambda: desk.sent)
    guard.tidy("b" * 16)
    desk.until(lambda: ("preempt", COW) in desk.helper.asked)
    assert ("preempt", ORIGIN) in desk.helper.asked
    desk.helper.fails.add("preempt")
    guard.tidy("b" * 16)
    desk.until(lambda: "key_not_removed" in desk.events)
    assert not desk.errors


def test_leaving_takes_the_key_away_or_leaves_it_to_the_others(desk: Desk) -> None:
    """Whoever holds the reservation leaves its key, and says so."""
    guard = desk.reservations()
    guard.send(table())
    desk.until(lambda: desk.sent)
    desk.helper.kept = True
    left: list[bool] = []
    guard.left(lambda: left.append(True))
    desk.until(lambda: left)
    assert desk.helper.asked[-1] == ("unregister", ORIGIN)
    assert "reservation_left_to_others" in desk.events


def test_leaving_ends_without_a_helper_too(desk: Desk) -> None:
    """The key stays, and it is said."""
    guard = desk.reservations()
    guard.send(table())
    desk.until(lambda: desk.sent)
    desk.helper.fails.add("unregister")
    left: list[bool] = []
    guard.left(lambda: left.append(True))
    desk.until(lambda: left)
    assert "not_unregistered" in desk.events


# ---- the watchdog


def test_no_table_before_the_watchdog_is_armed(desk: Desk) -> None:
    """The first pet arms it; until then the worker gets nothing to do."""
    guard = desk.watchdog()
    desk.helper.fails.add("pet")
    guard.set_deadline(10)
    guard.send(table())
    desk.until(lambda: desk.told)
    assert desk.sent == [] and desk.told[0] == Serving("fencing: no path")
    desk.helper.fails.clear()
    desk.until(lambda: desk.sent)
    assert desk.sent == [table()] and "watchdog_armed" in desk.events


def test_every_deadline_reaches_page_and_watchdog_in_order(desk: Desk) -> None:
    """The page first: it is what the worker looks at. One request at a time, the last deadline always last."""
    guard = desk.watchdog()
    guard.set_deadline(0)
    assert desk.helper.asked == []  # no lease yet: nothing is armed
    for deadline in (10, 20, 30, 0):
        guard.set_deadline(deadline)
    assert desk.deadlines == [0, 10, 20, 30, 0]
    desk.until(lambda: desk.helper.deadlines[-1:] == [0])
    assert desk.helper.deadlines == [10, 0]


def test_it_is_disarmed_when_the_worker_has_ended_and_not_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose I/O the kernel does not give back may still write: then the host has to be reset."""
    asked: list[str] = []

    def ask(helper: Helper, verb: str, **fields: Any) -> dict[str, Any]:
        asked.append(verb)
        return {"disarmed": True}

    guard = desk.watchdog()
    monkeypatch.setattr(Helper, "ask", ask)
    guard.close(worker_ended=False)
    assert asked == [] and desk.events == ["watchdog_left_armed"]
    guard.close(worker_ended=True)
    assert asked == ["disarm"]


def test_a_helper_that_is_gone_at_the_end_is_said(desk: Desk) -> None:
    """The host is going to be reset, and the log says why."""
    guard = desk.watchdog()
    desk.helper.error = NoDaemon("gone")
    guard.close(worker_ended=True)
    assert desk.events == ["watchdog_left_armed"]
