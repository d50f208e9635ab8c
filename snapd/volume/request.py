"""A client's request, as the NBD server hands it to the volume, and what the volume shows the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

READ, WRITE, FLUSH, TRIM, ZERO = range(5)
"""Operations; the numbers index ``counters.OPERATIONS``."""


class Request:
    """One request on one export.

    segments: (where, length) runs of the arena that together hold ``length`` bytes, in order; empty
        for FLUSH, TRIM, ZERO. They belong to the request until ``done`` is called.
    offset, length: bytes, multiples of the export's minimum block, within the export (the server checked).
    done: called exactly once with the request and 0 or a positive errno. May be called inside submit().
    """

    __slots__ = ("cursor", "done", "error", "export", "fua", "left", "length", "lot", "offset", "operation",
                 "segments", "started", "tag", "timeline")  # fmt: skip

    def __init__(
        self,
        export: Any,
        operation: int,
        offset: int,
        length: int,
        segments: Sequence[tuple[int, int]],
        fua: bool,
        done: Callable[[Request, int], None],
        lot: Any = None,
        tag: Any = None,
    ) -> None:
        self.export = export
        self.operation = operation
        self.offset = offset
        self.length = length
        self.segments = segments
        self.fua = fua
        self.done = done
        self.lot = lot  # of the server: what it is counted with
        self.tag = tag  # of the server: the cookie
        self.left = 0  # of the volume: parts not finished
        self.error = 0
        self.cursor = 0  # of the volume: bytes of a WRITE_ZEROES that have been started
        self.started = 0  # of the server: boottime ns
        self.timeline: Any = None  # of the volume: stages.Timeline, once a part has left the fast path


class Export(Protocol):
    """What a client may open by name."""

    @property
    def name(self) -> str:
        """``origin`` or ``snapshot/<name>``."""

    @property
    def identity(self) -> str:
        """What tells it from another one that has, or had, the same name."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def read_only(self) -> bool: ...

    @property
    def minimum_block(self) -> int:
        """Bytes: the origin's logical block."""

    @property
    def preferred_block(self) -> int:
        """Bytes: the chunk size."""

    @property
    def description(self) -> str: ...


class Backend(Protocol):
    """The volume, as the NBD server sees it."""

    def exports(self) -> Sequence[Export]: ...

    def settled(self) -> bool:
        """Whether ``exports`` is what the cluster has now; while it may be changing, newcomers wait."""

    def submit(self, request: Request) -> None:
        """Start ``request``; ``done`` is called when it is finished, perhaps at once."""
