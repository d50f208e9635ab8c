"""The demo's story: two hosts write to one disk, a snapshot is taken under them, and what was promised is looked at.

What is shown, and how:

- The writers are not paused: they are ordinary processes that nobody talks to between their start and their end.
- The snapshot is the disk at one moment between the command's begin and its return: every writer keeps a journal
  of when each write was issued and acknowledged, and ``history.judge`` holds the snapshot against the journals.
- It does not change and is the same everywhere: its SHA-256 from either host, before and after more writing, and from
  the raw files, put together by hand from what ``csnap dump`` prints, once no daemon runs any more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demo.console import Console
from demo.history import Write, judge
from demo.host import Host, Volume, checked_csnap
from demo.nbd import NbdClient
from demo.ports import free_ports
from demo.raw import rebuild
from demo.stage import Stage, StageError, wait_until
from demo.writer import read_journal

MIB = 1 << 20
ORIGIN_SIZE = 32 * MIB
COW_SIZE = 48 * MIB
BLOCK = 4096  # bytes, eight sectors with one stamp
BLOCKS = ORIGIN_SIZE // BLOCK
RANGES = ((0, BLOCKS * 3 // 4), (BLOCKS // 4, BLOCKS))  # what each host writes: the middle half is common
SNAPSHOT = "monday"
BEFORE, AFTER = 1_000, 300  # writes of each host; those after it copy chunks out and contend for regions
START_LIMIT = 20.0
WRITE_LIMIT = 30.0
TABLE_HEAD = 6


@dataclass(frozen=True, slots=True)
class Taken:
    """The command's begin and return, on the clock of the journals."""

    began: float
    returned: float


