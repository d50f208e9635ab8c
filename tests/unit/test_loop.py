"""The control process's loop: timers, other threads, and its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from snapd.daemon.loop import Loop
from snapd.units import SECOND
from snapd.worker.loop import READABLE


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_run_in_order_of_time(loop: Loop) -> None:
    """What is due first runs first, whatever the order of the calls; a cancelled timer never runs."""
    ran: list[str] = []
    now = loop.now()
    loop.call_at(now + 2_000_000, lambda: ran.append("second"))
    loop.call_at(now + 1_000_000, lambda: ran.append("first"))
    loop.call_at(now + 1_500_000, lambda: ran.append("cancelled")).cancel()
    loop.call_at(now + 3_000_000, loop.stop)
    loop.run()
    assert ran == ["first", "second"]


def test_a_timer_in_the_past_runs_soon_but_not_from_inside(loop: Loop) -> None:
    """``call_at`` only schedules, also for what is overdue."""
    ran: list[int] = []
    loop.call_at(0, lambda: ran.append(1))
    assert not ran
    loop.call_at(0, loop.stop)
    loop.run()
    assert ran == [1]


def test_timers_that_reschedule_themselves_leave_descriptors_their_turn(loop: Loop) -> None:
    """An always-due timer does not starve a ready descriptor."""
    readable, writable = os.pipe()
    os.write(writable, b"x")

    def again() -> None:
        loop.call_at(0, again)

    again()
    loop.register(readable, READABLE, lambda events: loop.stop())
    loop.run()
    loop.unregister(readable)
    os.close(readable)
    os.close(writable)


def test_another_thread_wakes_the_loop_at_once(loop: Loop) -> None:
    """What is posted runs in the loop's thread, long before the longest wait is over."""
    ran: list[int] = []
    begun = loop.now()

    def finish() -> None:
        ran.append(threading.get_ident())
        loop.stop()

    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(finish))
    loop.call_later(SECOND // 100, thread.start)
    loop.run()
    thread.join()
    assert ran == [threading.get_ident()]
    assert loop.now() - begun < SECOND // 4


def test_a_closed_loop_takes_nothing() -> None:
    """A thread that comes too late gets RuntimeError instead of writing to somebody else's descriptor."""
    loop = Loop()
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError):
        loop.call_soon_threadsafe(lambda: None)
