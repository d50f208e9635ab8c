"""A part of a client's request: what one region's lock and one buffer cover; the unit that runs or waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapd.volume.request import Request

if TYPE_CHECKING:
    from snapd.volume.stages import Timeline


class Part:
    """``length`` bytes at ``offset`` of the export, in the arena at ``where``.

    A part is *running* (it may have I/O in flight; a table revoke waits for it) or in exactly one queue
    (it has none, holds nothing, and is routed from the beginning when it is woken).
    """

    __slots__ = ("error", "left", "length", "offset", "region", "request", "timeline", "tracked", "waited", "where")

    def __init__(self, request: Request, offset: int, length: int, where: int) -> None:
        self.request = request
        self.offset = offset
        self.length = length
        self.where = where
        self.left = 0  # disk operations or copies it waits for while running
        self.error = 0
        self.region = -1  # region whose lock its fall-through reads use
        self.tracked: list[int] = []  # chunks it reads through the stack
        self.waited = False  # for the region's lock, which it has not used yet
        self.timeline: Timeline | None = None  # since it left the fast path

    def cut(self, length: int) -> Part:
        """Shorten this part to ``length`` bytes and return the rest, a part of its own."""
        rest = Part(self.request, self.offset + length, self.length - length, self.where + length)
        self.request.left += 1
        self.length = length
        return rest
