"""Method ``scsi-pr`` on this host: its key is on every device before the worker may write to it.

    the table's grant      waits until origin and every live COW device have this host's key, and a reservation
    Prepare of a snapshot  waits until its COW device has; else it is refused by name, as by the worker
    fencing                preempts the dead member's key on all of them; one that has not our key gets it first
    after a clean leave    the key is taken away. While other members are there and this host holds the reservation it
                           stays: else the reservation would end and let fenced hosts in. The others then preempt it,
                           which hands the reservation over; they do so whenever a member has gone (``tidy``)

A deleted snapshot's COW device keeps the keys until the members leave: it may share its LUN with devices in use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from snapd.daemon.background import in_thread
from snapd.daemon.gate import Gate, Ready, Sink
from snapd.daemon.log import Log
from snapd.daemon.loop import Loop
from snapd.errors import CsnapError, Fenced
from snapd.helper.client import Helper
from snapd.lockspace.member import Member
from snapd.lockspace.ports import ERROR, NOTICE, WARNING
from snapd.messages import Forget, Grant, Message, Prepare, Prepared

LIVE = ("active", "overflow", "deleting")


class ReservationGuard:
    """See ``fencing.Guard``."""

    def __init__(
        self,
        loop: Loop,
        sink: Sink,
        log: Log,
        told: Callable[[Message], None],
        ended: Callable[[CsnapError], None],
        helper: Helper,
        origin: str,
        key: str,
    ) -> None:
        self.fence_key = key
        self.member: Member | None = None
        self._loop, self._sink, self._log, self._ended = loop, sink, log, ended
        self._helper, self._origin = helper, origin
        self._gate = Gate(loop, sink, told, self._prepare)
        self.registered: dict[str, None] = {}  # devices
        self._asked: dict[str, Prepare] = {}  # by store: while its device is being registered
        self.set_deadline = sink.set_deadline

    def send(self, message: Message) -> None:
        if isinstance(message, Prepare) and message.snapshot.path not in self.registered:
            self._prepare_snapshot(message)
            return
        if isinstance(message, Forget):
            self._asked.pop(message.store, None)
        self._gate.send(message)

    # ---- registering

    def _register(self, devices: Iterable[str]) -> list[str]:
        """In a thread. Raises CsnapError."""
        devices = list(devices)
        for device in devices:
            self._helper.ask("register", device=device, key=self.fence_key)
        return devices

    def _prepare(self, grant: Grant, ready: Ready) -> bool:
        paths = [self._origin, *(spec.path for spec in grant.snapshots if spec.state in LIVE)]
        missing = [path for path in paths if path not in self.registered]
        if not missing:
            return True

        def registered(outcome: list[str] | CsnapError) -> None:
            if isinstance(outcome, CsnapError):
                self._log(ERROR, "not_registered", {"error": outcome})
                ready(f"fencing: {outcome}")
            else:
                self._note(outcome)
                ready("")

        in_thread(self._loop, lambda: self._register(missing), registered)
        return False

    def _prepare_snapshot(self, message: Prepare) -> None:
        spec = message.snapshot
        self._asked[spec.store] = message

        def registered(outcome: list[str] | CsnapError) -> None:
            if not isinstance(outcome, CsnapError):
                self._note(outcome)
            if self._asked.get(spec.store) is not message:
                return  # forgotten, or asked anew
            del self._asked[spec.store]
            if isinstance(outcome, CsnapError):
                self._gate.answer(Prepared(message.request, f"cannot be fenced there: {outcome}"))
            else:
                self._gate.send(message)

        in_thread(self._loop, lambda: self._register([spec.path]), registered)

    def _note(self, devices: list[str]) -> None:
        for device in devices:
            self.registered[device] = None
            self._log(NOTICE, "registered", {"device": device, "key": self.fence_key})

    def before_format(self, device: str) -> None:
        """One that was in use before may be reserved still, from before this host came: then it cannot be written to.

        The helper takes it only if it says that it belongs to this volume; any other has no reservation of ours.
        """
        with contextlib.suppress(CsnapError):
            self._register([device])

    # ---- fencing others

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        member = self.member
        records = member.snapshots() if member is not None else ()
        needed = [self._origin, *(record.path for record in records if record.state in LIVE)]
        others = [device for device in self.registered if device not in needed]

        def work() -> tuple[bool, list[str], list[str]]:
            missing = self._register(device for device in needed if device not in self.registered)
            aborted = [self._preempt(device, victim, True) for device in needed]
            return all(aborted), missing, self._try_all(others, victim)

        def worked(outcome: tuple[bool, list[str], list[str]] | CsnapError) -> None:
            if isinstance(outcome, CsnapError):
                if isinstance(outcome, Fenced):
                    self._ended(outcome)
                ended(str(outcome), False)
                return
            aborted, missing, failed = outcome
            self._note(missing)
            for error in failed:  # devices of no live snapshot
                self._log(WARNING, "not_preempted", {"error": error})
            ended("", aborted)

        in_thread(self._loop, work, worked)

    def _preempt(self, device: str, victim: str, abort: bool) -> bool:
        done = self._helper.ask("preempt", device=device, key=self.fence_key, victim=victim, abort=abort)
        return bool(done["aborted"])

    def _try_all(self, devices: list[str], victim: str) -> list[str]:
        errors = []
        for device in devices:
            try:
                self._preempt(device, victim, True)
            except CsnapError as error:
                errors.append(str(error))
        return errors

    def tidy(self, key: str) -> None:
        devices = list(self.registered)

        def work() -> None:
            for device in devices:
                self._preempt(device, key, False)

        def worked(outcome: CsnapError | None) -> None:
            if isinstance(outcome, Fenced):
                self._ended(outcome)
            elif outcome is not None:
                self._log(WARNING, "key_not_removed", {"key": key, "error": outcome})

        in_thread(self._loop, work, worked)

    # ---- the end

    def left(self, done: Callable[[], None]) -> None:
        member = self.member
        others = member is not None and any(node != member.settings.node for node in member.fence_keys())
        devices = list(self.registered)

        def work() -> list[str]:
            return [
                device
                for device in devices
                if self._helper.ask("unregister", device=device, key=self.fence_key, stay=others)["kept"]
            ]

        def worked(outcome: list[str] | CsnapError) -> None:
            if isinstance(outcome, CsnapError):
                self._log(WARNING, "not_unregistered", {"error": outcome})
            elif outcome:
                self._log(NOTICE, "reservation_left_to_others", {"devices": ",".join(outcome)})
            done()

        in_thread(self._loop, work, worked)

    def close(self, worker_ended: bool) -> None: ...
