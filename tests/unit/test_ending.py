"""The end of a daemon's life, its worker, member and store played: who gets the clients, and by when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from snapd.daemon.ending import KEEP_END, LEAVE_END, STOP_LIMIT, WORKER_END, Ending
from snapd.messages import Stop
from snapd.units import SECOND


class Loop:
    """Timers that the test fires."""

    def __init__(self) -> None:
        self.time = SECOND
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.stopped = False

    def now(self) -> int:
        return self.time

    def call_later(self, delay: int, callback: Callable[[], None]) -> Loop:
        self.timers.append((self.time + delay, callback))
        return self

    def cancel(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True


class Worker:
    def __init__(self) -> None:
        self.alive, self.pid = True, 1
        self.told: list[object] = []

    def send(self, message: object) -> None:
        self.told.append(message)

    def kill(self) -> None:
        self.alive = False

    def handed_over(self) -> list[int]:
        return [7, 8, 9]


class Member:
    def leave(self, done: Callable[[bool], None], limit: int) -> None:
        self.done, self.limit = done, limit


class Store:
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.limit = 0.0

    def keep(self, descriptors: list[int], limit: float) -> bool:
        self.kept, self.limit = descriptors, limit
        return True


class Scene:
    """A stop that has begun."""

    def __init__(self, hand_over: bool = True, store: Store | None = None) -> None:
        self.loop, self.worker, self.member, self.store = Loop(), Worker(), Member(), store or Store()
        self.logged: list[str] = []
        anything: Any = self
        self.ending = Ending(anything.loop, lambda priority, event, fields: self.logged.append(event), anything.store)
        self.ending.begin(anything.worker, hand_over)

    def stopped(self, *, joined: bool = True) -> None:
        """The worker says Stopped."""
        member: Any = self.member if joined else None
        self.ending.worker_stopped(member, None)

    def end(self) -> list[int]:
        """The worker's process is gone and the loop has ended; return what was kept."""
        self.worker.alive = False
        self.ending.hand_over()
        return self.store.kept


def test_a_clean_leave_keeps_the_clients() -> None:
    """What the worker has handed over goes to the store, after the leave."""
    scene = Scene()
    assert scene.worker.told == [Stop(hand_over=True)]
    scene.stopped()
    assert not scene.ending.let_go
    scene.member.done(True)
    assert scene.ending.let_go and scene.end() == [7, 8, 9]
    assert scene.logged == ["handed_over"]


def test_an_unclean_leave_keeps_nothing() -> None:
    """Somebody may have to recover this member: the clients must learn that it is gone."""
    scene = Scene()
    scene.stopped()
    scene.member.done(False)
    assert scene.end() == [] and scene.logged == ["not_released"]


def test_a_leave_that_has_not_ended_keeps_nothing() -> None:
    """The time is up: whether the locks are released is not known."""
    scene = Scene()
    scene.stopped()
    assert scene.end() == []


def test_a_worker_that_has_not_stopped_keeps_nothing() -> None:
    """It hangs: it is killed at its limit, and what it may have sent is not used."""
    scene = Scene()
    when, hangs = scene.loop.timers[0]
    assert when == scene.loop.time + WORKER_END
    hangs()
    assert not scene.worker.alive and scene.end() == []


def test_who_has_not_joined_has_nothing_to_release() -> None:
    """A daemon that is restarted while it waits for etcd hands on what it has inherited."""
    scene = Scene()
    scene.stopped(joined=False)
    assert scene.end() == [7, 8, 9]


@pytest.mark.parametrize("hand_over", [True, False])
def test_without_a_store_or_at_an_interrupt_the_worker_answers_as_ever(hand_over: bool) -> None:
    """It is not told to hand anything over."""
    scene = Scene(hand_over)
    assert scene.worker.told == [Stop(hand_over)]
    anything: Any = scene
    ending = Ending(anything.loop, lambda priority, event, fields: None, None)
    ending.begin(anything.worker, True)
    assert scene.worker.told[-1] == Stop(hand_over=False)


def test_the_timeline_is_kept() -> None:
    """Each step has its end, and a late one leaves less to the next: over within ten seconds, whatever hangs."""
    assert WORKER_END < LEAVE_END < STOP_LIMIT < KEEP_END < 10 * SECOND
    scene = Scene()
    scene.loop.time += 8 * SECOND
    scene.stopped()
    assert scene.member.limit == LEAVE_END - 8 * SECOND
    scene.member.done(True)
    scene.loop.time += SECOND
    scene.end()
    assert scene.store.limit == (KEEP_END - 9 * SECOND) / SECOND


def test_a_stop_that_took_too_long_still_ends_in_order() -> None:
    """A machine that stood still (a virtual one that was moved) has passed the last limit: systemd gets the clients all
    the same, in the moment that is left."""
    scene = Scene()
    scene.stopped()
    scene.member.done(True)
    scene.loop.time += 2 * KEEP_END
    assert scene.end() == [7, 8, 9]
    assert 0 < scene.store.limit < 1
