"""Between the member and the worker: the table's grant waits until this host can be fenced.

No I/O is done without the table, so who holds its grant back holds everything back. The grant is all that is delayed:
if the table is asked back meanwhile, it is given back here, as the worker would, so a host whose fencing cannot be
prepared stays joining and is in nobody's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from snapd.daemon.loop import Loop
from snapd.messages import Done, Grant, Message, Revoke, Serving

Ready = Callable[[str], None]
"""Called once, in the loop: "" when the grant may go, else why not; it is asked for again after a while."""


class Sink(Protocol):
    """The worker, as far as the member's decisions go to it."""

    def send(self, message: Message) -> None: ...
    def set_deadline(self, deadline: int) -> None: ...


class Gate:
    """``prepare(grant, ready)``: whether everything that this grant lets the worker write to is ready for fencing;
    returns True if it is at once. ``told`` gets what the worker would have answered."""

    AGAIN = 2_000_000_000

    def __init__(
        self, loop: Loop, sink: Sink, told: Callable[[Message], None], prepare: Callable[[Grant, Ready], bool]
    ) -> None:
        self._loop, self._sink, self._told, self._prepare = loop, sink, told, prepare
        self._held: Grant | None = None

    def send(self, message: Message) -> None:
        if isinstance(message, Grant) and message.resource == "table":
            self._held = message
            self._try(message)
        elif isinstance(message, Revoke) and message.resource == "table" and self._held is not None:
            self._held = None
            self.answer(Done("table", message.mode))
        else:
            self._sink.send(message)

    def answer(self, message: Message) -> None:
        """In the worker's place; never from inside the member's call."""
        self._loop.call_later(0, lambda: self._told(message))

    def _try(self, grant: Grant) -> None:
        if grant is not self._held:
            return

        def ready(why: str) -> None:
            if grant is not self._held:
                return
            if why:
                self.answer(Serving(why))
                self._loop.call_later(self.AGAIN, lambda: self._try(grant))
            else:
                self._go(grant)

        if self._prepare(grant, ready):
            self._go(grant)

    def _go(self, grant: Grant) -> None:
        self._held = None
        self._sink.send(grant)
