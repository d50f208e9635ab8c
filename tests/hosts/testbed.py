"""Hosts with a real systemd, a network, an sshd and shared disks, all on this machine.

    with testbed(3) as bed:
        bed.hosts["host1"].run("systemctl", "status")
        bed.run("ansible-playbook", "-i", ..., cwd=...)    # in their network, as 10.77.0.1

A host is a systemd-nspawn over a root file system that all share and none changes. Its path to a shared disk is a loop
device of its own over the disk's file, so that it can be fenced alone. README.md says what is real here, and what not.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snapd.units import MIB
from tests.hosts import rootfs
from tests.hosts.host import Host
from tests.hosts.network import CONTROLLER, SUBNET, Segment

DISKS = dict.fromkeys(("origin", "cow1", "cow2", "cow3"), 64 * MIB)
"""Every host has them as /dev/csnap-<name>."""

GROUP = 6  # "disk", on every Debian


class Testbed:
    """What ``testbed`` yields."""

    __test__ = False  # a name that pytest takes for a test

    def __init__(self, hosts: dict[str, Host], segment: Segment, directory: Path) -> None:
        self.hosts = hosts
        self.directory = directory
        """For whatever belongs to this bed: an inventory, a CA."""
        self.key = directory / "id_ed25519"
        """Lets root in, by ssh, on every host."""
        self._segment = segment

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` on this machine, in the hosts' network."""
        return self._segment.enter(*command)

    def run(
        self, *command: str, check: bool = True, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it there; what it leaves behind ends with the bed."""
        done = subprocess.run(
            self.enter(*command),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done


@contextmanager
def testbed(count: int = 3, disks: dict[str, int] | None = None) -> Iterator[Testbed]:
    """Boot host1 to host<count>; ``disks`` are names and sizes. Needs root, and takes some seconds.

    Nothing is left when it ends, also by Ctrl-C. If this process is killed, a directory in /tmp and empty control
    groups are left, and no process.
    """
    root = rootfs.build()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csnap-hosts-")))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "id_ed25519"], check=True)
        names = {f"host{number}": f"{SUBNET}.{10 + number}" for number in range(1, count + 1)}
        with ExitStack() as own:  # the segment keeps them from now on, this process does not
            paths = {name: _disks(stack, own, directory, DISKS if disks is None else disks) for name in names}
            keep = [os.open(device, os.O_RDONLY) for own_paths in paths.values() for device in own_paths.values()]
            for descriptor in keep:
                own.callback(os.close, descriptor)
            segment = Segment(keep)
            stack.callback(segment.close)
        memory = directory / "hosts"
        memory.mkdir()
        segment.run("mount", "-t", "tmpfs", "-o", "mode=0755", "csnap-hosts", str(memory))
        key = (directory / "id_ed25519.pub").read_text()
        hosts = {}
        for name, address in names.items():
            hosts[name] = Host(name, address, paths[name], segment, memory / name)
            stack.callback(hosts[name].close)
            hosts[name].furnish(root, {**names, "controller": CONTROLLER}, key)
        for host in hosts.values():
            host.boot()
        for host in hosts.values():
            host.wait_booted()
        yield Testbed(hosts, segment, directory)


def _disks(stack: ExitStack, own: ExitStack, directory: Path, sizes: dict[str, int]) -> dict[str, str]:
    """One host's loop devices over the shared files, by name. They are detached when ``own`` ends, and vanish when
    nobody has them open any more."""
    found = {}
    for name, size in sizes.items():
        backing = directory / f"{name}.disk"
        if not backing.exists():
            with open(backing, "wb") as file:
                file.truncate(size)
        attach = ["losetup", "--find", "--show", "--direct-io=on", str(backing)]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        own.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        status = Path(device).stat()
        stack.callback(_give, device, status.st_uid, status.st_gid, status.st_mode & 0o777)
        _give(device, 0, GROUP, 0o660)
        found[name] = device
    return found


def _give(path: str, user: int, group: int, mode: int) -> None:
    os.chown(path, user, group)
    Path(path).chmod(mode)
