"""The root file system of the test hosts: this machine's release of Debian, minimal, with a systemd and an sshd.

It lies in ``$XDG_CACHE_HOME/csnap/hosts/<release>-<fingerprint>/`` (or ``~/.cache``): ``root``, which hosts overlay and
never change, and ``repository``, what a host without a way out can install with apt. A folder appears whole, by
rename; the fingerprint is of what goes into it, so that a changed list is built anew.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SYSTEM = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "openssh-server", "iproute2", "procps", "kmod", "netbase"),
    *("python3", "python3-apt", "ca-certificates"),
    *("libblkid1", "util-linux", "python3-libnbd"),  # the last: a client that tests run in a host
)
"""What a bare host has."""

REPOSITORY = ("etcd-server", "etcd-client", "python3-venv", "openssl", "prometheus", "prometheus-node-exporter")
"""What a bare host can install, with all that these need."""

MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("dpkg-db-backup.timer", "getty.target", "console-getty.service", "systemd-logind.service"),
)
"""What a host of a test has no use for, and would spend the time of."""

INSIDE = "/srv/repository"
"""Where a host finds the packages."""

UNDOCUMENTED = ("man", "doc", "locale", "info", "lintian")


class RootError(Exception):
    """No root file system can be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Root:
    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "root"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"


def release() -> str:
    """Return this machine's release: its Python's wheels and etcd's version are those of the hosts."""
    words = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    return words.get("VERSION_CODENAME", "bookworm")


def cached() -> Root | None:
    """Return the one that is there; None if there is none for these lists."""
    folder = _folder()
    return Root(folder) if folder.is_dir() else None


def build() -> Root:
    """Return one, made now if none is there. Needs root and Debian's archive. Raises RootError."""
    found = cached()
    if found is not None:
        return found
    if os.getuid() != 0:
        raise RootError("making a root file system needs root")
    target = _folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        made = Root(Path(scratch) / "made")
        made.folder.mkdir()
        made.folder.chmod(0o755)
        _bootstrap(made)
        _furnish(made.tree)
        try:
            made.folder.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster
                raise
    return Root(target)


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    content = repr((SYSTEM, REPOSITORY, MASKED, UNDOCUMENTED, INSIDE)).encode()
    return cache / "csnap" / "hosts" / f"{release()}-{hashlib.sha256(content).hexdigest()[:12]}"


def _bootstrap(made: Root) -> None:
    """mmdebstrap, and while apt in the new root knows the archive's lists: the packages that hosts may install."""
    archives = made.repository / "partial"
    archives.mkdir(parents=True)
    fetch = (
        f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes -qq --no-install-recommends --download-only'
        f" -o Dir::Cache::archives={made.repository} install {' '.join(REPOSITORY)} >&2"
    )
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(SYSTEM)}"]
    command += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']  # it is a copy on write of a copy
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNDOCUMENTED]
    command += [f"--customize-hook={fetch}", "--skip=cleanup/apt/cache", release(), str(made.tree)]
    command += [str(path) for path in _sources()]
    _run(command)
    for name in ("lock", "partial"):
        _run(["rm", "-rf", str(made.repository / name)])
    for name, kind in (("Packages", "packages"), ("Release", "release")):
        text = _run(["apt-ftparchive", "-o", "APT::FTPArchive::Release::Suite=local", kind, "."], made.repository)
        (made.repository / name).write_text(text)


def _sources() -> list[Path]:
    """This machine's own sources for Debian's archive; without one mmdebstrap knows where it is."""
    folder = Path("/etc/apt")
    every = [folder / "sources.list", *folder.glob("sources.list.d/*.list"), *folder.glob("sources.list.d/*.sources")]
    return [path for path in every if path.exists() and f" {release()}" in path.read_text() and "debian" in path.name]


def _furnish(tree: Path) -> None:
    """What every host has of this: nothing that runs by the clock, and one source of packages."""
    for name in MASKED:
        (tree / "etc/systemd/system" / name).symlink_to("/dev/null")
    for path in (tree / "etc/apt/sources.list.d").iterdir():
        path.unlink()
    (tree / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{INSIDE} ./\n")
    for name in ("etc/hostname", "etc/resolv.conf"):
        (tree / name).unlink(missing_ok=True)
    (tree / "etc/machine-id").write_text("")
    (tree / INSIDE.lstrip("/")).mkdir(parents=True)
    (tree / "root/.ssh").mkdir(mode=0o700, exist_ok=True)


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Return what the command prints. Raises RootError when it fails, or is not installed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    except FileNotFoundError:
        raise RootError(f"{command[0]}: not installed") from None
    if done.returncode:
        raise RootError(f"{command[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout
