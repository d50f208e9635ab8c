"""The worker's event loop: epoll, one thread, one callback a descriptor."""

from __future__ import annotations

import select
from collections.abc import Callable

Handler = Callable[[int], None]
"""Called with the epoll event mask."""

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT


class Loop:
    """Descriptors and their handlers. Level triggered, so a handler may leave work for the next turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def register(self, fd: int, mask: int, handler: Handler) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready for ``mask``."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for something else on ``fd``."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget ``fd``, before it is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def turn(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds (0: not at all) and call the handlers of what is ready."""
        handlers = self._handlers
        for fd, events in self._epoll.poll(timeout):
            handler = handlers.get(fd)
            if handler is not None:  # an earlier handler of this turn may have closed it
                handler(events)
