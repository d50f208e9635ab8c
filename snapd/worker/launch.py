"""What the control process tells a worker when it starts it: settings and descriptors.

The worker is started with exec and inherits six descriptors: the channel (seqpacket socket), the pages for the
deadline, the counters and the trace, the lock file and the settings (memfds all but the first and the lock). Nothing of
it is ever found by a path: pages and channel belong to one incarnation. What an older worker has left for this
one (takeover.py) is inherited besides.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from snapd.errors import FormatError


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Sizes in bytes; paths absolute."""

    volume_uuid: str
    volume_name: str
    store_type: str
    origin: str
    exclusive: bool
    chunk_bytes: int
    region_bytes: int  # 0: to be chosen from the origin's size
    socket: str

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> WorkerSettings:
        """Raises FormatError for anything that ``to_bytes`` does not make."""
        try:
            values = json.loads(data)
            if {field.name for field in fields(cls)} != set(values):
                raise ValueError(f"fields {sorted(values)}")
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise FormatError(f"worker settings: {error}") from error


NAMES = ("channel", "deadline", "counters", "trace", "lock", "settings")


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The inherited descriptors, by number."""

    channel: int
    deadline: int
    counters: int
    trace: int
    lock: int
    settings: int
    taken: tuple[int, ...] = ()

    def arguments(self) -> list[str]:
        """The worker's command line behind ``python -m snapd.worker``."""
        named = [f"--{name}={getattr(self, name)}" for name in NAMES]
        return [*named, f"--taken={','.join(map(str, self.taken))}"]

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Descriptors:
        """Ends the process for another command line, as programs do."""
        parser = argparse.ArgumentParser(prog="csnap-io", description="The I/O process of csnap; started by csnapd.")
        for name in NAMES:
            parser.add_argument(f"--{name}", type=int, required=True, metavar="FD")
        parser.add_argument("--taken", default="", metavar="FD,FD,...")
        values = vars(parser.parse_args(arguments))
        taken = tuple(int(fd) for fd in values.pop("taken").split(",") if fd)
        return cls(**values, taken=taken)

    def all(self) -> tuple[int, ...]:
        return (*(getattr(self, name) for name in NAMES), *self.taken)


def settings_descriptor(settings: WorkerSettings) -> int:
    """Return a memfd that holds the settings, at its beginning."""
    fd = os.memfd_create("csnap-settings", os.MFD_CLOEXEC)
    os.write(fd, settings.to_bytes())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
