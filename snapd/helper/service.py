"""What the helper does for the daemon: a request is a JSON object with a verb, so is the answer.

    ping                                        who is there, and whether a watchdog is armed
    register    device, key                     register this host's path, make sure of a reservation
    preempt     device, key, victim, abort      another's key goes; make sure of a reservation
    verify      device, key                     whether this host's path has the key; nothing changes
    unregister  device, key, stay               ... but ``stay`` while this path holds the reservation: others need it
    try         device, key, no_reserve         see trial.py
    pet         deadline                        arm the watchdog if it is not; pet it until then
    disarm
    look                                        read the watchdog's timeout; it is armed and disarmed for that, but not
                                                when a killed daemon has left it armed: it may have to reset the host

Keys are 16 hexadecimal digits. A device is taken only if it is the origin of the configuration, or if its own sidecar
says that it is a COW device of this volume: whoever may speak to the helper can fence on no other device.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from snapd.blockdev.device import FileDevice, open_device
from snapd.blockdev.sync import pread
from snapd.clock import Clock, boottime
from snapd.config import Config
from snapd.errors import FormatError, Refused
from snapd.format.header import Header
from snapd.format.sidecar import Sidecar
from snapd.helper.petter import Petter
from snapd.helper.reservations import Reservations
from snapd.helper.trial import try_device
from snapd.helper.watchdog import System, Watchdog, is_armed
from snapd.units import SECTOR

KEY = re.compile(r"[0-9a-f]{16}", re.ASCII)

Make = Callable[[int, str], Reservations]


class Service:
    """Thread-safe: a slow device holds up nothing but itself."""

    def __init__(self, config: Config, make: Make = Reservations, system: System | None = None) -> None:
        self._config, self._make, self._system = config, make, system or System()
        self._clock: Clock = boottime
        self._petter: Petter | None = None
        self._lock = threading.Lock()  # of the watchdog
        self._verbs: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "ping": self._ping,
            "register": self._register,
            "preempt": self._preempt,
            "verify": self._verify,
            "unregister": self._unregister,
            "try": self._try,
            "pet": self._pet,
            "disarm": self._disarm,
            "look": self._look,
        }

    def handle(self, request: Any) -> dict[str, Any]:
        """Raises CsnapError."""
        verb = request.get("verb") if isinstance(request, dict) else None
        action = self._verbs.get(verb) if isinstance(verb, str) else None
        if action is None:
            raise Refused(f"helper: verb {str(verb)[:40]!r}: expected one of {', '.join(self._verbs)}")
        return action(request)

    def _ping(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "method": self._config.fencing.method, "armed": self._petter is not None}

    # ---- reservations

    def _register(self, request: dict[str, Any]) -> dict[str, Any]:
        key = _key(request, "key")
        with self._device(request) as device:
            device.register(key)
            return {"holder": device.reserve(key)}

    def _preempt(self, request: dict[str, Any]) -> dict[str, Any]:
        key, victim = _key(request, "key"), _key(request, "victim")
        if key == victim:
            raise Refused("helper: preempt: the victim's key is our own")
        with self._device(request) as device:
            done = device.preempt(key, victim, request.get("abort") is not False)
            device.reserve(key)  # the victim may have held the reservation and lost it with the device's power
            return {"found": done.found, "aborted": done.aborted}

    def _verify(self, request: dict[str, Any]) -> dict[str, Any]:
        key = _key(request, "key")
        with self._device(request) as device:
            return {"registered": device.registered(key)}

    def _unregister(self, request: dict[str, Any]) -> dict[str, Any]:
        key = _key(request, "key")
        with self._device(request) as device:
            if not device.registered(key):
                return {"kept": False}
            if request.get("stay") is True and device.reserve(key):
                return {"kept": True}
            device.unregister(key)
            return {"kept": False}

    def _try(self, request: dict[str, Any]) -> dict[str, Any]:
        key = _key(request, "key") if request.get("key") else 0
        with self._device(request) as device:
            steps = try_device(device, key, str(request.get("no_reserve") or ""))
            return {"steps": [step.to_json() for step in steps]}

    @contextmanager
    def _device(self, request: dict[str, Any]) -> Iterator[Reservations]:
        path = request.get("device")
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise Refused("helper: device: expected an absolute path")
        device = open_device(path, exclusive=False, read_only=True)
        try:
            if path != self._config.volume.origin:
                self._check(path, device)
            yield self._make(device.fd, path)
        finally:
            device.close()

    def _check(self, path: str, device: FileDevice) -> None:
        """Raise Refused unless the device says that it belongs to this volume; without a word of what else it holds,
        which whoever asks may not be allowed to read."""
        volume = self._config.volume.cluster_uuid
        block = pread(device, 0, max(device.logical_block, SECTOR))
        try:
            sidecar = Sidecar.from_bytes(block, Header.from_bytes(block).chunk_size)
        except FormatError:
            sidecar = None
        if sidecar is None or sidecar.volume_uuid != volume:
            raise Refused(f"helper: {path}: neither the origin nor a COW device of volume {volume}")

    # ---- the watchdog

    def _arm(self) -> Watchdog:
        fencing = self._config.fencing
        if fencing.method != "watchdog":
            raise Refused(f'helper: the fencing method is "{fencing.method}", not "watchdog"')
        return Watchdog(fencing.device, fencing.watchdog_timeout, self._system)

    def _pet(self, request: dict[str, Any]) -> dict[str, Any]:
        deadline = request.get("deadline")
        if type(deadline) is not int or deadline < 0:
            raise Refused("helper: pet: expected a deadline in nanoseconds")
        with self._lock:
            if self._petter is None:
                self._petter = Petter(self._arm(), self._clock)
            petter = self._petter
        petter.until(deadline)
        watchdog = petter.watchdog
        return {"identity": watchdog.identity, "timeout": watchdog.timeout, "nowayout": watchdog.nowayout}

    def _disarm(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            petter, self._petter = self._petter, None
        return {"disarmed": petter.end() if petter is not None else True}

    def _look(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._petter is not None:
                watchdog = self._petter.watchdog
            elif is_armed(self._config.fencing.device, self._system):
                raise Refused(
                    f"{self._config.fencing.device}: counts down, and is left to: start csnap, then look again"
                )
            else:
                watchdog = self._arm()
                watchdog.disarm()
        return {"identity": watchdog.identity, "timeout": watchdog.timeout, "nowayout": watchdog.nowayout}


def _key(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if not isinstance(value, str) or not KEY.fullmatch(value) or not int(value, 16):
        raise Refused(f"helper: {name}: expected 16 hexadecimal digits, not all zero")
    return int(value, 16)
