"""Programs of Debian packages that the guest needs, unpacked and never installed: they would enable services here."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.kernel.support.kernel import KernelError, cache, run


def unpacked(name: str, packages: Iterable[str]) -> Path:
    """Return the folder ``name`` beside the kernel with these packages, downloaded if it is not there.

    Raises KernelError.
    """
    target = cache() / name
    if target.is_dir():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpack-") as scratch:
        folder = Path(scratch)
        run(["apt-get", "-q", "download", *packages], cwd=folder)
        for archive in folder.glob("*.deb"):
            run(["dpkg", "-x", str(archive), str(folder / "tree")])
        try:
            (folder / "tree").rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster
                raise
    return target


def libraries(program: Path, folder: Path) -> dict[str, bytes]:
    """Return the shared libraries of a program in ``folder``, by where the guest finds them. Raises KernelError."""
    own = {path.parent for path in folder.rglob("*.so.*")}
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, own))}
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    if "not found" in listed:
        raise KernelError(f"{program}: {listed}")
    paths = re.findall(r"(/\S+) \(0x", listed)
    return {path.removeprefix(str(folder)): Path(path).read_bytes() for path in paths}
