"""The distribution's cloud kernel, downloaded and unpacked, never installed.

It lies in ``$XDG_CACHE_HOME/csnap/kernel-vm/<release>/`` (or ``~/.cache``): ``vmlinux``, which QEMU boots without a
boot loader and with nothing to decompress in the guest, and ``lib/modules``. A folder appears whole, by rename.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"
ELF = b"\x7fELF"


class KernelError(Exception):
    """No kernel can be had; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Kernel:
    release: str
    folder: Path

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    def modules(self) -> dict[str, Path]:
        """Every module by its name with underscores."""
        found = {}
        for path in (self.folder / "lib" / "modules").rglob("*.ko*"):
            found[path.name.partition(".ko")[0].replace("-", "_")] = path
        return found


def cache() -> Path:
    """Where kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csnap" / "kernel-vm"


def cached() -> Kernel | None:
    """Return the newest kernel that is there; None if there is none."""
    folders = [path.parent for path in cache().glob("*/vmlinux")]
    if not folders:
        return None
    folder = max(folders, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    return Kernel(folder.name, folder)


def build() -> Kernel:
    """Return a kernel, downloading it if none is there. Raises KernelError."""
    found = cached()
    if found is not None:
        return found
    package = _package()
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpack-") as scratch:
        folder = _unpack(package, Path(scratch))
        release = package.removeprefix("linux-image-")
        target = cache() / release
        try:
            folder.rename(target)
        except OSError:
            if not (target / "vmlinux").exists():  # else somebody else was faster
                raise
    return Kernel(release, target)


def _package() -> str:
    """The package that the meta package depends on now: linux-image-6.1.0-56-cloud-amd64, say."""
    lines = run(["apt-cache", "depends", META_PACKAGE]).decode().splitlines()
    found = [line.split()[-1] for line in lines if re.match(r"\s*Depends: linux-image-[0-9]", line)]
    if not found:
        raise KernelError(f"apt knows no {META_PACKAGE}: run apt-get update (Debian 12 or 13, amd64)")
    return found[0]


def _unpack(package: str, scratch: Path) -> Path:
    run(["apt-get", "-q", "download", package], cwd=scratch)
    (archive,) = scratch.glob("*.deb")
    tree = scratch / "tree"
    run(["dpkg", "-x", str(archive), str(tree)])
    (image,) = tree.glob("boot/vmlinuz-*")
    folder = scratch / "kernel"
    (folder / "lib").mkdir(parents=True)
    modules = next(path for path in (tree / "lib" / "modules", tree / "usr" / "lib" / "modules") if path.is_dir())
    shutil.move(modules, folder / "lib" / "modules")
    (folder / "vmlinux").write_bytes(extract(image.read_bytes()))
    return folder


def extract(image: bytes) -> bytes:
    """Return the ELF kernel in a bzImage: its payload, compressed in one of several ways, behind the set-up sectors.

    The offsets are those of the x86 boot protocol; the build appends the uncompressed size to the payload.
    """
    if image[0x202:0x206] != b"HdrS":
        raise KernelError(f"kernel image: magic {image[0x202:0x206]!r}, expected b'HdrS'")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    (size,) = struct.unpack("<I", payload[-4:])
    kernel = decompress(payload[:-4])
    if kernel[:4] != ELF or len(kernel) != size:
        raise KernelError(f"kernel payload: {len(kernel)} bytes that begin {kernel[:4]!r}, expected {size} of ELF")
    return kernel


def decompress(data: bytes) -> bytes:
    """Whatever the kernel's build uses: gzip, xz, lz4, zstd."""
    return run(["bsdcat"], data)


def run(command: list[str], data: bytes = b"", cwd: Path | None = None) -> bytes:
    """Return what the command prints. Raises KernelError when it fails, or is not installed."""
    environment = os.environ | {"LC_ALL": "C"}  # apt's words are read
    try:
        done = subprocess.run(command, input=data, capture_output=True, cwd=cwd, check=False, env=environment)
    except FileNotFoundError:
        raise KernelError(f"{command[0]}: not installed") from None
    if done.returncode:
        raise KernelError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
