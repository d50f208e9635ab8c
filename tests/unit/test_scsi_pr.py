"""Reservations: the ioctls' bytes and answers, and fencing by them."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Callable
from errno import ENOTTY, EPERM
from typing import Any

import pytest

from snapd.errors import CsnapError, DeviceError
from snapd.helper import reservations as pr
from snapd.helper.reservations import NoReservations, NotRegistered, Preempted, Reservations
from snapd.helper.trial import try_device
from snapd.lockspace.fencing.keys import is_reservation_key, reservation_key
from snapd.lockspace.fencing.scsi_pr import ScsiPr
from snapd.lockspace.records import MemberRecord
from snapd.units import SECOND
from tests.support.scsi_lun import Lun
from tests.support.virtual_time import Scheduler
from tests.unit.test_agent import Effects

A, B, C = 0xAAAA, 0xBBBB, 0xCCCC


def test_the_numbers_are_the_kernels() -> None:
    """As a C compiler makes them of <linux/pr.h>."""
    numbers = (pr.REGISTER, pr.RESERVE, pr.RELEASE, pr.PREEMPT, pr.PREEMPT_ABORT)
    assert numbers == (0x401870C8, 0x401070C9, 0x401070CA, 0x401870CB, 0x401870CC)


def answering(monkeypatch: pytest.MonkeyPatch, *results: int | OSError) -> list[tuple[int, bytes]]:
    """Let ioctl answer so; the list gets what it was asked."""
    asked: list[tuple[int, bytes]] = []
    left = list(results)

    def ioctl(fd: int, request: int, argument: Any) -> int:
        asked.append((request, bytes(argument)))
        assert isinstance(argument, bytearray), "else the result is a copy of the argument"
        result = left.pop(0)
        if isinstance(result, OSError):
            raise result
        return result

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


def test_preempt_names_our_key_as_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """struct pr_preempt: old_key is ours, new_key the victim's, then the type: registrants only."""
    asked = answering(monkeypatch, 0, 0)
    assert Reservations(3, "/dev/x").preempt(A, B, abort=True) == Preempted(True, True)
    assert asked == [
        (pr.REGISTER, struct.pack("=QQII", A, A, 0, 0)),  # is our own key there?
        (pr.PREEMPT_ABORT, struct.pack("=QQII", A, B, 3, 0)),
    ]


@pytest.mark.parametrize("result", [0x18, 0x08000018, 0x4083])
def test_a_conflict_is_seen_whatever_stands_above_the_status(monkeypatch: pytest.MonkeyPatch, result: int) -> None:
    """SCSI's status with a driver's byte above it; NVMe's with "do not retry"."""
    answering(monkeypatch, result)
    assert not Reservations(3, "/dev/x").registered(A)


@pytest.mark.parametrize("result", [0x10000, 0xE0000, 0xF0000])
def test_a_lost_path_is_no_success(monkeypatch: pytest.MonkeyPatch, result: int) -> None:
    """Its low byte is 0: whoever looks at nothing else takes an unfenced host for fenced."""
    answering(monkeypatch, result)
    with pytest.raises(CsnapError, match="/dev/x: no path"):
        Reservations(3, "/dev/x").register(A)


def test_a_unit_attention_is_asked_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once, in place of the answer."""
    answering(monkeypatch, 0x02, 0x02, 0)
    assert Reservations(3, "/dev/x").registered(A)


def test_an_older_key_is_replaced_on_nvme_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Register" of a path that has a key is a conflict there; with any old key the kernel asks for "replace"."""
    asked = answering(monkeypatch, 0x4083, 0)
    Reservations(3, "/dev/x").register(A)
    assert asked == [(pr.REGISTER, struct.pack("=QQII", old, A, pr.IGNORE_KEY, 0)) for old in (0, A)]
    answering(monkeypatch, 0x4083, 0x4083)
    with pytest.raises(CsnapError, match="register: reservation conflict"):
        Reservations(3, "/dev/x").register(A)


