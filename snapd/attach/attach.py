"""Keeps the origin attached to a device of the kernel's NBD client, whatever happens to the daemon.

    waiting       not attached: offer a connection until one is taken (CONNECT)
    attached      the kernel has a connection, as far as is known
    reconnecting  it is dead: offer another until it is taken (RECONFIGURE); meanwhile requests wait in the kernel,
                  for ``dead_timeout`` seconds, then they fail

The kernel takes an offered connection only if its own is dead, so offering one is never wrong, and everything that
hints at a dead one leads to an offer: the driver's announcement, announcements that were lost, requests of which none
ends, and the start of this program, which finds the device attached when it was restarted (it adopts it). RECONFIGURE
says "done" in either case; whether the socket was taken is seen by its being open still when we have closed it.

One connection: with several, the driver sends what was under way on a dead one on another at once, while a stalled
server may still do the first. It is in the path of block I/O: no DNS, no fork, nothing imported once it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from select import POLLIN
from typing import Protocol

from snapd.attach import genetlink
from snapd.attach.device import Device, is_held
from snapd.attach.negotiate import Offer, Wait, reach
from snapd.clock import boottime
from snapd.config import Config
from snapd.errors import CsnapError, Refused
from snapd.nbd.identity import describe, is_of
from snapd.units import SECOND

EXPORT = "origin"

BACKOFF_FIRST, BACKOFF_MOST = SECOND // 50, SECOND // 2
"""A daemon that was killed is back within a second or two; one that is not is asked twice a second."""

TICK = 2 * SECOND
STUCK = 4 * SECOND
"""With requests under way and none that ended for so long, a connection is offered: twice ``io_timeout``."""

IGNORED_MOST = 5
"""Offers in a row that the kernel did not take: it has a live connection. The first may come a moment too early: a
death is announced before the driver has noted it."""

ERROR, WARNING, NOTICE = 3, 4, 5

Log = Callable[[int, str, dict[str, object]], None]
Tell = Callable[[str], object]
"""systemd's notify."""


class Kernel(Protocol):
    def connect(self, *, index: int, attributes: tuple[bytes, ...]) -> None: ...
    def reconfigure(self, *, index: int, attributes: tuple[bytes, ...]) -> None: ...


class Deaths(Protocol):
    def fileno(self) -> int: ...
    def read(self, index: int) -> bool: ...


def backend_of(config: Config) -> str:
    """What the kernel keeps with the device: whose it is. The udev rule takes the volume's name from it."""
    return f"csnap {config.volume.name} {config.volume.cluster_uuid}"


def pauses() -> Iterator[int]:
    """Yield how long to wait after each attempt."""
    pause = BACKOFF_FIRST
    while True:
        yield pause
        pause = min(2 * pause, BACKOFF_MOST)


class Progress:
    """Notices requests of which none ends."""

    def __init__(self, now: int) -> None:
        self._completed, self._since = -1, now

    def stuck(self, now: int, inflight: int, completed: int) -> bool:
        if not inflight or completed != self._completed:
            self._completed, self._since = completed, now
        if now - self._since < STUCK:
            return False
        self._since = now
        return True


