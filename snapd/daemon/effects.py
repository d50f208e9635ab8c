"""Where the member's decisions go: the worker, the deadline page, the log, the metrics (``ports.Effects``)."""

from __future__ import annotations

from collections.abc import Callable

from snapd.daemon.gate import Sink
from snapd.daemon.log import Log
from snapd.daemon.metrics import Observations
from snapd.errors import CsnapError
from snapd.messages import Message


class Outlet:
    """``changed(state, why)`` and ``ended(error)`` are the daemon's; ``worker``: it, or what stands before it."""

    def __init__(
        self,
        worker: Sink,
        log: Log,
        observations: Observations,
        changed: Callable[[str, str], None],
        ended: Callable[[CsnapError], None],
    ) -> None:
        self.send: Callable[[Message], None] = worker.send
        self.set_deadline: Callable[[int], None] = worker.set_deadline
        self.log = log
        self.observe = observations.observe
        self.state = changed
        self.failed = ended
