"""One host of the testbed: booted, cut off, frozen, fenced, its power cut, and back."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from tests.hosts import rootfs
from tests.hosts.network import Segment
from tests.support.etcd_server import wait_for
from tests.systemd import booted

LIMIT = 60.0  # seconds for whatever a host has to do


class Host(booted.Host):
    """Its disk outlives a stop and a power cut. Commands run in it as root, and with more rights than its root has:
    what a unit or a user may do is shown by units, or by ssh."""

    namespaces: ClassVar = (*booted.Host.namespaces, "-n")

    def __init__(self, name: str, address: str, disks: dict[str, str], segment: Segment, base: Path) -> None:
        super().__init__(0)
        self.name = name
        self.address = address
        self.disks = disks
        """Its own paths, as seen from outside, to the shared disks: loop devices, by the disks' names."""
        self._segment = segment
        self._base = base
        self._groups = ExitStack()
        self._group = booted.control_group(self._groups, f"csnap-{name}-{os.getpid()}")
        self._process: subprocess.Popen[bytes] | None = None

    def furnish(self, root: rootfs.Root, names: dict[str, str], key: str) -> None:
        """Make its disk: it knows its name, the others' (``names``, with their addresses), and who may log in."""
        upper = self._outside("upper")
        for directory in (upper / "etc/ssh", upper / "root/.ssh", self._outside("work"), self._outside("root")):
            directory.mkdir(parents=True)
        for directory in (upper, upper / "etc", upper / "etc/ssh"):
            directory.chmod(0o755)
        for directory in (upper / "root", upper / "root/.ssh"):
            directory.chmod(0o700)
        hosts = "".join(f"{address} {name}\n" for name, address in names.items())
        for path, text in {
            "etc/machine-id": f"{uuid4().hex}\n",
            "etc/hostname": f"{self.name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n{hosts}",
            "etc/resolv.conf": "",
            "root/.ssh/authorized_keys": key,
        }.items():
            (upper / path).write_text(text)
        layers = f"lowerdir={root.tree},upperdir={self._base / 'upper'},workdir={self._base / 'work'}"
        self._segment.run("mount", "-t", "overlay", "-o", layers, "none", str(self._base / "root"))
        self._repository = root.repository

    def boot(self) -> None:
        """Begin to; ``wait_booted`` then."""
        assert self._process is None, f"{self.name} runs"
        network = self._segment.connect(self.name, self.address)
        binds = {device: f"/dev/csnap-{name}" for name, device in self.disks.items()}
        line = booted.nspawn(
            self._base / "root",
            binds,
            self._group,
            f"--bind-ro={self._repository}:{rootfs.INSIDE}",
            f"--network-namespace-path={network}",
        )
        with open(self._console, "ab") as log:
            self._process = subprocess.Popen(
                self._segment.enter("sh", "-c", line), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_booted(self) -> None:
        """Until its units have started or failed, its sshd among them."""
        assert self._process is not None, f"{self.name} is off"
        self._leader = booted.wait_leader(self._process, self._group, self._console)
        self.root = Path(f"/proc/{self._leader}/root")
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def shut_down(self) -> None:
        """As an administrator does."""
        assert self._process is not None, f"{self.name} is off"
        self.run("systemctl", "poweroff", check=False)
        self._process.wait(LIMIT)
        self._ended()

    def cut_power(self) -> None:
        """Everything ends at once, and nobody on the network hears of it."""
        assert self._process is not None, f"{self.name} is off"
        self.cut()
        booted.kill(self._group)
        self._process.wait(LIMIT)
        self._ended()

    def cut(self) -> None:
        """Off the network: its link stays up, and nothing comes through."""
        self._segment.unplug(self.name)

    def heal(self) -> None:
        self._segment.plug(self.name)

    def freeze(self) -> None:
        """It stands still as a whole, like a virtual machine that is paused."""
        self._freeze("1")

    def thaw(self) -> None:
        self._freeze("0")

    def fence(self, name: str = "") -> None:
        """Its paths to the shared disks, or to this one, refuse writes from now on, also those of open descriptors."""
        self._blockdev("--setro", name)

    def unfence(self, name: str = "") -> None:
        self._blockdev("--setrw", name)

    def close(self) -> None:
        """End it, however it stands."""
        if self._process is not None:
            booted.kill(self._group)
            self._process.wait(LIMIT)
        self.unfence()
        self._groups.close()

    @property
    def _console(self) -> Path:
        return self._outside("console")

    def _outside(self, name: str) -> Path:
        return self._segment.root() / str(self._base / name).lstrip("/")

    def _ended(self) -> None:
        self._process = None
        self._segment.disconnect(self.name)
        wait_for(lambda: "populated 0" in (self._group / "cgroup.events").read_text(), f"{self.name} is off", LIMIT)
        subprocess.run(  # the next systemd there makes its own
            ["find", str(self._group), "-mindepth", "1", "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"],
            check=True,
        )

    def _freeze(self, word: str) -> None:
        (self._group / "cgroup.freeze").write_text(word)
        wait_for(lambda: f"frozen {word}" in (self._group / "cgroup.events").read_text(), f"frozen {word}", LIMIT)

    def _blockdev(self, option: str, name: str) -> None:
        for device in [self.disks[name]] if name else self.disks.values():
            subprocess.run(["blockdev", option, device], check=True)
