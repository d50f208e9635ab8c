"""In the guest: daemon and attach program, and in turn what happens to them. Prints ``@@FACT name value``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from snapd.cli.client import ask
from tests.kernel.support import crashes, pressure
from tests.kernel.support.guest_host import RESTART, Unit, complaints, configure, fact, wait_for
from tests.support.service_manager import ServiceManager

DEVICE = "/dev/nbd0"
ADMIN = "/run/csnap/admin.sock"
QUEUE = ("logical_block_size", "io_timeout", "max_sectors_kb")


def link(path: Path) -> str:
    """Where a link that udev makes leads to; empty if there is none."""
    return path.resolve().name if path.is_symlink() else ""


def by_uuid() -> str:
    return " ".join(sorted(link(path) for path in Path("/dev/disk/by-uuid").glob("*")))


def look_again(*disks: str) -> None:
    for disk in disks:
        Path(f"/sys/block/{disk}/uevent").write_text("change")
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)


def main(*parts: str) -> None:
    config = configure()
    subprocess.run(["/lib/systemd/systemd-udevd", "--daemon"], check=True)
    named = Path("/dev/csnap/vol")
    with ServiceManager() as manager:
        attach = Unit("attach", "attach", config, restart=1.0)
        wait_for(lambda: attach.said("attach_waiting") > 0, "the attach program waits for the daemon")
        daemon = Unit("daemon", "serve", config, restart=RESTART, manager=manager)
        wait_for(lambda: attach.said(" attached ") == 1, "attached")
        sysfs = Path("/sys/block/nbd0")
        fact("backend", (sysfs / "backend").read_text().strip())
        fact("queue", " ".join((sysfs / "queue" / name).read_text().strip() for name in QUEUE))
        wait_for(lambda: link(named) == "nbd0", "udev makes the link")
        ask(ADMIN, {"command": "snapshot-create", "name": "s1", "cow": "/dev/vdb", "writable": False, "force": False})
        if "crashes" in parts:
            crashes.run(config, DEVICE, daemon, attach)
        if "pressure" in parts:
            pressure.run(DEVICE, daemon, attach)
            look_again("vda", "nbd0")
            fact("by-uuid", by_uuid())
        fact("snapshot", ask(ADMIN, {"command": "status"})["snapshots"][0]["state"])
        look_again("nbd0")  # it opens what somebody has closed, and that is "in use"
        fact("detached", f"{attach.stop()} {(sysfs / 'backend').exists()}")
        wait_for(lambda: not link(named), "udev removes the link")
        fact("stopped", daemon.stop())
    look_again("vda")
    fact("by-uuid-detached", by_uuid() or "none")
    attach.show()
    complaints()


if __name__ == "__main__":
    main(*sys.argv[1:])
