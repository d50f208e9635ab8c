"""The errors of csnap, split by what the caller must do.

    CsnapError
    ├── Refused           the request makes no sense or is not allowed: tell the user, change nothing
    │   ├── ConfigError       the configuration file
    │   └── FormatError       bytes on a device that are not what they should be
    │       └── Corrupt       ... of a store that is in use: invalidate the snapshot, never the origin
    ├── WouldBlock        the answer needs a lock or a re-read: ask again when woken
    ├── StoreFull         no chunk is left on the COW device
    ├── StoreInvalid      the snapshot is lost; the origin goes on
    ├── DeviceError       the device failed (carries errno): fail the requests it belongs to
    ├── LockspaceError    etcd: the outcome is known and nothing happened: retry
    │   └── Ambiguous         the transaction may or may not have been applied: bump the epoch, then look
    ├── Fenced            this member was recovered by others: fail all I/O and exit
    └── NoDaemon          nobody answers on the admin socket

On the right: what it means, and what the caller does about it.
"""

from __future__ import annotations

import os


class CsnapError(Exception):
    """Base of all errors that csnap raises itself."""


class Refused(CsnapError):
    """The request is not allowed or makes no sense; nothing was changed."""


class ConfigError(Refused):
    """The configuration is wrong; the message names file, key, value and what was expected."""


class FormatError(Refused):
    """Bytes that should be a header, an area or a sidecar are not; the message names field, value, expectation."""

    kind = "header"
    """One of counters.CORRUPTION_KINDS, if it is about a COW device."""


class Corrupt(FormatError):
    """The exceptions of a store in use contradict each other or the device."""

    def __init__(self, what: str, kind: str = FormatError.kind) -> None:
        super().__init__(what)
        self.kind = kind


class WouldBlock(CsnapError):
    """The answer needs a lock or a re-read first."""


class StoreFull(CsnapError):
    """No COW chunk is left."""


class StoreInvalid(CsnapError):
    """The snapshot is invalid: its reads fail, the origin goes on."""


class DeviceError(CsnapError):
    """A device answered with an error."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {os.strerror(errno)}")
        self.errno = errno


class LockspaceError(CsnapError):
    """etcd did not do it; the outcome is known: nothing happened."""


class Ambiguous(LockspaceError):
    """etcd may or may not have done it."""


class Fenced(CsnapError):
    """This member's holds were recovered by others."""


class NoDaemon(CsnapError):
    """No daemon answers on the admin socket."""
