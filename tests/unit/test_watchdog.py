"""The watchdog: the device as the helper drives it, and the timeline that keeps survivors out until the reset."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from errno import EBUSY, EINVAL, ENOENT, ENOTTY

import pytest

from snapd.errors import FormatError, Refused
from snapd.helper import watchdog as device
from snapd.helper.petter import Petter
from snapd.helper.watchdog import System
from snapd.lockspace.fencing.keys import WatchdogPromise
from snapd.lockspace.fencing.watchdog import Watchdog, wait
from snapd.lockspace.records import MemberRecord
from snapd.messages import EX
from snapd.units import SECOND
from tests.support.lock_rig import TTL, Host, LockRig
from tests.support.virtual_time import Scheduler
from tests.unit.test_agent import Effects


class FakeSystem(System):
    """A driver: ``clock`` says when; ``fires`` is when it resets the host, None while it is disarmed."""

    def __init__(self, options: int = device.MAGICCLOSE, nowayout: bool = False, steps: int = 1) -> None:
        self.options, self.never, self.steps = options, nowayout, steps
        self.clock: Callable[[], int] = lambda: 0
        self.timeout = 60
        self.fires: int | None = None
        self.magic = self.opened = False
        self.refuses = 0
        self.fixed = False

    def open(self, path: str) -> int:
        if self.refuses:
            raise OSError(self.refuses, "refused")
        self.opened = True
        self._arm()
        return 7

    def _arm(self) -> None:
        self.fires = self.clock() + self.timeout * SECOND

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        assert fd == 7 and self.opened
        if request == device.GETSUPPORT:
            argument[:] = struct.pack("=II32s", self.options, 1, b"Fake Watchdog")
        elif request == device.SETTIMEOUT:
            if self.fixed:
                raise OSError(EINVAL, "fixed")
            (wanted,) = struct.unpack("=i", argument)
            self.timeout = -(-wanted // self.steps) * self.steps
            self._arm()
        elif request == device.GETTIMEOUT:
            argument[:] = struct.pack("=i", self.timeout)
        elif request == device.KEEPALIVE:
            self._arm()
        else:
            raise OSError(ENOTTY, "unknown")

    def write(self, fd: int, data: bytes) -> None:
        self.magic = data == b"V"
        self._arm()

    def close(self, fd: int) -> None:
        """What the kernel's watchdog core does."""
        self.opened = False
        if not self.never and (self.magic or not self.options & device.MAGICCLOSE):
            self.fires = None

    def attribute(self, path: str, name: str) -> str:
        return {"nowayout": str(int(self.never)), "state": "active" if self.fires is not None else "inactive"}[name]


# ---- the device


def test_armed_petted_disarmed() -> None:
    """The timeout is set, a pet starts it anew, and closing in order disarms it."""
    system = FakeSystem()
    armed = device.Watchdog("/dev/watchdog", 15, system)
    assert (armed.timeout, armed.identity, system.fires) == (15, "Fake Watchdog", 15 * SECOND)
    system.clock = lambda: 9 * SECOND
    armed.pet()
    assert system.fires == 24 * SECOND
    assert armed.disarm()
    assert system.fires is None


def test_a_device_that_a_killed_process_disarms_is_refused() -> None:
    """Without magic close any close stops it: it would not fire after a kill -9. It is left disarmed."""
    system = FakeSystem(options=0)
    with pytest.raises(Refused, match="it cannot fence"):
        device.Watchdog("/dev/watchdog", 15, system)
    assert system.fires is None


def test_a_device_that_never_disarms_is_taken_and_said() -> None:
    """nowayout serves, with or without magic close; but it cannot be disarmed, and says so."""
    for options in (0, device.MAGICCLOSE):
        system = FakeSystem(options, nowayout=True)
        armed = device.Watchdog("/dev/watchdog", 15, system)
        assert armed.nowayout
        assert not armed.disarm()
        assert system.fires is not None


def test_a_timeout_that_the_device_rounds_up_is_refused() -> None:
    """Survivors count with the configured one."""
    with pytest.raises(Refused, match="its timeout is 16 s, configured are 10 s"):
        device.Watchdog("/dev/watchdog", 10, FakeSystem(steps=8))
    assert device.Watchdog("/dev/watchdog", 16, FakeSystem(steps=8)).timeout == 16


