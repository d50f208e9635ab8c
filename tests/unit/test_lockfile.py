"""The lock file: free only when the last process of an older incarnation has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest

from snapd.daemon.lockfile import LockFile, held_open
from snapd.errors import Refused

ROOT = Path(__file__).parents[2]
HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from snapd.daemon.lockfile import LockFile
lock = LockFile(sys.argv[1])
print(lock.take(), lock.name, flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that holds the lock file."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        taken, self.name = self.process.stdout.readline().split()
        assert taken == "True"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_lock_is_free_when_its_last_process_has_ended(tmp_path: Path) -> None:
    """Held by another process it cannot be taken, and its holder is named; after SIGKILL it can."""
    path = str(tmp_path / "lock")
    holder = Holder(path)
    lock = LockFile(path)
    assert not lock.take()
    assert lock.holder() == str(holder.process.pid)
    holder.end()
    assert lock.take()
    assert lock.holder() == str(os.getpid())
    lock.close()


def test_a_lock_is_held_as_long_as_a_child_that_inherited_it_lives(tmp_path: Path) -> None:
    """The worker has the same open file: the control process's end alone does not free it."""
    path = str(tmp_path / "lock")
    first = LockFile(path)
    assert first.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(first.fd,))
    first.close()
    second = LockFile(path)
    assert not second.take()
    child.communicate(b"\n")
    assert second.take()
    second.close()


def test_proof_that_the_older_processes_are_gone(tmp_path: Path) -> None:
    """The same file, held by us: proven. Another: only when nobody has it open. Nonsense: never."""
    path = str(tmp_path / "lock")
    holder = Holder(path)
    Path(path).unlink()  # as systemd does with a unit's runtime directory
    lock = LockFile(path)
    assert lock.take()
    assert lock.proven(lock.name)
    assert not lock.proven(holder.name)
    holder.end()
    assert lock.proven(holder.name)
    assert not lock.proven("")
    assert not lock.proven(path)
    lock.close()


def test_a_lock_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    """Two daemons could each hold a lock of that name."""
    path = str(tmp_path / "lock")
    lock = LockFile(path)
    Path(path).unlink()
    with pytest.raises(Refused, match=r"lock: No such file"):
        lock.take()
    Path(path).touch()
    with pytest.raises(Refused, match="replaced by another file"):
        lock.take()
    lock.close()


def test_a_lock_file_is_no_symbolic_link(tmp_path: Path) -> None:
    """What somebody else put there is not followed."""
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="lock file"):
        LockFile(str(tmp_path / "lock"))
    assert not held_open(0, 0)


def test_regression_a_full_disk_kept_the_daemon_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into the lock file is for people: without it the lock is taken all the same."""

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(ENOSPC, "No space left on device")

    lock = LockFile(str(tmp_path / "lock"))
    monkeypatch.setattr(os, "pwrite", full)
    assert lock.take() and lock.holder() == "unknown"
    lock.close()