def test_devices_without_reservations_and_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two errors, since two different things have to be done about them."""
    answering(monkeypatch, OSError(ENOTTY, ""), OSError(EPERM, ""))
    with pytest.raises(NoReservations, match="/dev/x"):
        Reservations(3, "/dev/x").register(A)
    with pytest.raises(DeviceError, match="not permitted"):
        Reservations(3, "/dev/x").register(A)


def test_a_target_without_abort_is_asked_to_preempt() -> None:
    """And it is said that nothing was aborted."""
    lun = Lun(aborts=False)
    lun.path("a").register(A)
    lun.path("b").register(B)
    assert lun.path("a").preempt(A, B, abort=True) == Preempted(True, False)
    assert lun.keys == {"a": A}


def test_a_key_that_is_gone_is_success_only_while_ours_is_there() -> None:
    """Both are a reservation conflict; taking one for the other would take a fenced host for the winner."""
    lun = Lun()
    lun.path("a").register(A)
    lun.path("b").register(B)
    assert lun.path("a").preempt(A, B, abort=True).found
    assert not lun.path("a").preempt(A, B, abort=True).found
    with pytest.raises(NotRegistered):
        lun.path("b").preempt(B, A, abort=True)
    assert lun.keys == {"a": A}


# ---- the trial


def test_the_trial_leaves_a_fresh_device_as_it_was() -> None:
    """Every step works, and neither a key nor a reservation stays."""
    lun = Lun()
    steps = try_device(lun.path("a"), 0, "")
    assert [(step.step, step.ok) for step in steps] == [
        ("register", True),
        ("reserve", True),
        ("preempt", True),
        ("unregister", True),
    ]
    assert (lun.keys, lun.holder, lun.log) == ({}, "", [])


def test_the_trial_beside_other_hosts_takes_nothing_from_them() -> None:
    """Another host holds the reservation: it still does afterwards, and every key is there."""
    lun = Lun()
    lun.path("b").register(B)
    lun.path("b").reserve(B)
    steps = try_device(lun.path("a"), 0, "")
    assert all(step.ok for step in steps)
    assert (lun.keys, lun.holder) == ({"b": B}, "b")


def test_the_trial_beside_the_running_daemon_keeps_its_key() -> None:
    """One path has one key: a made-up one would replace the daemon's, and its removal fence this host."""
    lun = Lun()
    lun.path("a").register(A)
    lun.path("a").reserve(A)
    steps = try_device(lun.path("a"), A, "")
    assert [step.step for step in steps] == ["register", "reserve", "preempt"]
    assert all(step.ok for step in steps)
    assert (lun.keys, lun.holder) == ({"a": A}, "a")


def test_the_trial_leaves_a_killed_daemons_registration_alone() -> None:
    """It may hold the reservation that keeps others out; the step says what to do."""
    lun = Lun()
    lun.path("a").register(A)
    lun.path("a").reserve(A)
    (step,) = try_device(lun.path("a"), 0, "")
    assert step.ok is False and "start csnap" in step.note
    assert (lun.keys, lun.holder) == ({"a": A}, "a")


def test_the_trial_does_not_reserve_when_that_would_hit_others() -> None:
    """A member that runs without a key could not write for that moment."""
    lun = Lun()
    steps = try_device(lun.path("a"), 0, "host-b runs without a key")
    assert [(step.step, step.ok) for step in steps][1] == ("reserve", None)
    assert (lun.keys, lun.holder) == ({}, "")


# ---- fencing


def test_keys_are_derived_from_the_incarnation() -> None:
    """Every incarnation has its own, always the same, never 0."""
    keys = {reservation_key(f"incarnation-{number}") for number in range(1000)}
    assert len(keys) == 1000 and all(map(is_reservation_key, keys))
    assert reservation_key("x") == reservation_key("x")
    assert not is_reservation_key("0" * 16)


class Preempter:
    """Plays the daemon: fails as often as it is told to."""

    def __init__(self, failures: int = 0, aborted: bool = True) -> None:
        self.failures, self.aborted = failures, aborted
        self.victims: list[str] = []

    def preempt(self, victim: str, ended: Callable[[str, bool], None]) -> None:
        self.victims.append(victim)
        self.failures -= 1
        ended("/dev/x: no path" if self.failures >= 0 else "", self.aborted)

    def tidy(self, key: str) -> None:
        self.victims.append(key)


def victim(key: str = reservation_key("i-1")) -> MemberRecord:
    return MemberRecord("host-b", "fencing", "machine", "boot", "i-1", "/lock", key, "")


def test_a_failed_attempt_is_repeated_and_said() -> None:
    """Until it succeeds, with pauses that grow to half a minute; each failure is logged and counted."""
    scheduler, effects, preempter = Scheduler(), Effects(), Preempter(failures=8)
    done: list[bool] = []
    ScsiPr(preempter, scheduler, effects).fence(victim(), lambda: done.append(True))
    scheduler.run_for(1 * SECOND)
    assert not done and len(preempter.victims) == 2
    scheduler.run_for(150 * SECOND)
    assert done == [True] and len(preempter.victims) == 9
    assert [event for event, _ in effects.logged].count("fence_failed") == 8
    assert len(effects.observed) == 8


def test_a_member_without_a_key_is_waited_for() -> None:
    """It runs another method: nothing here can stop it, so a person has to."""
    scheduler, effects, preempter = Scheduler(), Effects(), Preempter()
    done: list[bool] = []
    ScsiPr(preempter, scheduler, effects).fence(victim(""), lambda: done.append(True))
    scheduler.run_for(100 * SECOND)
    assert not done and not preempter.victims
    assert "csnap fence confirm" in str(effects.logged[0])


def test_a_forgotten_member_is_not_tried_again() -> None:
    """Somebody confirmed that it is off."""
    scheduler, preempter = Scheduler(), Preempter(failures=99)
    fencer = ScsiPr(preempter, scheduler, Effects())
    fencer.fence(victim(), lambda: None)
    fencer.forget(victim())
    scheduler.run_for(100 * SECOND)
    assert len(preempter.victims) == 1


def test_fencing_without_abort_is_said() -> None:
    """What the device had accepted may still be written: an operator has to know."""
    effects = Effects()
    ScsiPr(Preempter(aborted=False), Scheduler(), effects).fence(victim(), lambda: None)
    assert [event for event, _ in effects.logged] == ["fence_without_abort"]
