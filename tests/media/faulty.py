"""A disk that fails on demand: a file behind nbdkit's error and pause filters, mounted as a file again by nbdfuse.

The worker opens it as it opens any disk, with O_DIRECT and AIO; the errors come from the kernel.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.etcd_server import wait_for

LIMIT = 20.0  # seconds for a mount or a pause


class FaultyDisk:
    """path: what to open. backing: what is really on the disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self.backing = directory / "backing"
        self._directory = directory

    def _trigger(self, kind: str) -> Path:
        return self._directory / f"fail-{kind}"

    @contextmanager
    def failing(self, *kinds: str) -> Iterator[None]:
        """Every "read" or "write" fails meanwhile."""
        self.break_down(*kinds)
        try:
            yield
        finally:
            for kind in kinds:
                self._trigger(kind).unlink()

    def break_down(self, *kinds: str) -> None:
        """From now on every "read" or "write" fails."""
        for kind in kinds:
            self._trigger(kind).touch()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """No request is answered meanwhile; those that came before have been."""
        self._say(b"p")
        try:
            yield
        finally:
            self._say(b"r")

    def _say(self, word: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(LIMIT)
            control.connect(os.fspath(self._directory / "pause"))
            control.sendall(word)
            assert control.recv(1) == word.upper()


def _has_fuse() -> bool:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextmanager
def faulty_disk(content: bytes | int, error: str = "EIO", delay: int = 0) -> Iterator[FaultyDisk]:
    """``content``: bytes, or how many zeros. error: what a failing request gets. delay: of each request, ms."""
    if not _has_fuse():
        pytest.skip("/dev/fuse cannot be opened here: no disk that fails on demand")
    with tempfile.TemporaryDirectory(prefix="csnap-disk-") as name:
        directory = Path(name)
        disk = FaultyDisk(directory)
        disk.backing.write_bytes(bytes(content) if isinstance(content, int) else content)
        disk.path.touch()
        slow = ["--filter=delay"] if delay else []
        parameters = [f"rdelay={delay}ms", f"wdelay={delay}ms"] if delay else []
        for kind in ("read", "write"):
            parameters += [f"error-p{kind}={error}", f"error-p{kind}-rate=100%"]
            parameters += [f"error-p{kind}-file={directory}/fail-{kind}"]
        server = ["nbdkit", "-s", "--exit-with-parent", "--filter=pause", "--filter=error", *slow, "file"]
        command = ["nbdfuse", str(disk.path), "--command", *server, str(disk.backing), *parameters]
        with open(directory / "log", "wb") as log:
            mount = subprocess.Popen([*command, f"pause-control={directory}/pause"], stdout=log, stderr=log)
        try:

            def mounted() -> bool:
                assert mount.poll() is None, (directory / "log").read_text()
                return os.path.ismount(disk.path)

            wait_for(mounted, "the disk is mounted", LIMIT)
            yield disk
        finally:
            mount.terminate()  # it unmounts
            try:
                mount.wait(LIMIT)
            except subprocess.TimeoutExpired:
                mount.kill()
                mount.wait()
            if os.path.ismount(disk.path):
                subprocess.run(["umount", "--lazy", str(disk.path)], check=True)
