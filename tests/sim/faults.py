"""What goes wrong in a history, and how it ends. Each fault is begun by ``begin`` and ended by what that returns.

A history has a few kinds of faults, chosen by its seed: few at a time find more than all at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from errno import EIO
from functools import partial
from typing import TYPE_CHECKING

from snapd.blockdev.memory import READ, WRITE
from snapd.units import SECOND, SECTOR
from tests.sim.disk import QUICK
from tests.support.fake_etcd import NO_FAULT, Call, Fault

if TYPE_CHECKING:
    from tests.sim.disk import Operation, Way
    from tests.sim.host import Host
    from tests.sim.world import World

MILLI = SECOND // 1000
End = Callable[[], None]
NOTHING: End = lambda: None  # noqa: E731


class Faults:
    """``kinds``: the names of those that this history may have."""

    def __init__(self, world: World, kinds: list[str]) -> None:
        self.world = world
        self.kinds = kinds
        self.begun = 0
        self.noise = 0.0  # of etcd's calls, the share that something happens to
        self.struck: dict[str, int] = {}  # node -> when an operation of its on the origin last failed by our doing
        self._disk: list[Callable[[Way, Operation], int]] = []
        self._slow: list[Callable[[Way, Operation], int]] = []
        self._cut: dict[str, tuple[bool, bool]] = {}  # node -> cut (to etcd, from it)
        self._ends: list[End] = []
        world.etcd.fault = self._etcd_fault
        world.trouble.strikes = self._strikes
        world.trouble.slowness = self._slowness

    # ---- the life of a fault

    def begin(self) -> None:
        rng = self.world.rng
        kind = rng.choice(self.kinds)
        self.begun += 1
        self.world.note("FAULT", kind)
        end = MENU[kind](self)
        if end is not NOTHING:
            self._ends.append(end)
            self.world.scheduler.call_later(duration(rng), partial(self._end, kind, end))

    def _end(self, kind: str, end: End) -> None:
        if end in self._ends:
            self._ends.remove(end)
            self.world.note("FAULT", f"{kind} ends")
            end()

    def heal(self) -> None:
        """Everything that can be put right is."""
        self.world.note("FAULT", "all end")
        self.noise = 0.0
        while self._ends:
            self._ends.pop()()
        self._disk.clear()
        self._slow.clear()
        world = self.world
        world.absent.clear()
        for host in world.hosts.values():
            host.resume()
            host.boot()

    # ---- hosts

    def some_host(self) -> Host:
        return self.world.rng.choice(list(self.world.hosts.values()))

    def pause(self, control: bool, worker: bool) -> End:
        """Now; or at a bad moment: between a worker's look at the deadline and the kernel's having its write."""
        host, trouble = self.some_host(), self.world.trouble
        first = self.world.rng.random() < 0.5
        if not worker or self.world.rng.random() < 0.4:
            host.pause(control, worker)
            return lambda: host.resume(first)

        def nothing(way: Way, operation: Operation) -> None:
            pass

        def sent(way: Way, operation: Operation) -> None:
            if way.name == host.node and operation.kind == WRITE:
                operation.held = True
                trouble.sent = nothing
                host.pause(control, worker)

        def end() -> None:
            if trouble.sent is sent:
                trouble.sent = nothing
            host.resume(first)

        trouble.sent = sent
        return end

    def kill(self, control: bool, worker: bool) -> End:
        host = self.some_host()
        self.world.note(host.node, "SIGKILL", control=control, worker=worker)
        if worker:
            host.kill_worker()
        if control:
            host.kill_control()
        return NOTHING

    def power(self) -> End:
        host = self.some_host()
        if not host.powered_off:
            host.lose_power()
        return host.boot

    def array(self) -> End:
        """Now; or at a bad moment: while entries that fill more than a sector are on their way."""
        world = self.world

        def now() -> None:
            world.trouble.sent = lambda way, operation: None
            world.lose_power()

        def sent(way: Way, operation: Operation) -> None:
            if operation.fua and operation.piece > SECTOR and operation.device.path != "origin":
                world.scheduler.call_later(QUICK // 2, now)
                world.trouble.sent = lambda way, operation: None

        if world.rng.random() < 0.5:
            world.lose_power()
            return NOTHING
        world.trouble.sent = sent

        def end() -> None:
            world.trouble.sent = lambda way, operation: None

        return end

    def stop(self) -> End:
        host = self.some_host()
        control = host.control
        if control is not None and control.alive:
            control.run(control.stop)
        return host.boot

    def restart(self) -> End:
        """Both processes killed at once, the daemon wanted back at once."""
        self.kill(True, True)
        return NOTHING

    # ---- etcd and its network

    def partition(self, to: bool, back: bool) -> End:
        host = self.some_host()
        self._cut[host.node] = (to, back)
        host.set_reachable(not back)

        def end() -> None:
            self._cut.pop(host.node, None)
            host.set_reachable(True)

        return end

    def expire(self) -> End:
        control = self.some_host().control
        if control is not None and control.member.session.lease:
            self.world.etcd.expire(control.member.session.lease)
        return NOTHING

    def leader(self) -> End:
        """Requests hang for a moment, then leases begin anew."""
        etcd = self.world.etcd
        etcd.freeze()

        def elected() -> None:
            etcd.change_leader()
            etcd.thaw()

        self.world.scheduler.call_later(self.world.rng.randrange(SECOND), elected)
        return NOTHING

    def freeze(self) -> End:
        self.world.etcd.freeze()
        return self.world.etcd.thaw

    def outage(self) -> End:
        self.world.etcd.stop()
        return self.world.etcd.start

    def no_space(self) -> End:
        self.world.etcd.no_space = True

        def end() -> None:
            self.world.etcd.no_space = False

        return end

    def compact(self) -> End:
        """Whoever has to watch from behind finds it gone."""
        etcd = self.world.etcd
        etcd.disconnect_watches()
        if etcd.store.revision > etcd.store.compacted:
            etcd.compact(etcd.store.revision)
        return NOTHING

    def disconnect(self) -> End:
        control = self.some_host().control
        if control is not None:
            self.world.etcd.disconnect_watches(control.incarnation)
        return NOTHING

    def noisy(self) -> End:
        self.noise = 0.2

        def end() -> None:
            self.noise = 0.0

        return end

    def _etcd_fault(self, call: Call) -> Fault:
        cut = self._cut.get(call.client.rpartition("-")[0]) if self._cut else None
        if cut is not None and call.kind != "notice":
            return Fault(drop_request=cut[0], drop_response=cut[1])
        if not self.noise or self.world.etcd_rng.random() >= self.noise:
            return NO_FAULT
        rng = self.world.etcd_rng
        delay = int(rng.expovariate(1 / (5 * MILLI)))
        what = rng.randrange(8)
        if call.kind == "notice":
            return Fault(response_delay=delay, duplicate=what == 0)
        if what == 0:
            return Fault(drop_request=True)
        if what == 1:
            return Fault(drop_response=True)
        if what == 2:
            return Fault(fail=True)
        if what == 3 and rng.random() < 0.5:  # stuck somewhere, and applied long after its sender gave up
            return Fault(request_delay=rng.randrange(8 * SECOND))
        return Fault(request_delay=delay if what % 2 else 0, response_delay=0 if what % 2 else delay)

    # ---- disks

    def slow(self) -> End:
        """Some operations take long: of one host or of all."""
        rng = self.world.rng
        node = self.some_host().node if rng.random() < 0.5 else ""
        longest = rng.choice((5 * MILLI, 100 * MILLI, 5 * SECOND))
        source = self.world.disk_rng

        def slowness(way: Way, operation: Operation) -> int:
            slow = (not node or way.name == node) and source.random() < 0.3
            return source.randrange(longest) if slow else 0

        self._slow.append(slowness)
        return lambda: self._slow.remove(slowness) if slowness in self._slow else None

    def failing(self, origin: bool) -> End:
        """A few operations fail."""
        rng, world = self.world.rng, self.world
        path = "origin" if origin else rng.choice([path for path in world.disks if path != "origin"])
        kind = rng.choice((READ, "write", "flush"))
        left = rng.randrange(1, 4)

        def strikes(way: Way, operation: Operation) -> int:
            nonlocal left
            if not left or operation.device.path != path or operation.kind != kind:
                return 0
            left -= 1
            world.note(way.name, "EIO", device=path, operation=kind, offset=operation.offset)
            if origin:
                self.struck[way.name] = world.scheduler.now()
                world.oracle.origin_hurt = True
            else:
                world.oracle.cows[path].hurt = True
            return EIO

        self._disk.append(strikes)
        return lambda: self._disk.remove(strikes) if strikes in self._disk else None

    def absent(self) -> End:
        """A COW device cannot be opened on one host."""
        rng, world = self.world.rng, self.world
        what = (self.some_host().node, rng.choice([path for path in world.disks if path != "origin"]))
        world.absent.add(what)
        return lambda: world.absent.discard(what)

    def _strikes(self, way: Way, operation: Operation) -> int:
        for strikes in self._disk:
            error = strikes(way, operation)
            if error:
                return error
        return 0

    def _slowness(self, way: Way, operation: Operation) -> int:
        return sum(slowness(way, operation) for slowness in self._slow)


def duration(rng: random.Random) -> int:
    """Some milliseconds, about a TTL, or several."""
    return rng.choice((rng.randrange(20 * MILLI), rng.randrange(500 * MILLI), rng.randrange(SECOND, 9 * SECOND)))


GENTLE = ("pause control", "kill control", "partition", "partition to", "partition from", "leader", "freeze", "outage",
          "no space", "compact", "disconnect", "noisy")  # fmt: skip
"""Under these the deadline alone keeps hosts apart: nothing stops a worker between its look at the deadline and the
kernel, and no operation takes longer than the margin."""

MENU: dict[str, Callable[[Faults], End]] = {
    "pause control": lambda faults: faults.pause(True, False),
    "pause worker": lambda faults: faults.pause(False, True),
    "pause both": lambda faults: faults.pause(True, True),
    "kill control": lambda faults: faults.kill(True, False),
    "kill worker": lambda faults: faults.kill(False, True),
    "kill both": Faults.restart,
    "host power": Faults.power,
    "array power": Faults.array,
    "stop": Faults.stop,
    "partition": lambda faults: faults.partition(True, True),
    "partition to": lambda faults: faults.partition(True, False),
    "partition from": lambda faults: faults.partition(False, True),
    "expire": Faults.expire,
    "leader": Faults.leader,
    "freeze": Faults.freeze,
    "outage": Faults.outage,
    "no space": Faults.no_space,
    "compact": Faults.compact,
    "disconnect": Faults.disconnect,
    "noisy": Faults.noisy,
    "slow disk": Faults.slow,
    "failing COW": lambda faults: faults.failing(False),
    "failing origin": lambda faults: faults.failing(True),
    "absent COW": Faults.absent,
}