class Attachment:
    """One volume's device. ``run`` ends by what ``wait`` raises, or when somebody detached the device."""

    def __init__(
        self,
        config: Config,
        kernel: Kernel,
        deaths: Deaths,
        device: Device,
        wait: Wait,
        log: Log,
        tell: Tell,
        held: Callable[[int], bool] = is_held,
    ) -> None:
        self._path, self._dead_timeout = config.export.nbd, config.attach.dead_timeout
        self._backend, self._volume = backend_of(config), config.volume
        self._kernel, self._deaths, self._device = kernel, deaths, device
        self._wait, self._log, self._tell, self._held = wait, log, tell, held
        self._said = ""

    def run(self) -> None:
        """Raises Refused: the device is another's, or not of the origin's size, or the socket is another volume's."""
        lost = self._begin()
        self._tell("READY=1")
        while self._watch(lost):
            lost = True
        self._log(NOTICE, "detached", {"device": self._device.path, "by": "somebody else"})

    # ---- the states

    def _begin(self) -> bool:
        """Attach, or find it attached. Return whether the connection may be dead."""
        adopting = self.check_owner()
        for pause in pauses():
            try:
                taken = self._offer()
            except Refused:
                raise
            except CsnapError as error:
                if adopting:  # whoever uses it goes on as before; the next state brings the connection
                    return True
                if self._is_new(error):
                    self._log(WARNING, "attach_waiting", {"device": self._device.path, "reason": str(error)})
                self._tell(f"STATUS=waiting: {error}")
                self._pause(pause)
            else:
                self._settle()
                fields = {"device": self._device.path, "size": self._device.size, "adopted": adopting}
                self._log(NOTICE, "attached", fields | {"reconnected": adopting and taken})
                return False
        raise AssertionError("pauses never end")

    def _watch(self, lost: bool) -> bool:
        """Until the connection is dead, or may be; then until there is another. False: it was detached."""
        if lost and not self._reconnect():
            return False
        self._tell(f"STATUS=attached to {self._device.path}")
        progress = Progress(boottime())
        while True:
            self._tell("WATCHDOG=1")
            if self._wait(boottime() + TICK, self._deaths.fileno(), POLLIN) and self._deaths.read(self._device.index):
                return True
            if not self._attached():
                return False
            if progress.stuck(boottime(), self._device.inflight, self._device.completed) and self._probe():
                fields = {"device": self._device.path, "seconds": STUCK // SECOND, "taken": True}
                self._log(NOTICE, "reconnected", fields)  # its death was announced to nobody

    def _reconnect(self) -> bool:
        begun = boottime()
        self._log(WARNING, "connection_lost", {"device": self._device.path})
        self._tell(f"STATUS=reconnecting: requests to {self._device.path} wait")
        failed = False
        ignored = 0
        for pause in pauses():
            if not self._attached():
                return False
            taken = self._probe()
            ignored = 0 if self._said else ignored + 1
            waited = boottime() - begun
            if taken or ignored == IGNORED_MOST:
                fields = {"device": self._device.path, "seconds": round(waited / SECOND, 3), "taken": taken}
                self._log(NOTICE, "reconnected", fields)
                return True
            if waited > self._dead_timeout * SECOND and not failed:
                failed = True
                self._log(ERROR, "requests_failed", {"device": self._device.path, "seconds": self._dead_timeout})
            self._tell("WATCHDOG=1")
            self._pause(pause)
        raise AssertionError("pauses never end")

    # ---- steps

    def check_owner(self) -> bool:
        """Whether it is attached, and to this volume. Raises Refused: to something else."""
        found = self._device.backend
        if found is None or found == self._backend:
            return found is not None
        other = f"to {found!r}" if found else "by a client that does not say to what"
        raise Refused(f"{self._device.path}: already attached {other}, expected {self._backend!r}")

    def _attached(self) -> bool:
        return self._device.backend == self._backend

    def _offer(self) -> bool:
        """Negotiate a connection and offer it to the kernel; return whether it was taken. Raises CsnapError."""
        sock, offer = reach(self._path, EXPORT, self._wait)
        with sock:
            inode = os.fstat(sock.fileno()).st_ino
            self._check_volume(offer)
            if self.check_owner():
                self._check(offer)
                attributes = genetlink.reconfigure(
                    index=self._device.index,
                    dead_timeout=self._dead_timeout,
                    backend=self._backend,
                    descriptor=sock.fileno(),
                )
                self._kernel.reconfigure(index=self._device.index, attributes=attributes)
            else:
                attributes = genetlink.connect(
                    index=self._device.index,
                    size=offer.size,
                    block=offer.block,
                    flags=offer.flags,
                    dead_timeout=self._dead_timeout,
                    backend=self._backend,
                    descriptor=sock.fileno(),
                )
                self._kernel.connect(index=self._device.index, attributes=attributes)
        self._said = ""
        return self._held(inode)

    def _check_volume(self, offer: Offer) -> None:
        """Raises Refused: another volume's daemon serves this socket now."""
        if not is_of(offer.description, self._volume.cluster_uuid):
            expected = describe(self._volume.name, self._volume.cluster_uuid)
            raise Refused(f"{self._path}: serves {offer.description!r}, expected {expected!r}")

    def _check(self, offer: Offer) -> None:
        """Raises Refused: the device was attached to something that is not what is offered now."""
        device = self._device
        was = (device.size, device.read_only, device.block)
        if was != (offer.size, offer.read_only, offer.block):
            raise Refused(
                f"{device.path}: {was[0]} bytes, read-only {was[1]}, blocks of {was[2]}; the export {EXPORT!r} has"
                f" {offer.size} bytes, read-only {offer.read_only}, blocks of {offer.block}: detach, then attach anew"
            )

    def _probe(self) -> bool:
        """Offer once; what fails is logged, and tried again by whoever asks."""
        try:
            return self._offer()
        except CsnapError as error:
            if self._is_new(error):
                priority = ERROR if isinstance(error, Refused) else WARNING
                self._log(priority, "not_reconnected", {"device": self._device.path, "reason": str(error)})
            return False

    def _settle(self) -> None:
        for refused in self._device.tune():
            self._log(WARNING, "queue_not_set", {"what": refused})
        try:
            self._device.announce()
        except CsnapError as error:
            self._log(WARNING, "queue_not_set", {"what": str(error)})

    def _is_new(self, error: CsnapError) -> bool:
        """Each reason is logged once in a row."""
        before, self._said = self._said, str(error)
        return before != self._said

    def _pause(self, pause: int) -> None:
        self._wait(boottime() + pause, -1, 0)
