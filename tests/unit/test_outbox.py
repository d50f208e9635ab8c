"""The outbox: the loop never waits for whoever reads the log."""

from __future__ import annotations

import threading

import pytest

from snapd.daemon import outbox
from snapd.daemon.outbox import Outbox


def test_before_the_start_things_are_said_at_once() -> None:
    """And after the end: nothing of a daemon's first and last words is lost."""
    said: list[int] = []
    box = Outbox()
    box.put(lambda: said.append(1))
    assert said == [1]
    box.start()
    box.close()
    box.put(lambda: said.append(2))
    assert said == [1, 2]


def test_everything_is_said_in_order() -> None:
    """By one other thread."""
    said: list[tuple[int, int]] = []
    box = Outbox()
    box.start()
    for number in range(100):
        box.put(lambda number=number: said.append((number, threading.get_ident())))  # type: ignore[misc]
    box.close()
    assert [number for number, _ in said] == list(range(100))
    assert {thread for _, thread in said} - {threading.get_ident()} == {said[0][1]}


def test_a_reader_that_blocks_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is dropped and counted; closing waits no longer than its limit."""
    monkeypatch.setattr(outbox, "BACKLOG", 5)
    monkeypatch.setattr(outbox, "CLOSE_LIMIT", 0.05)
    box = Outbox()
    entered, blocked = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        blocked.wait(20)

    box.start()
    box.put(block)
    assert entered.wait(20)
    for _ in range(8):
        box.put(lambda: None)
    assert box.dropped == 3
    box.close()
    blocked.set()
