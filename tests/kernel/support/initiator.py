"""The kernel's iSCSI initiator in the guest: ``iscsistart`` logs in, as an initramfs does, and needs no daemon.

It comes from Debian's open-iscsi, downloaded and unpacked beside the kernel, never installed: the package enables
services, and nothing here may. Anew with: ``python -m tests.kernel.support.build`` after removing the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.kernel.support.packages import libraries, unpacked

PACKAGES = ("open-iscsi", "libopeniscsiusr")
MODULES = (
    *("configfs", "scsi_mod", "sd_mod", "target_core_mod", "target_core_iblock", "iscsi_target_mod"),
    *("crc32c_generic", "iscsi_tcp"),
)
"""LIO with an iSCSI target, and the initiator."""


def build() -> Path:
    """Return the folder of the unpacked packages, downloading them if they are not there. Raises KernelError."""
    return unpacked("open-iscsi", PACKAGES)


def files() -> dict[str, bytes]:
    """What the guest needs for ``iscsistart``: itself, and its shared libraries."""
    folder = build()
    (program,) = [path for path in folder.rglob("iscsistart") if path.is_file() and os.access(path, os.X_OK)]
    return {"sbin/iscsistart": program.read_bytes(), **libraries(program, folder)}