class Story:
    """The steps, in the order of ``tell``. ``good`` is whether everything held so far."""

    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._console = console
        self._sums: dict[str, str] = {}
        self.good = True

    def tell(self) -> bool:
        """Play everything; return whether all of it held."""
        console = self._console
        console.title("csnap: a snapshot of a shared disk, taken while two hosts write to it")
        volume, cow = self._prepare()
        hosts = self._start_hosts(volume)
        writers, journals = self._start_writers(hosts)
        taken = self._take(hosts, cow)
        self._read(hosts, "while both go on writing")
        more = self._write_more(journals, taken)
        self._read(hosts, "after more writing")
        self._show(hosts)
        for host, writer in zip(hosts, writers, strict=True):
            self._claim(self._stage.stop(writer) == 0, f"the writer on {host.name} never saw an error")
        writes = [read_journal(journal, number) for number, journal in enumerate(journals)]
        self._judge(hosts[0], writes, taken)
        self._stop(hosts)
        self._dump(volume, cow)
        self._conclude(writes, taken, more)
        return self.good

    def _claim(self, held: bool, text: str) -> None:
        self._console.proof(held, text)
        self.good = self.good and held

    # ---- the parts

    def _prepare(self) -> tuple[Volume, Path]:
        """An etcd, an origin and a COW device."""
        directory = self._stage.directory
        etcd = shutil.which("etcd")
        if etcd is None:
            raise StageError("there is no etcd in the PATH: apt-get install etcd-server")
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        command = [etcd, "--name", "demo", "--data-dir", str(directory / "etcd"), "--logger", "zap"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"demo={peer}", "--log-level", "warn"]
        self._stage.start("etcd", command)
        volume = Volume("demo", str(uuid.uuid4()), directory / "origin", client)
        cow = directory / "cow"
        for path, size in ((volume.origin, ORIGIN_SIZE), (cow, COW_SIZE)):
            with open(path, "wb") as file:
                file.truncate(size)
        sizes = f"an origin of {ORIGIN_SIZE // MIB} MiB and a COW device of {COW_SIZE // MIB} MiB"
        self._console.step(f"etcd at {client}; {sizes}, sparse files")
        self._console.detail(f"everything lies in {directory} and will be removed")
        return volume, cow

    def _start_hosts(self, volume: Volume) -> list[Host]:
        hosts = [
            Host(name, self._stage.directory / name, volume, port, self._stage.guard)
            for name, port in zip(("host-a", "host-b"), free_ports(2), strict=True)
        ]
        hosts[0].csnap("volume", "init", "CONFIG")
        for host in hosts:
            self._stage.start(host.name, host.serve())
        for host in hosts:
            wait_until(lambda host=host: self._active(host), START_LIMIT, f"{host.name} is active")  # type: ignore[misc]
        self._console.step("two daemons, host-a and host-b, serve the volume (csnap volume init, csnap serve)")
        self._console.detail(
            "fencing is unsafe here: a host that is given up is declared dead but not stopped. On one machine nothing\n"
            "can come of it; with real hosts and real data, configure a method that fences."
        )
        return hosts

    def _active(self, host: Host) -> bool:
        self._stage.check_alive()
        if not host.socket.exists():
            return False
        status = host.status()
        return status is not None and status["member"]["state"] == "active"

    def _start_writers(self, hosts: list[Host]) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
        writers, journals = [], []
        for number, (host, (first, last)) in enumerate(zip(hosts, RANGES, strict=True)):
            journal = self._stage.directory / f"journal-{number}"
            arguments = [str(host.socket), str(journal), *map(str, (number, BLOCK, first, last, 1000 + number))]
            writers.append(self._stage.start(f"writer-{number}", [sys.executable, "-m", "demo.writer", *arguments]))
            journals.append(journal)
        self._wait_written(journals, BEFORE)
        self._console.step("a writer on each host stamps blocks (host, block, sequence), half of them the same blocks")
        return writers, journals

    def _wait_written(self, journals: list[Path], count: int) -> None:
        """Wait until each writer has made ``count`` more writes."""
        goals = {journal: _lines(journal) + count for journal in journals}

        def enough() -> bool:
            self._stage.check_alive()
            return all(_lines(journal) >= goal for journal, goal in goals.items())

        wait_until(enough, WRITE_LIMIT, f"{count} more writes on each host")

    def _take(self, hosts: list[Host], cow: Path) -> Taken:
        began = time.monotonic()
        hosts[0].csnap("snapshot", "create", "CONFIG", SNAPSHOT, "--cow", cow)
        returned = time.monotonic()
        self._console.step(f"csnap snapshot create: {returned - began:.2f} s, under both writers")
        return Taken(began, returned)

    def _write_more(self, journals: list[Path], taken: Taken) -> int:
        before = sum(_lines(journal) for journal in journals)
        self._wait_written(journals, AFTER)
        more = sum(_lines(journal) for journal in journals) - before
        self._console.step(f"{more} more writes")
        return more

    def _read(self, hosts: list[Host], when: str) -> None:
        """Read the snapshot on both hosts at once."""
        self._stage.check_alive()
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(_read_snapshot, hosts))
        for host, image in zip(hosts, images, strict=True):
            self._sums[f"{host.name}, {when}"] = hashlib.sha256(image).hexdigest()
        self._console.step(f"the snapshot, read on both hosts {when}")
        for source, digest in list(self._sums.items())[-len(hosts) :]:
            self._console.detail(f"{digest[:32]}...  {source}")

    # ---- what people look at

    def _show(self, hosts: list[Host]) -> None:
        console = self._console
        console.step("csnap status")
        console.detail(hosts[1].csnap("status", "CONFIG"))
        console.step("lock waits and COW counters, from the Prometheus endpoints")
        for host in hosts:
            metrics = host.metrics()
            for resource in ("region", "tail"):
                waits = metrics.sum("csnap_lock_wait_seconds_count", resource=resource)
                seconds = metrics.sum("csnap_lock_wait_seconds_sum", resource=resource)
                mean = 1000 * seconds / waits if waits else 0.0
                tail = 1000 * metrics.quantile("csnap_lock_wait_seconds", 0.99, resource=resource)
                console.detail(
                    f"{host.name}: waited {waits:.0f} times for a {resource} lock,"
                    f" {mean:.1f} ms on average, 99 % within {tail:.1f} ms"
                )
            copies = metrics.sum("csnap_cow_copies_total")
            copied = metrics.sum("csnap_cow_copy_bytes_total") / MIB
            commits = metrics.sum("csnap_cow_commit_batch_exceptions_count")
            used = metrics.sum("csnap_cow_used_bytes") / MIB
            console.detail(
                f"{host.name}: {copies:.0f} chunks copied out ({copied:.1f} MiB) in {commits:.0f} commits;"
                f" COW device used: {used:.1f} MiB"
            )

    # ---- what was promised

    def _judge(self, host: Host, writes: list[list[Write]], taken: Taken) -> None:
        every = [write for one in writes for write in one]
        problems = judge(_read_snapshot(host), BLOCK, every, taken.began, taken.returned)
        self._console.step(f"the snapshot against the journals of {len(every)} writes")
        for problem in problems[:5]:
            self._console.detail(problem)
        before = sum(write.acknowledged < taken.began for write in every)
        during = sum(write.issued > taken.began and write.acknowledged < taken.returned for write in every)
        after = sum(write.issued > taken.returned for write in every)
        self._claim(not problems, f"{before} writes acknowledged before the command: all in, unless overwritten")
        self._claim(not problems, f"{after} writes issued after its return: none is in")
        self._claim(not problems, f"{during} writes while it ran: in up to one moment, the same for both hosts")

    def _stop(self, hosts: list[Host]) -> None:
        for host in hosts:
            process = self._stage.find(host.name)
            code = self._stage.stop(process)
            self._claim(code == 0, f"{host.name} stopped on SIGTERM, exit {code}")

    def _dump(self, volume: Volume, cow: Path) -> None:
        dump = json.loads(checked_csnap("dump", cow, "--json", guard=self._stage.guard))
        exceptions = dump["exceptions"]
        self._console.step(f"csnap dump: {dump['status']}; {len(exceptions)} exceptions (old chunk -> new chunk):")
        head = "  ".join(f"{old}->{new}" for old, new in exceptions[:TABLE_HEAD])
        self._console.detail(f"{head}  ..." if len(exceptions) > TABLE_HEAD else head)
        image = rebuild(volume.origin, cow, dump)
        self._sums["the raw files by csnap dump, after the stop"] = hashlib.sha256(image).hexdigest()
        same = len(set(self._sums.values())) == 1
        for source, digest in self._sums.items():
            self._console.detail(f"{digest[:32]}...  {source}")
        self._claim(same, "all the same")
        self._console.step("csnap check")
        self._console.detail(checked_csnap("check", cow, guard=self._stage.guard))

    def _conclude(self, writes: list[list[Write]], taken: Taken, more: int) -> None:
        longest = max(
            write.acknowledged - write.issued
            for one in writes
            for write in one
            if write.acknowledged > taken.began and write.issued < taken.returned
        )
        counts = " and ".join(str(len(one)) for one in writes)
        lines = (
            f"The hosts made {counts} writes and were not paused; during the command the slowest took {longest:.2f} s.",
            "The snapshot has everything acknowledged before the command began and nothing issued after it returned.",
            f"It is the same on both hosts, before and after {more} more writes, and on the raw disks without csnap.",
        )
        self._console.title("Shown:" if self.good else "NOT SHOWN, see WRONG above:")
        for line in lines:
            self._console.detail(line)


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _read_snapshot(host: Host) -> bytes:
    with NbdClient(host.socket, f"snapshot/{SNAPSHOT}") as client:
        return client.read_all()
