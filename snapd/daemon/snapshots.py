"""``snapshot create`` and ``delete`` as the daemon does them, on behalf of the command line.

Creating, step by step, and what a crash of this daemon after each leaves:

    1. open the COW device; nobody uses its name or hardware yet, and
       nobody else in the cluster creates a snapshot (cluster.reserve)  nothing
    2. format it: header, sidecar, first area                           an unused device
    3. cluster.take: every host opens it, the table is drained          s/<name> in ``creating``, which recovery removes
    4. refused: undo the formatting                                     an unused device

Disk I/O happens in threads, decisions in the loop. One command at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from snapd.blockdev.device import FileDevice, open_device
from snapd.cluster.cluster import Cluster, NewSnapshot
from snapd.config import VolumeConfig
from snapd.daemon.admin import Reply
from snapd.daemon.background import in_thread
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError, Refused
from snapd.exstore.create import check_free, check_geometry, create, undo
from snapd.format.sidecar import Sidecar
from snapd.lockspace.keys import check_name
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ACTIVE, NOTICE, WARNING
from snapd.messages import Hello

FIRST_GENERATION = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ``snapshot create`` request, checked."""

    name: str
    cow: str
    writable: bool
    force: bool

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Wanted:
        """Raises Refused."""
        name, cow = request.get("name"), request.get("cow")
        writable, force = request.get("writable", False), request.get("force", False)
        if not isinstance(name, str):
            raise Refused("snapshot create: expected a name")
        check_name("snapshot", name)
        if not isinstance(cow, str) or not cow.startswith("/") or "\0" in cow or len(cow) > 4096:
            raise Refused("snapshot create: expected the absolute path of a COW device")
        if not isinstance(writable, bool) or not isinstance(force, bool):
            raise Refused("snapshot create: writable and force are true or false")
        return cls(name, cow, writable, force)


class SnapshotCommands:
    """``hello`` is what the worker said of the origin. ``before_format`` is called, in a thread, with a device's path
    before it is written to."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        volume: VolumeConfig,
        hello: Hello,
        member: Member,
        cluster: Cluster,
        before_format: Callable[[str], None] = lambda path: None,
    ) -> None:
        self._before_format = before_format
        self._loop, self._log = loop, log
        self._volume, self._hello = volume, hello
        self._member, self._cluster = member, cluster
        self._running = ""

    def create(self, request: dict[str, Any], reply: Reply) -> None:
        wanted = Wanted.from_request(request)
        self._begin(f"snapshot create {wanted.name}", self._member.state == ACTIVE)
        _Creation(self, wanted, reply).begin()

    def delete(self, request: dict[str, Any], reply: Reply) -> None:
        name = request.get("name")
        if not isinstance(name, str):
            raise Refused("snapshot delete: expected a name")
        check_name("snapshot", name)
        self._begin(f"snapshot delete {name}", self._cluster.may_delete())
        reply.progress("waiting for every host to let go of the snapshot")
        try:
            self._cluster.delete(name, lambda error: self._end(reply, error, {"name": name}))
        except CsnapError:
            self._running = ""
            raise

    def _begin(self, what: str, may: bool) -> None:
        if self._running:
            raise Refused(f"{self._running} is under way on this host: one at a time")
        if not may:
            raise Refused(
                f"this host is {self._member.state}, expected active: csnap status says why; or ask another host"
            )
        self._running = what

    def _end(self, reply: Reply, error: CsnapError | None, result: dict[str, object]) -> None:
        what, self._running = self._running, ""
        about: dict[str, object] = {"command": what, "snapshot": what.rpartition(" ")[2]}
        if error is None:
            self._log(NOTICE, "snapshot_command_done", about)
            reply.result(result)
        else:
            self._log(WARNING, "snapshot_command_failed", {**about, "error": error})
            reply.error(error)


class _Creation:
    """One ``snapshot create``; the steps are the module's."""

    def __init__(self, commands: SnapshotCommands, wanted: Wanted, reply: Reply) -> None:
        self._loop, self._cluster = commands._loop, commands._cluster
        self._volume, self._hello = commands._volume, commands._hello
        self._before_format = commands._before_format
        self._end: Callable[[Reply, CsnapError | None, dict[str, object]], None] = commands._end
        self._wanted, self._reply = wanted, reply
        self._store = str(uuid4())

    def begin(self) -> None:
        self._reply.progress(f"opening {self._wanted.cow}")
        in_thread(self._loop, self._open, self._opened)

    def _open(self) -> FileDevice:
        return open_device(self._wanted.cow, exclusive=self._volume.exclusive)

    def _opened(self, device: FileDevice | CsnapError) -> None:
        if isinstance(device, CsnapError):
            self._finish(device)
            return
        self._cluster.reserve(self._wanted.name, device.identity, lambda error: self._reserved(device, error))

    def _reserved(self, device: FileDevice, error: CsnapError | None) -> None:
        if error is not None:
            device.close()
            self._finish(error)
            return
        self._reply.progress(f"formatting {self._wanted.cow}")
        in_thread(self._loop, lambda: self._format(device), self._formatted)

    def _format(self, device: FileDevice) -> str:
        volume, hello = self._volume, self._hello
        try:
            check_geometry(device, volume.chunk_size, hello.logical_block)
            check_free(device, hello.identity, volume.cluster_uuid, self._wanted.force)
            self._before_format(self._wanted.cow)
            sidecar = Sidecar(volume.cluster_uuid, self._store, self._wanted.name, hello.origin_size, FIRST_GENERATION)
            create(device, volume.chunk_size, sidecar)
            return device.identity
        finally:
            device.close()

    def _formatted(self, identity: str | CsnapError) -> None:
        if isinstance(identity, CsnapError):
            self._cluster.abandon()
            self._finish(identity)
            return
        self._reply.progress("waiting for every host")
        wanted = self._wanted
        new = NewSnapshot(wanted.name, self._store, wanted.cow, identity, wanted.writable, FIRST_GENERATION)
        try:
            self._cluster.take(new, self._taken)
        except CsnapError as error:
            self._taken(error)

    def _taken(self, error: CsnapError | None) -> None:
        if error is None:
            self._finish(None)
        elif isinstance(error, Refused):
            in_thread(self._loop, self._undo, lambda outcome: self._undone(error, outcome))
        else:  # nobody knows whether it was taken: then the device is not to be touched
            self._cluster.abandon()
            self._finish(error)

    def _undo(self) -> None:
        device = open_device(self._wanted.cow, exclusive=self._volume.exclusive)
        try:
            undo(device, self._store)
        finally:
            device.close()

    def _undone(self, refusal: CsnapError, outcome: CsnapError | None) -> None:
        self._cluster.abandon()
        if outcome is not None:
            refusal = Refused(f"{refusal}; and the COW device stays formatted: {outcome}")
        self._finish(refusal)

    def _finish(self, error: CsnapError | None) -> None:
        self._end(self._reply, error, {"name": self._wanted.name, "store": self._store})
