"""Hosts in network namespaces, on a bridge that has addresses for etcd's members; each can be cut off from them.

    with Network(["host-a", "host-b"]) as network:
        network.within("host-a")                       what to run a command with
        network.cut("host-a", SENDING)                 its packets to etcd are dropped
        network.mend("host-a")

Needs root. Names and addresses are unique on this machine, and everything is removed again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

SENDING, RECEIVING = "sending", "receiving"
BOTH = (SENDING, RECEIVING)
MEMBERS = 3  # of etcd
FIRST_HOST = 11
LIMIT = 20  # seconds for any command
NETS = 512
"""/24 networks in 198.18.0.0/15, which is for benchmarks of networks and is nobody's."""


class Network:
    """See the module. ``addresses`` are etcd's."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._token = os.urandom(3).hex()
        self._hosts = list(hosts)
        self._net = _free_net()
        self.addresses = [f"{self._net}.{number}" for number in range(1, 1 + MEMBERS)]
        self._stack = ExitStack()

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            bridge = f"csb{self._token}"
            _ip("link", "add", bridge, "type", "bridge")
            stack.callback(_ip, "link", "delete", bridge)
            for address in self.addresses:
                _ip("address", "add", f"{address}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for number, host in enumerate(self._hosts):
                self._add(stack, bridge, number, self.namespace(host))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _add(self, stack: ExitStack, bridge: str, number: int, namespace: str) -> None:
        outer, inner = f"cs{number}o{self._token}", f"cs{number}i{self._token}"
        _ip("netns", "add", namespace)
        stack.callback(_ip, "netns", "delete", namespace)
        _ip("link", "add", outer, "master", bridge, "type", "veth", "peer", "name", inner, "netns", namespace)
        stack.callback(_ip, "link", "delete", outer)  # a namespace with a process in it would keep the pair
        _ip("link", "set", outer, "up")
        inside = ("-n", namespace)
        _ip(*inside, "address", "add", f"{self._net}.{FIRST_HOST + number}/24", "dev", inner)
        _ip(*inside, "link", "set", inner, "up")
        _ip(*inside, "link", "set", "lo", "up")

    def namespace(self, host: str) -> str:
        return f"csnap-{self._token}-{host}"

    def within(self, host: str) -> tuple[str, ...]:
        """What comes before a command that is to run on this host. It execs: the pid stays."""
        return ("ip", "netns", "exec", self.namespace(host))

    def cut(self, host: str, *directions: str, members: Sequence[int] = range(MEMBERS)) -> None:
        """Drop what ``host`` sends to these members of etcd, or receives from them, until ``mend``."""
        addresses = "{ " + ", ".join(self.addresses[member] for member in members) + " }"
        chains = {
            SENDING: f"chain out {{ type filter hook output priority 0; ip daddr {addresses} drop; }}",
            RECEIVING: f"chain in {{ type filter hook input priority 0; ip saddr {addresses} drop; }}",
        }
        self._nft(host, "table inet cut {\n" + "\n".join(chains[direction] for direction in directions) + "\n}")

    def mend(self, host: str) -> None:
        self._nft(host, "delete table inet cut")

    def _nft(self, host: str, rules: str) -> None:
        _run([*self.within(host), "nft", rules])


def _ip(*arguments: str) -> str:
    return _run(["ip", *arguments])


def _run(command: Sequence[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout


def _free_net() -> str:
    """Return the first three numbers of a network that no interface here is in."""
    used = _ip("-o", "-4", "address")
    first = int.from_bytes(os.urandom(2), "big")
    nets = ((first + number) % NETS for number in range(NETS))
    candidates = (f"198.{18 + net // 256}.{net % 256}" for net in nets)
    return next(net for net in candidates if f" {net}." not in used)
