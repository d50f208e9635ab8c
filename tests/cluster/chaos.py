"""Three real hosts under random deaths, hangs, outages, snapshots taken and deleted; not part of the suite.

usage: python -m tests.cluster.chaos SEED [STEPS]

Every host has a writer, and a reader of every snapshot, all the time. At the end every image is held against the
writers' history, and the stack of snapshots is put together from the raw devices. Some four seconds a step. What it
finds depends on timing as well as on the seed: run several. Prints the daemons' logs; exit 0 only if all held.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable

from demo.history import NEVER
from demo.host import checked_csnap, csnap, environment, run_csnap
from demo.raw import rebuild
from snapd.units import MIB
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Reader, Traffic, Writer, read_export

TTL = 3
LIMIT = 90.0  # seconds for anything to go on
SNAPSHOTS_MOST = 3
COW_SIZE = 12 * MIB


class Chaos:
    """One run."""

    def __init__(self, cluster: Hosts, traffic: Traffic, rng: random.Random) -> None:
        self._cluster, self._traffic, self._rng = cluster, traffic, rng
        self._writers: dict[Daemon, Writer] = {}
        self._readers: dict[tuple[Daemon, str], Reader] = {}
        self._images: dict[str, bytes] = {}  # of the live snapshots, oldest first
        self._taken = 0
        self._begun = time.monotonic()
        for host in cluster:
            self._connect(host)

    def run(self, steps: int) -> None:
        actions: list[Callable[[Daemon], None]] = [
            self.kill, self.kill_worker, self.restart, self.hiccup, self.hang, self.pause_etcd, self.kill_etcd,
            self.take, self.take, self.take_and_kill, self.delete,
        ]  # fmt: skip
        for _ in range(steps):
            self._go_on(self._rng.choice([5, 20, 60]))
            action, host = self._rng.choice(actions), self._rng.choice(list(self._cluster))
            self._say(f"{action.__name__} {host.name}")
            action(host)
        self._go_on(20)

    def judge(self) -> None:
        """Hold everything against the history; then look at the raw devices."""
        self._traffic.stop()
        self._traffic.judge_origin()
        assert [host.terminate() for host in self._cluster] == [0, 0, 0]
        image = self._cluster.volume.origin.read_bytes()
        scratch = self._cluster.directory / "scratch"
        for name in reversed(self._images):  # newest first: each reads through the next newer one
            cow = self._cluster.cow(f"cow-{name}")
            self._cluster.check(cow)
            scratch.write_bytes(image)
            image = rebuild(scratch, cow, json.loads(checked_csnap("dump", cow, "--json")))
            assert image == self._images[name], name
        self._say(f"{len(self._traffic.writes())} writes, {self._taken} snapshots: all held")

    # ---- what happens to hosts

    def kill(self, host: Daemon) -> None:
        host.kill()
        self._come_back(host)

    def kill_worker(self, host: Daemon) -> None:
        host.kill_worker()
        host.wait_exit()
        self._come_back(host)

    def restart(self, host: Daemon) -> None:
        assert host.terminate() == 0
        self._come_back(host)

    def hiccup(self, host: Daemon) -> None:
        """A pause, shorter than a lease."""
        host.pause(worker=self._rng.random() < 0.5)
        self._sleep(1)
        host.resume()

    def hang(self, host: Daemon) -> None:
        """Longer than a lease: recovered by the others, fenced when it wakes."""
        others = [other for other in self._cluster if other is not host]
        host.pause(worker=self._rng.random() < 0.5)
        wait_for(lambda: not _is_member(others[0], host.name), "it is recovered", LIMIT)
        recovered = time.monotonic()
        self._traffic.go_on(*(self._writers[other] for other in others), count=5, limit=LIMIT)
        host.resume()
        assert host.wait_exit() == 4
        self._come_back(host, recovered)

    def pause_etcd(self, host: Daemon) -> None:
        self._cluster.etcd.pause()
        self._sleep(TTL + 3)
        self._cluster.etcd.resume()

    def kill_etcd(self, host: Daemon) -> None:
        self._cluster.etcd.kill()
        self._sleep(TTL + 3)
        self._cluster.etcd.start()

    # ---- snapshots

    def take(self, host: Daemon) -> None:
        self._take(host, None)

    def take_and_kill(self, host: Daemon) -> None:
        """Kill a host while the command runs: the coordinator or another one."""
        self._take(host, self._rng.choice(list(self._cluster)))

    def _take(self, host: Daemon, victim: Daemon | None) -> None:
        if len(self._images) >= SNAPSHOTS_MOST:
            return
        self._wait_active()
        self._taken += 1
        name = f"s{self._taken}"
        command = [*csnap(), "snapshot", "create", str(host.config), name, "--cow"]
        began, pipe = time.monotonic(), subprocess.PIPE
        process = subprocess.Popen(
            [*command, str(self._cluster.cow(f"cow-{name}", COW_SIZE))], env=environment(), stderr=pipe, text=True
        )
        if victim is not None:
            self._sleep(0.5)
            victim.kill()
        _, error = process.communicate(timeout=LIMIT)
        if victim is not None:
            self._come_back(victim)
        wait_for(lambda: self._state(host, name) != "creating", "it is taken or undone", LIMIT)
        if self._state(host, name) != "active":
            assert process.returncode != 0
            self._say(f"  not taken: {error.strip()}")
            return
        returned = time.monotonic()
        image = read_export(self._rng.choice(list(self._cluster)), f"snapshot/{name}")
        self._traffic.check_later(image, began, returned)
        self._images[name] = image
        for other in self._cluster:
            self._readers[other, name] = self._traffic.read(other, name, image)

    def delete(self, host: Daemon) -> None:
        """Delete the oldest one."""
        if not self._images:
            return
        self._wait_active()
        name = next(iter(self._images))
        for key in [key for key in self._readers if key[1] == name]:
            self._traffic.end(self._readers.pop(key))
        ended = run_csnap("snapshot", "delete", host.config, name)
        if ended.returncode and self._state(host, name):
            self._say(f"  not deleted: {ended.stderr.strip()}")
            for other in self._cluster:
                self._readers[other, name] = self._traffic.read(other, name, self._images[name])
        else:
            del self._images[name]

    def _state(self, host: Daemon, name: str) -> str:
        """The snapshot's state; empty if there is none."""
        found = json.loads(host.csnap("snapshot", "list", "CONFIG", "--json"))
        return next((str(each["state"]) for each in found if each["name"] == name), "")

    # ---- clients

    def _connect(self, host: Daemon) -> None:
        self._writers[host] = self._traffic.write_all(host)
        for name, image in self._images.items():
            self._readers[host, name] = self._traffic.read(host, name, image)

    def _come_back(self, host: Daemon, fenced: float = NEVER) -> None:
        """Its clients have lost it; sometimes the others recover it before it starts again."""
        lost = [self._readers.pop(key) for key in list(self._readers) if key[0] is host]
        self._traffic.forget(self._writers[host], *lost, fenced=fenced)
        self._sleep(self._rng.choice([0, 0, TTL + 3]))
        host.start()
        host.wait_active(LIMIT)
        self._connect(host)

    def _go_on(self, count: int) -> None:
        self._traffic.go_on(*self._writers.values(), *self._readers.values(), count=count, limit=LIMIT)

    def _wait_active(self) -> None:
        for host in self._cluster:
            host.wait_active(LIMIT)

    def _sleep(self, longest: float) -> None:
        time.sleep(self._rng.uniform(0, longest))  # not waiting for anything: how long it is away is what varies

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:7.1f} s  {text}", flush=True)


def _is_member(witness: Daemon, name: str) -> bool:
    status = witness.status()
    return status is None or any(member["node"] == name for member in status["members"])


def main(argv: list[str]) -> int:
    """Run one seed."""
    seed, steps = int(argv[0]), int(argv[1]) if len(argv) > 1 else 25
    with Hosts(3, lease_ttl=TTL) as cluster:
        cluster.start()
        with Traffic(cluster) as traffic:
            chaos = Chaos(cluster, traffic, random.Random(seed))
            chaos.run(steps)
            chaos.judge()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
