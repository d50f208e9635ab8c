"""Disk I/O of the control process, in a thread: its loop renews the lease and waits for no disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from snapd.daemon.loop import Loop
from snapd.errors import CsnapError

T = TypeVar("T")


def in_thread(loop: Loop, work: Callable[[], T], done: Callable[[T | CsnapError], None]) -> None:
    """Run ``work`` in a thread of its own; call ``done`` in the loop with what it returned or raised."""

    def run() -> None:
        outcome: T | CsnapError
        try:
            outcome = work()
        except CsnapError as error:
            outcome = error
        except OSError as error:
            outcome = CsnapError(f"{error.filename or 'I/O'}: {error.strerror}")
        try:
            loop.call_soon_threadsafe(lambda: done(outcome))
        except RuntimeError:  # the daemon has ended
            return

    threading.Thread(target=run, name="csnap-disk", daemon=True).start()
