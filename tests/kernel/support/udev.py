"""udev in the guest: the distribution's daemon with its rules for block devices, and ours."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.support.packages import libraries, unpacked

RULES = ("50-udev-default.rules", "60-block.rules", "60-persistent-storage.rules")
OURS = Path(__file__).parents[3] / "systemd/udev"
HIDDEN = 'ENV{ID_SERIAL}=="36001405aaaaaaaaaaaaaaaaaaaaaaaaa"'
"""How the example names the origin; the guest's disks have no serial number."""


def build() -> Path:
    """Return the folder of the unpacked package. Raises KernelError."""
    return unpacked("udev", ("udev",))


def files(origin: str) -> dict[str, bytes]:
    """What the guest needs; ``origin``: the name of its raw disk."""
    folder = build()
    (program,) = [path for path in folder.rglob("udevadm") if path.is_file() and path.parent.name in ("bin", "sbin")]
    code = program.read_bytes()
    found = {"bin/udevadm": code, "lib/systemd/systemd-udevd": code, **libraries(program, folder)}
    for name in RULES:
        (path,) = folder.rglob(name)
        found[f"usr/lib/udev/rules.d/{name}"] = path.read_bytes()
    example = (OURS / "61-csnap.rules.example").read_text()
    found["etc/udev/rules.d/61-csnap.rules"] = example.replace(HIDDEN, f'KERNEL=="{origin}"').encode()
    found["etc/udev/rules.d/62-csnap-nbd.rules"] = (OURS / "62-csnap-nbd.rules").read_bytes()
    return found
