"""The kernel's client attached by ``csnap attach``: daemon, attach program and client in one guest, etcd outside."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from snapd.units import MIB
from tests.kernel.support import python, relay
from tests.kernel.support.vm import Result, run_vm
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.timeout(240)

SIZE = 48 * MIB
NETWORK = """
. /lib/guest.sh
load virtio_net nbd ext4
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
"""


def guest_files(*modules: str) -> dict[str, bytes]:
    """Python with the whole of csnap. Worker and command line are started as ``-m``; etcd3's source is read."""
    project = python.PROJECT
    every = [path.relative_to(project).with_suffix("") for path in (project / "snapd").rglob("*.py")]
    found = python.files(*(".".join(path.parts) for path in every if path.name[:2] != "__"), *modules)
    for room in ("worker", "cli"):
        found[f"{python.HOME}/snapd/{room}/__main__.pyc"] = python.compiled(project / "snapd" / room / "__main__.py")
    spec = find_spec("etcd3")
    assert spec is not None and spec.origin is not None
    for source in (Path(spec.origin).parent / "etcdrpc").glob("*.py"):
        found[f"{python.HOME}/etcd3/etcdrpc/{source.name}"] = source.read_bytes()
    return found


def boot(tmp_path: Path, program: str, memory: int, programs: tuple[str, ...] = ()) -> Result:
    disks = [tmp_path / "origin", tmp_path / "cow"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(SIZE)
    with EtcdServer() as etcd:
        address = etcd.url.removeprefix("http://")
        result = run_vm(
            f"{NETWORK}\n{python.RUN} -m {program} || die python",
            disks,
            modules=["nbd", "ext4"],
            programs=("/sbin/blkid", *programs),  # for its library
            files=guest_files(program),
            service=f"{sys.executable} {relay.__file__} {address}",
            memory=memory,
            deadline=200,
        )
    print("\n".join(result.console))
    assert result.code == 0
    return result


def test_crashes_under_four_writers_cost_a_pause_and_nothing_else(tmp_path: Path) -> None:
    """Control process and worker are killed under four writers with O_DIRECT that read back what they wrote: no error,
    and everything acknowledged is there, on the device and on the origin. The attach program is killed as well, and
    told to become its next version: each time it adopts the device. Another volume's is refused; so is detaching
    while a process has it open; when none has, SIGTERM detaches."""
    result = boot(tmp_path, "tests.kernel.support.crashes", memory=512)
    facts = result.named("FACT")
    assert facts["backend"] == "csnap vol 5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
    assert facts["status"] == f"True {SIZE} False"
    assert facts["snapshot"] == "s1: taken"
    assert (facts["errors"], facts["wrong"], facts["wrong-on-the-origin"]) == ("0", "0", "0")
    assert facts["foreign"].startswith("1 ") and "already attached to" in facts["foreign"]
    assert facts["in-use"].startswith("1 ") and "in use" in facts["in-use"]
    assert facts["detached"] == "0 False"
    assert facts["stopped"] == "0"
    assert result.named("COMPLAINT") == {}
