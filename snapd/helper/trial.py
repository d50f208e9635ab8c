"""What ``csnap fence test`` does to one device: the whole sequence of a fencing, with nobody fenced.

register   while the daemon runs: its own key is verified. Else a key made up for this test, and only if this host's
           path has none: replacing that of a killed daemon could end the reservation that protects its disk
reserve    left out when asked to: a member that has not registered would be kept from writing for that moment
preempt    a key that nobody has: the device must say so. With "abort", which the recovery uses
unregister what was registered here, after its reservation, if it was given one
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import SystemRandom
from typing import Any

from snapd.errors import CsnapError
from snapd.helper.reservations import Reservations


@dataclass(frozen=True, slots=True)
class Step:
    """``ok`` None: left out."""

    step: str
    ok: bool | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def throw_away_key() -> int:
    return SystemRandom().randrange(1, 1 << 64)


def try_device(device: Reservations, live_key: int, no_reserve: str) -> list[Step]:
    """``live_key`` 0: no daemon runs here. ``no_reserve``: why not to reserve; empty: do it."""
    key = live_key or throw_away_key()
    steps: list[Step] = []
    try:
        if live_key:
            if not device.registered(key):
                return [Step("register", False, "the running daemon's key is not there: it has been fenced")]
            steps.append(Step("register", True, "the running daemon's key is there"))
        elif not device.register_new(key):
            why = "has a key already, of a daemon that was killed and not recovered: start csnap, then test again"
            return [Step("register", False, f"this host's path {why}")]
        else:
            steps.append(Step("register", True))
    except CsnapError as error:
        return [Step("register", False, str(error))]
    held = False
    try:
        if no_reserve:
            steps.append(Step("reserve", None, no_reserve))
        else:
            held = device.reserve(key)
            steps.append(Step("reserve", True, "held by this host" if held else "held by another host"))
        steps.append(_preempt(device, key))
    except CsnapError as error:
        steps.append(Step("preempt" if steps[-1].step == "reserve" else "reserve", False, str(error)))
    if not live_key:
        steps.append(_undo(device, key, held))
    return steps


def _preempt(device: Reservations, key: int) -> Step:
    preempted = device.preempt(key, throw_away_key(), abort=True)
    if preempted.found:
        return Step("preempt", False, "the device says that a key was there which nobody can have")
    if not preempted.aborted:
        return Step("preempt", True, "without abort: what the device has accepted before may still be written")
    return Step("preempt", True, "and abort")


def _undo(device: Reservations, key: int, held: bool) -> Step:
    try:
        if held:
            device.release(key)
        device.unregister(key)
        return Step("unregister", not device.registered(key))
    except CsnapError as error:
        return Step("unregister", False, str(error))