def test_a_fixed_timeout_serves_if_it_is_short_enough() -> None:
    """Hardware that cannot be set."""
    system = FakeSystem()
    system.fixed, system.timeout = True, 12
    assert device.Watchdog("/dev/watchdog", 15, system).timeout == 12
    system.timeout = 60
    with pytest.raises(Refused, match="60 s"):
        device.Watchdog("/dev/watchdog", 15, system)


@pytest.mark.parametrize(("error", "words"), [(EBUSY, "systemd's RuntimeWatchdogSec"), (ENOENT, "/dev/watchdog")])
def test_a_device_that_cannot_be_opened_is_named(error: int, words: str) -> None:
    """Busy is the usual case: systemd has it."""
    system = FakeSystem()
    system.refuses = error
    with pytest.raises(Refused, match=words):
        device.Watchdog("/dev/watchdog", 15, system)


def test_something_that_is_no_watchdog_is_refused(tmp_path: object) -> None:
    """A real file: its ioctl says so."""
    with pytest.raises(Refused, match="not a watchdog"):
        device.Watchdog("/dev/null", 15)


# ---- petting


def petted(system: FakeSystem, scheduler: Scheduler, timeout: int) -> Petter:
    """A petter whose thread is the scheduler: it goes on whatever happens to the daemon."""
    system.clock = scheduler.now
    petter = Petter(device.Watchdog("/dev/watchdog", timeout, system), scheduler.now, threaded=False)

    def beat() -> None:
        petter.beat()
        scheduler.call_later(timeout * SECOND // 4, beat)

    beat()
    return petter


def test_no_pet_after_the_deadline() -> None:
    """It is petted while the deadline lies ahead, for longer than its timeout; the last pet lies before it."""
    scheduler, system = Scheduler(0), FakeSystem()
    petter = petted(system, scheduler, 4)
    petter.until(20 * SECOND)
    scheduler.run_for(19 * SECOND)
    assert system.fires is not None and system.fires > 19 * SECOND
    scheduler.run_for(60 * SECOND)
    assert 20 * SECOND - SECOND <= system.fires - 4 * SECOND < 20 * SECOND


def test_a_lost_lease_stops_the_pets_at_once() -> None:
    """A deadline of 0, however far ahead the old one was; a new one goes on."""
    scheduler, system = Scheduler(0), FakeSystem()
    petter = petted(system, scheduler, 4)
    petter.until(100 * SECOND)
    scheduler.run_for(10 * SECOND)
    petter.until(0)
    stopped = system.fires
    scheduler.run_for(3 * SECOND)
    assert system.fires == stopped
    petter.until(100 * SECOND)
    assert system.fires != stopped


# ---- the timeline

W = 5
"""Seconds, beside the rig's TTL of 4 and its margin of 1."""
PROMISE = WatchdogPromise(W, TTL).to_text()


class Cluster:
    """host-b has a watchdog, which resets it; host-a fences by waiting for that. ``at`` notes when what happened."""

    def __init__(self) -> None:
        self.rig = rig = LockRig("host-a", "host-b")
        self.at: dict[str, float] = {}
        self.system = FakeSystem()
        self.petter = petted(self.system, rig.scheduler, W)
        self._victim(rig.b)
        fencer = Watchdog(lambda: rig.a.member.lease_ttl, rig.a, rig.a)

        def fence(record: MemberRecord, done: Callable[[], None]) -> None:
            self.note("fencing")
            fencer.fence(replace(record, fence_key=PROMISE), lambda: (self.note("fenced"), done())[1])

        rig.a.fencer.fence = fence  # type: ignore[method-assign]
        rig.b.want("region/1", EX)
        rig.run(6)
        assert rig.b.holds("region/1") == EX
        self.begun = rig.scheduler.now()

    def _victim(self, host: Host) -> None:
        plain = host.set_deadline

        def set_deadline(deadline: int) -> None:
            plain(deadline)
            self.petter.until(deadline)

        host.set_deadline = set_deadline  # type: ignore[method-assign]
        self.petter.until(host.deadline)

    def note(self, what: str) -> None:
        self.at.setdefault(what, (self.rig.scheduler.now() - self.begun) / SECOND)

    def run(self, seconds: float) -> None:
        """Note what changes, every hundredth of a second; the watchdog resets host-b when it fires."""
        rig = self.rig
        rig.a.want("region/1", EX)
        for _ in range(int(seconds * 100)):
            rig.run(0.01)
            if rig.key("a/host-b") is None:
                self.note("absent")
            if rig.scheduler.now() >= rig.b.deadline:
                self.note("deadline")
            if self.system.fires is not None and rig.scheduler.now() >= self.system.fires:
                self.note("reset")
                rig.b.kill()
            if rig.a.holds("region/1") == EX:
                self.note("granted")


def test_cut_off_from_etcd() -> None:
    """t = the last keepalive: the deadline at 3, a/<d> absent from 4 on, the reset by 3 + 5, fenced 4 + 5 + 1 after the
    fencing began, and only then does anybody get what the host held."""
    cluster = Cluster()
    keepalive = (cluster.rig.b.deadline - cluster.begun) / SECOND - (TTL - 1)  # t, at most one period ago
    assert -1 < keepalive <= 0
    cluster.rig.b.pause()
    cluster.run(40)
    at = {what: when - keepalive for what, when in cluster.at.items()}
    assert at["deadline"] == pytest.approx(3, abs=0.02)
    assert 4 <= at["absent"] <= 4.5
    assert at["absent"] - 0.02 <= at["fencing"] <= at["absent"] + TTL + 0.1  # a survivor has to have been quiet first
    assert 3 + W - W / 4 <= at["reset"] <= 3 + W + 0.02
    assert at["fenced"] == pytest.approx(at["fencing"] + TTL + W + 1, abs=0.02)
    assert at["reset"] < at["fenced"] <= at["granted"]


def test_a_lease_that_vanishes_under_a_live_host() -> None:
    """a/<d> is gone the moment after a keepalive, and the host does not hear of it: it is petted until its deadline,
    and is reset at least two margins before anybody takes it to be fenced."""
    cluster = Cluster()
    rig = cluster.rig
    before = rig.b.deadline
    rig.until(lambda: rig.b.deadline > before)  # a keepalive has just succeeded
    cluster.begun = rig.scheduler.now()
    rig.b.pause()
    lease = rig.b.member.session.lease
    rig.etcd.client("test").lease_revoke(lease, SECOND, lambda result: None)
    cluster.run(40)
    at = cluster.at
    assert at["absent"] <= 0.1
    assert at["deadline"] == pytest.approx(3, abs=0.2)
    assert at["reset"] <= 3 + W + 0.2
    assert at["fenced"] == pytest.approx(at["fencing"] + TTL + W + 1, abs=0.02)
    assert at["fenced"] - at["reset"] >= 2 - 0.2
    assert at["fenced"] <= at["granted"]


def test_a_hang_that_ends_in_time_resets_nobody() -> None:
    """The deadline passes and no pet comes any more; then the host goes on, before its lease has ended, and is petted
    again."""
    cluster = Cluster()
    rig = cluster.rig
    rig.b.pause()
    cluster.run(3.4)
    assert "deadline" in cluster.at
    rig.b.wake()
    cluster.run(2 * W)
    assert "reset" not in cluster.at and rig.b.member.state == "active"


def test_the_documented_figures() -> None:
    """T = 10, W = 15: survivors wait 27 s; the greater of both TTLs counts."""
    assert wait(WatchdogPromise(15, 10), 10 * SECOND) == 27 * SECOND
    assert wait(WatchdogPromise(15, 5), 10 * SECOND) == 27 * SECOND
    assert wait(WatchdogPromise(15, 10), 5 * SECOND) == 27 * SECOND


def test_a_member_without_a_watchdog_is_waited_for() -> None:
    """No waiting proves anything about it: a person has to say that it is off."""
    scheduler, effects = Scheduler(), Effects()
    record = MemberRecord("host-b", "fencing", "machine", "boot", "i-1", "/lock", "", "")
    done: list[bool] = []
    Watchdog(lambda: 10 * SECOND, scheduler, effects).fence(record, lambda: done.append(True))
    scheduler.run_for(1000 * SECOND)
    assert not done
    assert "csnap fence confirm" in str(effects.logged[0])
    with pytest.raises(FormatError):
        WatchdogPromise.from_text("watchdog:0:10")
