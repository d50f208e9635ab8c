"""Three hosts in namespaces: each with a network of its own to etcd's three members, and loop devices of its own.

Every host finds the LUNs under one path, ``<directory>/dev``; what lies there are its own loop devices over the shared
files (a mount namespace each). Fencing makes a host's devices read-only: it lives on, and may come back.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snapd.units import MIB
from tests.battery.network import SENDING, Network
from tests.battery.scene import AGENTS
from tests.support.daemons import Daemon, Hosts
from tests.support.disks import attached, can_attach
from tests.support.etcd_server import etcd_cluster

DEVICES = ("origin", "cow")
BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
BLOCK = 4096
PIDFD_GETFD = 438  # the system call: glibc 2.36 has it, Python has not
NAMES = ("host-a", "host-b", "host-c")


class Far:
    """The hosts, their network, their devices."""

    def __init__(self, cluster: Hosts, network: Network) -> None:
        self.cluster, self.network = cluster, network
        self.cow = cluster.directory / "dev" / "cow"
        self.cow_file = cluster.cow("cow")
        self._loops: dict[Daemon, dict[str, str]] = {}

    def attach(self, stack: ExitStack) -> None:
        """Give every host its devices, and the means to fence the others."""
        shared = self.cluster.directory / "dev"
        shared.mkdir()
        files = {"origin": self.cluster.volume.origin, "cow": self.cow_file}
        for host in self.cluster:
            self._loops[host] = {name: stack.enter_context(attached(str(files[name]))) for name in DEVICES}
            own = host.directory / "dev"
            own.mkdir()
            for name, loop in self._loops[host].items():
                (own / name).symlink_to(loop)
            bind = ("sh", "-c", BIND, "sh", str(own), str(shared))
            host.within = (*self.network.within(host.name), *bind)
        for name, loop in self._loops[self.cluster[0]].items():  # for ``csnap volume init``, outside
            (shared / name).symlink_to(loop)
        hosts = "".join(
            f'\n[fencing.hosts.{host.name}]\ndevices = "{" ".join(loops.values())}"'
            for host, loops in self._loops.items()
        )
        for host in self.cluster:
            host.configure("origin", f'"{shared / "origin"}"')
            host.configure("method", f'"agent"\nagent = "{AGENTS / "fence_readonly.sh"}"\ntimeout = 30{hosts}')

    def unfence(self, host: Daemon) -> None:
        """An administrator gives the host its devices again."""
        for loop in self._loops[host].values():
            subprocess.run(["blockdev", "--setrw", loop], check=True)

    def late_write(self, host: Daemon, name: str) -> int:
        """Write by the worker's own descriptor of this device, as it would itself; return the errno.

        What is written is what is there: should it succeed against all expectation, nothing else goes wrong.
        """
        worker = host.worker()
        device = Path(self._loops[host][name]).stat().st_rdev
        (number, *_) = [
            int(link.name) for link in Path(f"/proc/{worker}/fd").iterdir() if _device_number(link) == device
        ]
        pidfd = os.pidfd_open(worker)
        fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, number, 0)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        try:
            with mmap.mmap(-1, BLOCK) as page:  # O_DIRECT wants it aligned
                os.preadv(fd, [page], 0)
                os.pwritev(fd, [page], 0)
        except OSError as error:
            return error.errno or 0
        finally:
            os.close(fd)
            os.close(pidfd)
        return 0

    def assert_fenced(self, host: Daemon) -> None:
        """Nothing that this host still has in hand reaches a device."""
        for name in DEVICES:
            refused = self.late_write(host, name)
            assert refused in (errno.EPERM, errno.EROFS), f"{host.name} {name}: {os.strerror(refused)}"


def _device_number(link: Path) -> int:
    try:
        return link.stat().st_rdev
    except OSError:
        return 0


@functools.cache
def can_isolate() -> bool:
    """Whether network namespaces, packet filters and loop devices can be made here."""
    try:
        with Network(["probe"]) as network:
            network.cut("probe", SENDING)
            return can_attach()
    except (OSError, AssertionError):
        return False


@contextmanager
def far_hosts(origin_size: int = 8 * MIB) -> Iterator[Far]:
    """Make it all; the hosts are not started."""
    with ExitStack() as stack:
        network = stack.enter_context(Network(NAMES))
        etcds = stack.enter_context(etcd_cluster(addresses=network.addresses))
        loops = stack.enter_context(ExitStack())  # detached when the hosts have ended
        cluster = stack.enter_context(Hosts(len(NAMES), etcds=etcds, origin_size=origin_size, chunk_size="4KiB"))
        far = Far(cluster, network)
        far.attach(loops)
        yield far
