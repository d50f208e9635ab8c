"""What every test here begins and ends with: hosts that write and read all the time, over a snapshot, and a witness.

The invariants: no reader ever sees a changed byte; no acknowledged write is lost, in the origin, on any host; the
snapshot is one of a moment while it was taken; at the end origin and COW device, read raw, are that snapshot; and
what the observer says of locks and counters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from demo.history import NEVER
from demo.host import checked_csnap
from demo.raw import rebuild
from tests.battery.observer import Observer
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.traffic import Reader, Traffic, Writer, read_export, take

LIMIT = 60.0  # seconds for anything to go on
AGENTS = Path(__file__).parent


def fence_by_killing(cluster: Hosts, delay: int = 0) -> None:
    """Every host's processes can be killed by the others; ``delay``: seconds that it takes."""
    hosts = "".join(
        f'\n[fencing.hosts.{host.name}]\ndirectory = "{host.directory}"\ndelay = {delay}' for host in cluster
    )
    for host in cluster:
        host.configure("method", f'"agent"\nagent = "{AGENTS / "fence_kill.py"}"\ntimeout = 30{hosts}')


class Scene:
    """``cow``: the COW device as the hosts name it, and the file that it is."""

    def __init__(self, cluster: Hosts, traffic: Traffic, observer: Observer, cow: tuple[Path, Path]) -> None:
        self.cluster, self.traffic, self.observer = cluster, traffic, observer
        self.cow, self._cow_file = cow
        self.writers: dict[Daemon, Writer] = {}
        self.readers: dict[Daemon, Reader] = {}
        self.image = b""

    def begin(self) -> None:
        """Writers on all hosts, a snapshot under them, readers on all hosts."""
        for host in self.cluster:
            self.writers[host] = self.traffic.write_all(host)
        self.traffic.go_on(*self.writers.values(), count=20)
        began, returned = take(self.cluster[0], "s1", self.cow)
        self.image = read_export(self.cluster[-1], "snapshot/s1")
        self.traffic.check_later(self.image, began, returned)
        for host in self.cluster:
            self.readers[host] = self.traffic.read(host, "s1", self.image)
        self.go_on()

    def go_on(self, hosts: Iterable[Daemon] = (), count: int = 20) -> None:
        """Wait until all clients of these hosts (all hosts) have got on."""
        chosen = list(hosts) or list(self.cluster)
        clients = [client for host in chosen for client in (self.writers[host], self.readers[host])]
        self.traffic.go_on(*clients, count=count, limit=LIMIT)

    def answered(self, host: Daemon) -> float:
        """When a client of this host last got an answer."""
        return max(self.writers[host].answered, self.readers[host].answered)

    def wait_stalled(self, hosts: Iterable[Daemon] = ()) -> None:
        for host in list(hosts) or list(self.cluster):
            wait_for(lambda host=host: host.state() == "stalled", f"{host.name} stalls", LIMIT)  # type: ignore[misc]

    def wait_active(self) -> None:
        for host in self.cluster:
            host.wait_active(LIMIT)

    def lost(self, host: Daemon, fenced: float = NEVER) -> None:
        """The clients of this host have lost it; nothing of it was written after ``fenced``."""
        self.traffic.forget(self.writers.pop(host), self.readers.pop(host), fenced=fenced)

    def back(self, *hosts: Daemon) -> None:
        """Start these hosts and their clients."""
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_active(LIMIT)
            self.writers[host] = self.traffic.write_all(host)
            self.readers[host] = self.traffic.read(host, "s1", self.image)

    def paused_only(self, longest: float) -> None:
        """A pause there was, of all writers; and nobody was fenced."""
        assert min(writer.longest for writer in self.writers.values()) > longest
        assert self.observer.fenced == {}

    def end(self) -> None:
        """Hold everything against the invariants."""
        self.go_on()
        self.traffic.stop()
        self.traffic.judge_origin()
        assert [host.terminate() for host in self.cluster] == [0] * len(self.readers)
        self.judge_raw()
        assert self.observer.problems == []
        assert self.observer.handed_over > 0  # they did contend

    def judge_raw(self) -> None:
        """The daemons have ended: what the devices hold is the snapshot."""
        self.cluster.check(self._cow_file)
        dump = json.loads(checked_csnap("dump", self._cow_file, "--json"))
        assert rebuild(self.cluster.volume.origin, self._cow_file, dump) == self.image


def while_away(seconds: float) -> None:
    """How long something is away is what is tested: nothing is waited for."""
    time.sleep(seconds)
