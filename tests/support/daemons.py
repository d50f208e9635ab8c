"""A real cluster on this machine: an etcd, an origin and COW devices as sparse files, and a ``csnap serve`` per host.

    with Hosts(2) as cluster:
        cluster.start()
        cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1"))

Every process is started here and ended here, by its pid. Logs are printed when the cluster is taken down; pytest
shows them of tests that failed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from demo.host import Host, Volume, checked_csnap, environment
from demo.ports import free_ports
from demo.stage import children, runs
from snapd.cli.client import ask
from snapd.errors import CsnapError
from snapd.units import MIB
from tests.support.etcd_server import EtcdServer, wait_for

ACTIVE_LIMIT = 30.0  # seconds until a daemon serves, on a busy machine
STOP_LIMIT = 10.0  # seconds: what csnap promises
EXIT_LIMIT = 15.0
LOG_LINES = 60


class Daemon(Host):
    """A host and its daemon: control process and worker."""

    process: subprocess.Popen[bytes] | None = None
    within: tuple[str, ...] = ()
    """A command that execs the daemon's, e.g. in a network namespace."""

    def serve(self) -> list[str]:
        return [*self.within, *super().serve()]

    def configure(self, key: str, value: str) -> None:
        """Give a key that the configuration has another value, in TOML; before the start."""
        line = f"{key} = {value}"
        text, count = re.subn(rf"^{key} = .*$", lambda _: line, self.config.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{key}: {count} lines"
        self.config.write_text(text)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        """Start the daemon; ``wait_active`` waits for it."""
        assert self.process is None
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.serve(), env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def state(self) -> str:
        """Return the member's state, empty while no daemon answers. Asked without a process: this is polled."""
        try:
            return str(ask(str(self.directory / "admin.sock"), {"command": "status"})["member"]["state"])
        except CsnapError:
            return ""

    def wait_active(self, limit: float = ACTIVE_LIMIT) -> None:
        """Return when the member is active and nbd.sock accepts clients."""

        def active() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
            return self.state() == "active"

        wait_for(active, f"{self.name} is active", limit)

    def worker(self) -> int:
        """Return the worker's pid."""
        assert self.process is not None
        (pid,) = [pid for pid in children(self.process.pid) if b"snapd.worker" in _command_line(pid)]
        return pid

    def kill(self) -> None:
        """SIGKILL the control process; return when the worker has ended too."""
        assert self.process is not None
        worker = self.worker()
        self.process.kill()
        self.wait_exit()
        wait_for(lambda: not runs(worker), "the worker follows its control process", EXIT_LIMIT)

    def kill_worker(self) -> None:
        os.kill(self.worker(), signal.SIGKILL)

    def pause(self, *, control: bool = True, worker: bool = True) -> None:
        """SIGSTOP: both processes of a host that hangs, or one of them."""
        assert self.process is not None
        for pid, wanted in ((self.worker(), worker), (self.process.pid, control)):
            if wanted:
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to both processes, as far as they are there."""
        assert self.process is not None
        for pid in (*children(self.process.pid), self.process.pid):
            os.kill(pid, signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM; return the exit code. TimeoutExpired after the ten seconds that csnap promises."""
        assert self.process is not None
        self.process.terminate()
        return self.wait_exit(STOP_LIMIT)

    def wait_exit(self, limit: float = EXIT_LIMIT) -> int:
        """Return the exit code of the daemon, once it has ended."""
        assert self.process is not None
        code = self.process.wait(limit)
        self.process = None
        return code

    def tail(self) -> str:
        """Return the end of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def destroy(self) -> None:
        """End it, whatever state it is in."""
        process, self.process = self.process, None
        if process is None:
            return
        pids = [process.pid, *children(process.pid)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(EXIT_LIMIT)


class Hosts:
    """See the module. ``[n]`` is the n-th daemon, named host-a, host-b, ...

    ``origin``: a disk that is there; without: a file of ``origin_size``.
    ``etcds``: the members of an etcd cluster that runs, and that somebody else ends; without: one of our own.
    """

    def __init__(
        self,
        count: int = 2,
        *,
        origin_size: int = 8 * MIB,
        lease_ttl: int = 3,
        chunk_size: str = "16KiB",
        origin: Path | None = None,
        etcds: Sequence[EtcdServer] = (),
    ) -> None:
        self.directory = _directory()
        self._own_etcd = not etcds
        self.etcds = list(etcds) or [EtcdServer()]
        self.etcd = self.etcds[0]
        where = origin or self.directory / "origin"
        self.volume = Volume("vol", str(uuid4()), where, self.etcd.url, lease_ttl, chunk_size)
        if origin is None:
            _sparse(where, origin_size)
        names = [f"host-{letter}" for letter in "abcdefgh"[:count]]
        self._hosts = [
            Daemon(name, self.directory / name, self.volume, port)
            for name, port in zip(names, free_ports(count), strict=True)
        ]
        urls = ", ".join(f'"{etcd.url}"' for etcd in self.etcds)
        for host in self._hosts:
            host.configure("endpoints", f"[{urls}]")

    def __enter__(self) -> Hosts:
        if self._own_etcd:
            self.etcd.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts:
            host.destroy()
        if self._own_etcd:
            self.etcd.destroy()
        logs = [f"---- {host.name}\n{host.tail()}" for host in self._hosts]
        shutil.rmtree(self.directory, ignore_errors=True)
        print("\n".join(logs))  # last: nobody may be listening any more

    def __getitem__(self, number: int) -> Daemon:
        return self._hosts[number]

    def __iter__(self) -> Iterator[Daemon]:
        return iter(self._hosts)

    def start(self) -> None:
        """Register the volume, start every daemon, wait until all serve."""
        self[0].csnap("volume", "init", "CONFIG")
        for host in self:
            host.start()
        for host in self:
            host.wait_active()

    def cow(self, name: str, size: int = 16 * MIB) -> Path:
        """Return a COW device of this name, made when it is new."""
        path = self.directory / name
        if not path.exists():
            _sparse(path, size)
        return path

    def check(self, cow: Path) -> None:
        """``csnap check`` finds the device sound."""
        checked_csnap("check", cow)

    def etcd_requests(self) -> Counter[str]:
        """Return how many requests etcd has answered (messages it has got, of streams), by method."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.etcd.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        counts: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "grpc_server_msg_received_total":
                    counts[sample.labels["grpc_method"]] += int(sample.value)
        return counts


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def _directory() -> Path:
    """Return a new directory with a short path (sockets), where the file system takes O_DIRECT if there is one."""
    bases = [tempfile.gettempdir(), "/var/tmp", "/dev/shm"]
    base = next((base for base in bases if _takes_direct(base)), bases[0])
    return Path(tempfile.mkdtemp(prefix="csnap-", dir=base))


def _takes_direct(base: str) -> bool:
    try:
        fd, path = tempfile.mkstemp(prefix="csnap-", dir=base)
    except OSError:
        return False
    os.close(fd)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        Path(path).unlink()
    return True


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
