"""The kernel's client attached by ``csnap attach``: daemon, attach program and client in one guest, etcd outside."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from snapd import config as configuration
from snapd.cluster.volume import init_volume, new_format
from snapd.units import MIB
from tests.kernel.support import python, relay, udev
from tests.kernel.support.guest_host import CONFIG, UUID
from tests.kernel.support.vm import run_vm
from tests.support.etcd_server import EtcdServer

DEADLINE = 400.0
"""Seconds; 120 with the machine busy, less with it idle."""

pytestmark = pytest.mark.timeout(DEADLINE + 30)

SIZE = 128 * MIB
MEMORY = 320  # MiB, of which the guest's programs are a half
PARTS = "crashes pressure"
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


def initialize(path: Path, url: str) -> None:
    """What `csnap volume init` does, out here: in the guest gRPC alone takes some ten seconds to load."""
    text = CONFIG.format(name="vol", uuid=UUID, machine="0" * 31 + "1")
    path.write_text(text.replace("http://10.0.2.100:10809", url))
    config = configuration.load(path)
    init_volume(config, new_format(config.volume, SIZE, "dev:254:0"))


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the guest says; one boot for all, since it takes half a minute to start everything in it."""
    folder = tmp_path_factory.mktemp("disks")
    disks = [folder / "origin", folder / "cow"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(SIZE)
    with EtcdServer() as etcd:
        address = etcd.url.removeprefix("http://")
        initialize(folder / "vol.toml", etcd.url)
        result = run_vm(
            f"{NETWORK}\n{python.RUN} -m tests.kernel.support.attached {PARTS} || die python",
            disks,
            modules=["nbd", "ext4"],
            programs=["/sbin/blkid", "/sbin/mkfs.ext4", "/sbin/e2fsck"],  # blkid: for its library
            files=guest_files("tests.kernel.support.attached") | udev.files("vda"),
            service=f"{sys.executable} {relay.__file__} {address}",
            memory=MEMORY,
            processors=2,
            deadline=DEADLINE,
        )
    print("\n".join(result.console))
    assert result.code == 0
    assert result.named("COMPLAINT") == {}
    return result.named("FACT")


def test_it_is_attached_and_detached(facts: dict[str, str]) -> None:
    """With the origin's size and block, the queue set, a snapshot taken meanwhile; SIGTERM detaches, once nobody has it
    open; until then it is refused, and so is a device that belongs to another volume."""
    assert facts["backend"] == "csnap vol 5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
    assert facts["queue"] == "512 2000 1024"
    assert facts["status"] == f"True {SIZE} False"
    assert facts["snapshot"] == "active"
    assert facts["foreign"].startswith("1 ") and "already attached to" in facts["foreign"]
    assert facts["in-use"].startswith("1 ") and "in use" in facts["in-use"]
    assert (facts["detached"], facts["stopped"]) == ("0 False", "0")


def test_udev_names_it_and_hides_the_raw_disk(facts: dict[str, str]) -> None:
    """/dev/csnap/<volume> comes and goes with the device, by what the program tells udev; its file system is found by
    UUID on the device alone, and with the rules of the example never on the raw disk."""
    assert facts["by-uuid"] == "nbd0"
    assert facts["by-uuid-detached"] == "none"


def test_a_planned_restart_is_a_pause(facts: dict[str, str]) -> None:
    """Four writers with O_DIRECT that read back what they wrote: the kernel keeps its connection, no error."""
    assert facts["lost-by-restart"] == "0"
    assert facts["errors"] == "0"


def test_crashes_cost_a_pause_and_nothing_else(facts: dict[str, str]) -> None:
    """The control process, then the worker are killed under the same writers; the attach program was killed, and became
    its next version before, and has adopted the device each time; meanwhile a second one is refused. All that was
    acknowledged is on device and origin."""
    assert facts["second"].startswith("1 ") and "another `csnap attach` keeps it attached" in facts["second"]
    assert (facts["errors"], facts["wrong"], facts["wrong-on-the-origin"]) == ("0", "0", "0")
    assert facts["reconnected"] == "2"
    assert int(facts["written"]) > 100


def test_it_goes_on_when_memory_is_short(facts: dict[str, str]) -> None:
    """A file system on the device, several times the free memory dirtied, another process eats the rest: it makes
    progress, nothing fails, fsck finds nothing, the files are right; memory is locked, PR_SET_IO_FLUSHER set."""
    assert [facts[f"{name}-protected"] for name in ("control", "worker", "attach")] == ["True"] * 3
    assert (facts["pressure-errors"], facts["pressure-wrong"]) == ("0", "0")
    assert facts["fsck"].startswith("0 ")
    assert facts["same-daemon"] == "True"
