"""Runs Ansible with this checkout's collection, and reads what its runs changed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.ansible.runner import COLLECTION

LIMIT = 200.0  # seconds for one run, on a busy machine
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    code: int
    output: str
    changed: dict[str, int]  # by host
    failed: dict[str, int]


def command(name: str) -> str:
    """Return a program of this Python's environment."""
    return str(Path(sys.executable).with_name(name))


def environment(directory: Path) -> dict[str, str]:
    """Return the environment for Ansible: the collection is found, nothing is read from or written to the home."""
    place = directory / "collections/ansible_collections/csnap/cluster"
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(COLLECTION)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(directory),
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
    }


def read(code: int, output: str) -> Run:
    """Read what ansible-playbook printed."""
    rows = RECAP.findall(output)
    return Run(
        code,
        output,
        {host: int(changed) for host, _, changed, _, _ in rows},
        {host: int(unreachable) + int(failed) for host, _, _, unreachable, failed in rows},
    )


def play(directory: Path, *arguments: str | Path, check: bool = True) -> Run:
    """Run ansible-playbook on this machine; it must succeed unless ``check`` is False."""
    process = subprocess.Popen(
        [command("ansible-playbook"), *arguments],
        env=environment(directory),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.communicate()
        raise
    assert not check or process.returncode == 0, output
    return read(process.returncode, output)
