"""Persistent reservations of one open device, by the kernel's <linux/pr.h>: SCSI-3 and NVMe alike.

    ioctl              struct                                           what
    IOC_PR_REGISTER    old_key, new_key u64, flags u32, pad             this host's path gets a key; 0 takes it away
    IOC_PR_RESERVE     key u64, type u32, flags u32                     only registered paths may write from now on
    IOC_PR_RELEASE     the same                                         ... no longer
    IOC_PR_PREEMPT     old_key, new_key u64, type u32, flags u32        another's key goes, its reservation becomes ours
    IOC_PR_PREEMPT_ABORT  the same                                      ... and its commands that the target has got end

In struct pr_preempt ``old_key`` is our own key and ``new_key`` the victim's, whatever the names say. Every ioctl needs
CAP_SYS_ADMIN.

What comes back is a SCSI or NVMe status in the low byte, with a transport's failure above it: 6.1 returns the raw
result, later kernels PR_STS_* codes such as 0x10000. So a result whose low byte is 0 is success only if it is 0.

A registration belongs to a path (an I_T nexus), not to a process: whoever opens the device on this host writes with it.
The type is "write exclusive, registrants only": every registered path may write, all may read. One of them holds the
reservation, and it ends when the holder unregisters; preempting the holder hands it over without a gap.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOTTY, EOPNOTSUPP

from snapd.errors import CsnapError, DeviceError

REGISTRATION, RESERVATION, PREEMPTION = struct.Struct("=QQII"), struct.Struct("=QII"), struct.Struct("=QQII")


def _ioctl(number: int, argument: struct.Struct) -> int:
    return 1 << 30 | argument.size << 16 | ord("p") << 8 | number  # _IOW('p', number, argument)


REGISTER, RESERVE, RELEASE = _ioctl(200, REGISTRATION), _ioctl(201, RESERVATION), _ioctl(202, RESERVATION)
PREEMPT, PREEMPT_ABORT = _ioctl(203, PREEMPTION), _ioctl(204, PREEMPTION)

WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
IGNORE_KEY = 1  # PR_FL_IGNORE_KEY: register, whatever key this path has

GOOD = 0
CHECK_CONDITION = 0x02  # SCSI; also PR_STS_IOERR
UNKNOWN = (ENOTTY, EOPNOTSUPP, EINVAL)
CONFLICTS = (0x18, 0x83)  # SCSI RESERVATION CONFLICT; NVMe Reservation Conflict

ATTEMPTS = 4
"""A unit attention (registrations changed, a reset) is reported once, in place of an answer, and gone with that."""


class NoReservations(CsnapError):
    """The device, or its driver, knows no persistent reservations."""


class NotRegistered(CsnapError):
    """Our own key is not there any more: this host was fenced, or the device lost its registrations."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """``found``: the victim's key was there. ``aborted``: its commands were ended as well, not just its key removed."""

    found: bool
    aborted: bool


class Reservations:
    """``fd`` stays the caller's; ``path`` is for errors. Keys are never 0."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd, self._path = fd, path

    def register(self, key: int) -> None:
        """Give this host's path the key, whatever it has: an older incarnation's is as good as none.

        SCSI does that in one command. NVMe knows "register", of a path without a key, and "replace", which is what
        the kernel asks for if there is an old key, whichever it is: with the flag it is not compared.
        """
        for old in (0, key):
            status = self._call(REGISTER, REGISTRATION.pack(old, key, IGNORE_KEY, 0))
            if status not in CONFLICTS:
                break
        self._must("register", status)

    def register_new(self, key: int) -> bool:
        """Give this host's path the key if it has none. Return whether it had none."""
        return self._good("register", self._call(REGISTER, REGISTRATION.pack(0, key, 0, 0)))

    def unregister(self, key: int) -> None:
        """Take the key away from this host's path. That it is gone already is success."""
        self._must("unregister", self._call(REGISTER, REGISTRATION.pack(key, 0, 0, 0)), gone_is_good=True)

    def registered(self, key: int) -> bool:
        """Whether this host's path has the key: nothing changes."""
        return self._good("verify", self._call(REGISTER, REGISTRATION.pack(key, key, 0, 0)))

    def reserve(self, key: int) -> bool:
        """Make sure that there is a reservation. Return whether this path holds it; else another one does."""
        argument = RESERVATION.pack(key, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0)
        return self._good("reserve", self._call(RESERVE, argument))

    def release(self, key: int) -> None:
        """End the reservation, if this path holds it."""
        argument = RESERVATION.pack(key, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0)
        self._must("release", self._call(RELEASE, argument), gone_is_good=True)

    def preempt(self, key: int, victim: int, abort: bool) -> Preempted:
        """Remove the victim's registration. That it is gone already is success; NotRegistered if ours is.

        A target that does not know "preempt and abort" is asked for "preempt" alone: the victim can send nothing
        more, but what the target had accepted before may still be written.
        """
        if not self.registered(key):
            raise NotRegistered(f"{self._path}: this host is not registered with its key {key:016x}")
        argument = PREEMPTION.pack(key, victim, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0)
        if abort:
            status = self._call(PREEMPT_ABORT, argument)
            if status != CHECK_CONDITION:
                return Preempted(self._good("preempt and abort", status), True)
        return Preempted(self._good("preempt", self._call(PREEMPT, argument)), False)

    # ---- the ioctl

    def _call(self, request: int, argument: bytes) -> int:
        """Return the status byte."""
        for _ in range(ATTEMPTS):
            result = self._once(request, argument)
            status = result & 0xFF
            if result and not status:
                raise CsnapError(f"{self._path}: no path to the device (result {result:#x})")
            if status != CHECK_CONDITION:
                return status
        return CHECK_CONDITION

    def _once(self, request: int, argument: bytes) -> int:
        try:
            return int(fcntl.ioctl(self._fd, request, bytearray(argument)))  # mutable: else its copy is returned
        except OSError as error:
            what = f"{self._path}: persistent reservations"
            if error.errno in UNKNOWN:
                raise NoReservations(f"{what}: {os.strerror(error.errno)}: not to be had on this device") from None
            raise DeviceError(what, error.errno or EIO) from None

    def _good(self, what: str, status: int) -> bool:
        """Return whether it was done; False: a conflict."""
        if status in (GOOD, *CONFLICTS):
            return status == GOOD
        raise CsnapError(f"{self._path}: {what}: status {status:#04x} (0x02: see the kernel's log)")

    def _must(self, what: str, status: int, gone_is_good: bool = False) -> None:
        if not self._good(what, status) and not gone_is_good:
            raise CsnapError(f"{self._path}: {what}: reservation conflict")
