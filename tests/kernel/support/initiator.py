"""The kernel's iSCSI initiator in the guest: ``iscsistart`` logs in, as an initramfs does, and needs no daemon.

It comes from Debian's open-iscsi, downloaded and unpacked beside the kernel, never installed: the package enables
services, and nothing here may. Anew with: ``python -m tests.kernel.support.build`` after removing the folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tests.kernel.support.kernel import KernelError, cache, run

PACKAGES = ("open-iscsi", "libopeniscsiusr")
MODULES = (
    *("configfs", "scsi_mod", "sd_mod", "target_core_mod", "target_core_iblock", "iscsi_target_mod"),
    *("crc32c_generic", "iscsi_tcp"),
)
"""LIO with an iSCSI target, and the initiator."""


def build() -> Path:
    """Return the folder of the unpacked packages, downloading them if they are not there. Raises KernelError."""
    target = cache() / "open-iscsi"
    if target.is_dir():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpack-") as scratch:
        folder = Path(scratch)
        run(["apt-get", "-q", "download", *PACKAGES], cwd=folder)
        for archive in folder.glob("*.deb"):
            run(["dpkg", "-x", str(archive), str(folder / "tree")])
        try:
            (folder / "tree").rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster
                raise
    return target


def files() -> dict[str, bytes]:
    """What the guest needs for ``iscsistart``: itself, and its shared libraries."""
    folder = build()
    (program,) = [path for path in folder.rglob("iscsistart") if path.is_file() and os.access(path, os.X_OK)]
    libraries = {path.parent for path in folder.rglob("*.so.*")}
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    if "not found" in listed:
        raise KernelError(f"{program}: {listed}")
    found = {"sbin/iscsistart": program.read_bytes()}
    for library in re.findall(r"(/\S+) \(0x", listed):
        inside = library.removeprefix(str(folder)) if library.startswith(str(folder)) else library
        found[inside] = Path(library).read_bytes()
    return found
