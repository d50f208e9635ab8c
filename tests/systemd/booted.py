"""A host with a real systemd as process 1: this machine's own root file system, copied on write, started in nspawn.

    with booted() as host:
        host.run("systemctl", "start", "csnapd@demo.service")

Nothing that this machine's administrator has enabled is started: the directory for that is empty. The network is this
machine's. csnap's program is there, its packages being those of the virtual environment; docs/install.md has the rest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from tests.systemd.units import UNITS

SOURCE = UNITS.parent / "snapd"
INSTALL = UNITS.parent / "docs/install.md"
TREE = "/opt/tree"
"""Where the unpacked source tree is, as far as installing the units needs it."""

BOOT_LIMIT = 60.0  # seconds, on a busy machine
COMMAND_LIMIT = 100.0
UNIFIED = Path("/sys/fs/cgroup/unified")
LEGACY = Path("/sys/fs/cgroup/systemd")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
MASKED = ("etcd", "udisks2", "getty.target", "systemd-logind", "apt-daily.timer", "apt-daily-upgrade.timer")


class Host:
    """What ``booted`` yields. ``root`` is its file system as seen from outside, mounts included."""

    namespaces: ClassVar = ("-m", "-u", "-i", "-p", "-C")
    """What nsenter enters: all that is the host's own."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self.root = Path(f"/proc/{leader}/root")

    def run(self, *command: str, check: bool = True, user: str = "") -> str:
        """Run as root, or as ``user``; return what it prints (with ``check`` False whatever its exit code is)."""
        result = self.call(*command, user=user)
        assert not check or result.returncode == 0, f"{command}: {result.returncode} {result.stdout}{result.stderr}"
        return result.stdout

    def call(self, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(self._leader), *self.namespaces, "-r", "-w"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        every = [*enter, *clean, *become, *command]
        return subprocess.run(every, capture_output=True, text=True, timeout=COMMAND_LIMIT, stdin=subprocess.DEVNULL)

    def walk(self, block: str) -> str:
        """Run a block of docs/install.md as it stands there, in the source tree; it ends at the first error."""
        text = re.search(rf"^```sh {block}\n(.*?)^```", INSTALL.read_text(), re.MULTILINE | re.DOTALL)
        assert text is not None, block
        return self.run("sh", "-euc", f"cd {TREE}\n{text[1]}")

    def show(self, unit: str, key: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", key, unit).strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def wait_for(self, unit: str, key: str, value: str, limit: float = 30.0) -> None:
        """Until the property has this value."""
        end = time.monotonic() + limit
        while (found := self.show(unit, key)) != value:
            assert time.monotonic() < end, f"{unit}: {key} is {found}, expected {value}\n{self.journal(unit)}"
            time.sleep(0.05)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, check=False)

    def entries(self, *matches: str) -> list[dict[str, str]]:
        """Return the journal's entries with these fields."""
        self.run("journalctl", "--sync", check=False)
        lines = self.run("journalctl", "--no-pager", "-o", "json", *matches).splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def booted(binds: dict[str, str] | None = None) -> Iterator[Host]:
    """Boot one; ``binds`` are paths outside, and where they appear inside. Needs root."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csnap-host-")))
        _mount(stack, "-t", "tmpfs", "-o", "mode=0755", "csnap-test", str(base))
        upper, root = base / "upper", base / "root"
        for directory in (upper, base / "work", root):
            directory.mkdir()
        _furnish(upper)
        binds = {str(SOURCE): "/opt/csnap/source", str(UNITS): f"{TREE}/systemd", **_python(upper), **(binds or {})}
        _mount(stack, "-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={base / 'work'}", "none", str(root))
        enabled = base / "enabled"
        _enabled(enabled)
        binds[str(enabled)] = "/etc/systemd/system"
        group = control_group(stack, f"csnap-test-{os.getpid()}")
        log = stack.enter_context(open(base / "console", "wb"))
        process = subprocess.Popen(
            ["sh", "-c", nspawn(root, binds, group)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        stack.callback(process.wait, 20)
        stack.callback(kill, group)
        host = Host(wait_leader(process, group, base / "console"))
        host.run("systemctl", "is-system-running", "--wait", check=False)
        yield host


def _mount(stack: ExitStack, *arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", arguments[-1]], check=True)


def _furnish(upper: Path) -> None:
    """What differs from this machine: its identity, and no file systems to mount."""
    etc = upper / "etc"
    etc.mkdir()
    (etc / "machine-id").write_text(f"{uuid4().hex}\n")
    (etc / "hostname").write_text("demo-host\n")
    (etc / "fstab").write_text("")


def _debians_python() -> bool:
    """Whether this interpreter's version is installed where programs are."""
    return Path(f"/usr/bin/{PYTHON}").exists()


def _python(upper: Path) -> dict[str, str]:
    """Make the virtual environment /opt/csnap/1 of links; return what has to be bound for it."""
    site = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    venv = upper / "opt/csnap/1"
    packages = venv / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    for entry in site.iterdir():
        if not entry.name.endswith(".pth"):
            (packages / entry.name).symlink_to(f"/opt/csnap/packages/{entry.name}")
    (packages / "snapd").symlink_to("/opt/csnap/source")
    binds = {str(site): "/opt/csnap/packages"}
    home = "/usr"
    if not _debians_python():  # one of its own, perhaps in somebody's home, which units do not see
        binds[sys.base_prefix] = home = "/opt/csnap/python"
    (venv / "pyvenv.cfg").write_text(f"home = {home}/bin\ninclude-system-site-packages = false\n")
    (venv / "bin/python").symlink_to(f"{home}/bin/{PYTHON}")
    script = venv / "bin/csnap"
    script.write_text(
        "#!/opt/csnap/current/bin/python\nimport sys\nfrom snapd.cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    (upper / "opt/csnap/current").symlink_to("1")
    for directory in ("source", "packages", "python"):
        (upper / "opt/csnap" / directory).mkdir()
    (upper / TREE.lstrip("/") / "systemd").mkdir(parents=True)
    return binds


def _enabled(directory: Path) -> None:
    """/etc/systemd/system: nothing of what this machine starts."""
    directory.mkdir()
    for name in MASKED:
        (directory / (name if "." in name else f"{name}.service")).symlink_to("/dev/null")
    (directory / "default.target").symlink_to("/lib/systemd/system/basic.target")
    if not _debians_python():
        for unit in ("csnapd@.service.d", "csnap-helper@.service.d"):
            (directory / unit).mkdir()
            (directory / unit / "python.conf").write_text(
                "[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/csnap/python/lib\n"
            )


def control_group(stack: ExitStack, name: str) -> Path:
    """One of its own: systemd takes it over."""
    base = UNIFIED if UNIFIED.is_dir() else Path("/sys/fs/cgroup")
    for parent in (base, *([LEGACY] if LEGACY.is_dir() else [])):
        (parent / name).mkdir()
        stack.callback(_remove_group, parent / name)
    return base / name


def _remove_group(group: Path) -> None:
    end = time.monotonic() + 10
    while group.is_dir():
        subprocess.run(["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], capture_output=True)
        assert time.monotonic() < end, f"{group} cannot be removed"


def nspawn(root: Path, binds: dict[str, str], group: Path, *more: str) -> str:
    """Return the shell's command line: nspawn in the control group, with ``more`` options."""
    groups = [group, *([LEGACY / group.name] if LEGACY.is_dir() else [])]
    joins = "".join(f"echo $$ > {one}/cgroup.procs; " for one in groups)
    options = [
        f"--directory={root}",
        f"--machine={group.name}",
        "--quiet --boot --register=no --keep-unit --console=pipe --resolv-conf=off --timezone=off --link-journal=no",
        "--capability=CAP_IPC_LOCK,CAP_NET_ADMIN",
        "--system-call-filter='@memlock bpf'",
        *(
            f"--bind{'-ro' if inside.startswith('/opt/') else ''}={outside}:{inside}"
            for outside, inside in binds.items()
        ),
        *more,
    ]
    return f"{joins}UNIFIED_CGROUP_HIERARCHY=1 exec systemd-nspawn {' '.join(options)}"


def wait_leader(process: subprocess.Popen[bytes], group: Path, console: Path) -> int:
    """Return the process id of the systemd that boots there, once it takes commands."""
    end = time.monotonic() + BOOT_LIMIT
    procs = group / "payload/init.scope/cgroup.procs"
    while True:
        leader = procs.read_text().split() if procs.exists() else []
        if leader and Path(f"/proc/{leader[0]}/root/run/systemd/private").exists():
            return int(leader[0])
        waiting = process.poll() is None and time.monotonic() < end
        assert waiting, f"it does not boot:\n{console.read_text(errors='replace')[-2000:]}"
        time.sleep(0.05)


def kill(group: Path) -> None:
    (group / "cgroup.kill").write_text("1")
