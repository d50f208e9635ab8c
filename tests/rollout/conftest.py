"""Three hosts for all files of this directory, and a cluster that was rolled out on them once.

Files are run in the order of their names: whatever leaves the hosts without csnap is in test_uninstall.py, the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.hosts.testbed import Testbed, testbed
from tests.rollout.controller import Controller, Run


@pytest.fixture(scope="package")
def bed() -> Iterator[Testbed]:
    """Bare hosts."""
    with testbed(3) as bed:
        for host in bed.hosts.values():
            host.run("apt-get", "-q", "update")  # as every machine that is in use has
        yield bed


@pytest.fixture(scope="package")
def controller(bed: Testbed) -> Controller:
    """With the wheelhouse of this checkout."""
    controller = Controller(bed)
    controller.variables["csnap_version"] = controller.build()
    return controller


@dataclass(frozen=True)
class Rollout:
    """Runs of site.yml: on bare hosts with --check, then for real, then once more."""

    bare: dict[str, set[str]]
    checked: Run
    left_by_check: str
    first: Run
    second: Run


@pytest.fixture(scope="package")
def rollout(bed: Testbed, controller: Controller) -> Rollout:
    before = files(bed)
    checked = controller.play("site", check=True)
    left = files(bed)
    return Rollout(before, checked, diff(before, left), controller.play("site"), controller.play("site"))


NAMED = r"\( -name '*csnap*' -o -name '*etcd*' \)"
ELSEWHERE = " -o ".join(f"-path {path}" for path in ("/proc", "/sys", "/tmp", "/srv", "/var/log", "/var/lib/apt"))
LOOK = (
    rf"find / -xdev \( {ELSEWHERE} \) -prune -o {NAMED} -printf '%p %U:%G %m\n'; find /run {NAMED};"
    " grep -h -E 'csnap|etcd' /etc/passwd /etc/group; ls /opt /usr/local/bin;"
    " systemctl list-units --all --plain --no-legend 'csnap*' 'etcd*'"
)


def files(bed: Testbed) -> dict[str, set[str]]:
    """Return what there is of csnap and etcd, by host: files, users and units."""
    return {name: set(host.run("sh", "-c", LOOK, check=False).splitlines()) for name, host in bed.hosts.items()}


def diff(before: dict[str, set[str]], after: dict[str, set[str]]) -> str:
    return "\n".join(f"{name}: {line}" for name in before for line in sorted(before[name] ^ after[name]))
