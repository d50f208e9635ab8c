"""A switch and the cables to it, in a network namespace that no other process of this machine is in.

``Segment`` is four namespaces held by one idle process: network, mounts, processes and whatever is under /run. Whatever
ends that process takes everything with it that was started or made in there: daemons, mounts, network; and it
ends with the process that made it, also when that is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SWITCH = "switch"
SUBNET = "10.77.0"
CONTROLLER = f"{SUBNET}.1"
LIMIT = 20.0  # seconds until the namespaces are there

IDLE = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
"""As process 1 of its namespace: it lives, and what is orphaned leaves no zombies."""


class Segment:
    """``keep`` are descriptors that live as long as it does."""

    def __init__(self, keep: Sequence[int] = ()) -> None:
        unshare = ["unshare", "--fork", "--kill-child", "--mount-proc", "--pid", "--mount", "--net"]
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, sys.executable, "-S", "-c", IDLE]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=keep)
        try:
            self._idle = self._wait_idle()
            self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "csnap-run", "/run")
            self.run("mkdir", "/run/netns")
            self.run("ip", "link", "set", "lo", "up")
            self.run("ip", "link", "add", SWITCH, "type", "bridge", "forward_delay", "0")
            self.run("ip", "address", "add", f"{CONTROLLER}/24", "dev", SWITCH)
            self.run("ip", "link", "set", SWITCH, "up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process in it; what they held goes with them."""
        self._process.kill()
        self._process.wait()

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` in here."""
        return ["nsenter", "-t", str(self._idle), "-m", "-n", "-p", "--", *command]

    def run(self, *command: str) -> str:
        """Run it; return what it prints. AssertionError when it fails."""
        done = subprocess.run(self.enter(*command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def root(self) -> Path:
        """Return its file systems as seen from outside."""
        return Path(f"/proc/{self._idle}/root")

    def connect(self, name: str, address: str) -> str:
        """Give a host its network; return the path of its namespace."""
        self.run("ip", "netns", "add", name)
        hardware = f"02:00:0a:4d:00:{int(address.rpartition('.')[2]):02x}"  # the same after a power cut, for ARP's sake
        self.run(*f"ip link add {name} type veth peer name eth0 address {hardware} netns {name}".split())
        self.run("ip", "link", "set", name, "master", SWITCH, "up")
        for words in ("link set lo up", "link set eth0 up", f"address add {address}/24 dev eth0"):
            self.run("ip", "-n", name, *words.split())
        self.run("ip", "-n", name, "route", "add", "default", "via", CONTROLLER)
        return f"/run/netns/{name}"

    def disconnect(self, name: str) -> None:
        """Take its network away, with all connections that the kernel still has."""
        self.run("ip", "link", "delete", name)
        self.run("ip", "netns", "delete", name)

    def plug(self, name: str) -> None:
        self.run("ip", "link", "set", name, "master", SWITCH)

    def unplug(self, name: str) -> None:
        """The host's link stays up, and nothing comes through."""
        self.run("ip", "link", "set", name, "nomaster")

    def _wait_idle(self) -> int:
        """Return the process id, as this process sees it, of process 1 in there, once it has become the idle one."""
        end = time.monotonic() + LIMIT
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while True:
            found = children.read_text().split() if children.exists() else []
            if found and IDLE.encode() in Path(f"/proc/{found[0]}/cmdline").read_bytes():
                return int(found[0])
            assert self._process.poll() is None and time.monotonic() < end, "no namespaces"
            time.sleep(0.005)
