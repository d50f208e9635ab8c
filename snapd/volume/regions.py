"""The worker's cache of region locks: what is held, who uses it, who waits for it, who else wants it.

    state of a region            admits uses   leaves it when
    not held                     no            granted
    held (CR or EX)              up to mode    revoked; or EX is wanted under CR
    revoked (to CR or NL)        no            no use is left: Done is sent, waiters ask anew
    upgrading (CR, EX wanted)    no            no use is left: Want(EX) is sent, the CR is given up with it

A use is a copy-out or a read that falls through the stack. A part that waits is no use: two hosts that
drain for each other's region would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from snapd.messages import CR, EX, NL
from snapd.volume.part import Part


class Regions:
    """``want(region, mode)`` and ``done(region, mode)`` tell the lockspace; ``restart`` routes parts anew."""

    def __init__(
        self,
        want: Callable[[int, int], None],
        done: Callable[[int, int], None],
        restart: Callable[[list[Part]], None],
    ) -> None:
        self._want = want
        self._done = done
        self._restart = restart
        self._held: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self._revoked: dict[int, int] = {}
        self._upgrading: set[int] = set()
        self._wanted: dict[int, int] = {}
        self._waiting: dict[int, list[Part]] = {}

    def usable(self, region: int, mode: int) -> bool:
        """Whether a new use in ``mode`` may begin now."""
        return self._held.get(region, NL) >= mode and region not in self._revoked and region not in self._upgrading

    def held(self, region: int) -> int:
        """The mode held, whether or not it admits new uses."""
        return self._held.get(region, NL)

    @property
    def waiting(self) -> int:
        """Parts that wait for a region."""
        return sum(map(len, self._waiting.values()))

    def used(self, most: int) -> list[int]:
        """Up to ``most`` regions that have uses."""
        return list(islice(self._uses, most))

    def begin(self, region: int) -> None:
        """A use begins; the caller has just seen it ``usable``."""
        self._uses[region] = self._uses.get(region, 0) + 1

    def end(self, region: int) -> None:
        """A use ends."""
        left = self._uses[region] - 1
        if left:
            self._uses[region] = left
            return
        del self._uses[region]
        self._drained(region)

    def wait(self, region: int, mode: int, part: Part | None = None) -> None:
        """Queue ``part`` until the region is granted; ask for it unless that has been done."""
        if part is not None:
            self._waiting.setdefault(region, []).append(part)
        if region in self._revoked or self._wanted.get(region, NL):
            return  # asked anew after Done; or a grant is coming, which wakes everybody
        self._wanted[region] = mode
        if self._held.get(region, NL) == CR and mode == EX:
            self._upgrading.add(region)
            if region not in self._uses:
                self._drained(region)
        else:
            self._want(region, mode)

    def granted(self, region: int, mode: int) -> None:
        """The lockspace granted ``region`` in ``mode``."""
        self._held[region] = mode
        self._wanted.pop(region, None)
        self._wake(region)

    def revoked(self, region: int, mode: int) -> None:
        """Somebody waits: keep at most ``mode``. Nothing to do if no more is held (the messages crossed)."""
        if self._held.get(region, NL) <= mode:
            return
        self._revoked[region] = min(mode, self._revoked.get(region, mode))
        if region not in self._uses:
            self._drained(region)

    def _drained(self, region: int) -> None:
        if region in self._revoked:
            mode = self._revoked.pop(region)
            if region in self._upgrading:
                self._upgrading.discard(region)
                self._wanted.pop(region, None)
            self._keep(region, mode)
            self._done(region, mode)
            self._wake(region)
        elif region in self._upgrading:
            self._upgrading.discard(region)
            self._keep(region, NL)
            self._want(region, EX)

    def _keep(self, region: int, mode: int) -> None:
        if mode:
            self._held[region] = mode
        else:
            self._held.pop(region, None)

    def _wake(self, region: int) -> None:
        parts = self._waiting.pop(region, None)
        if parts:
            self._restart(parts)

    def take_waiting(self) -> list[Part]:
        """Remove and return every waiting part (shutdown, fencing)."""
        parts = self.parts()
        self._waiting.clear()
        return parts

    def parts(self) -> list[Part]:
        """Every waiting part."""
        return [part for queue in self._waiting.values() for part in queue]
