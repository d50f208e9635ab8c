"""A real kernel under QEMU's emulation: boots in a second or two, runs a shell script, powers off.

KVM is not asked for: it is often not there, and a stock kernel does not boot under every one. A microvm has no timer
to calibrate the TSC with when the host is busy (the guest then hangs): TCG passes the host's TSC through, so the
guest is told its rate.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.support.initrd import initrd
from tests.kernel.support.kernel import KernelError, build

QEMU = "qemu-system-x86_64"
MACHINE = "microvm,rtc=on,pit=on,pic=on,isa-serial=on"  # option ROMs stay: QEMU 10 starts no kernel without them
KERNEL_OPTIONS = (
    "console=ttyS0 panic=-1 quiet loglevel=4 nokaslr mitigations=off nopti tsc=reliable no_timer_check "
    "rcupdate.rcu_expedited=1 audit=0 random.trust_cpu=on"
)
MEMORY = 384  # MiB
DEADLINE = 90.0  # seconds; a boot and a script take some 5 on an idle machine
SERVICE = "10.0.2.100"
"""Where the guest finds ``service``."""
SERVICE_PORT = 10809


class VmError(AssertionError):
    """The guest did not come to its end; the message ends with its console."""


@dataclass(frozen=True, slots=True)
class Result:
    """code: the script's exit code. console: every line. notes: of each line ``@@KIND rest``, kind and rest."""

    code: int
    console: list[str]
    notes: list[tuple[str, str]]

    def named(self, kind: str) -> dict[str, str]:
        """Of the lines ``@@KIND NAME rest``: the rest by name, the last one for each."""
        pairs = (rest.partition(" ") for found, rest in self.notes if found == kind)
        return {name: rest for name, _, rest in pairs}


def run_vm(
    script: str,
    disks: Sequence[Path] = (),
    *,
    modules: Sequence[str] = (),
    programs: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    service: str = "",
    told: Callable[[str, str], None] = lambda kind, rest: None,
    deadline: float = DEADLINE,
    memory: int = MEMORY,
    processors: int = 1,
) -> Result:
    """Boot, run ``script`` with ``disks`` as /dev/vda, vdb, ..., power off.

    modules, programs, files: what the guest has beside the usual.
    service: a command of this machine; each TCP connection of the guest to SERVICE runs it on its two ends.
    told: called with kind and rest of each line ``@@KIND rest``, while the guest runs.
    memory: MiB. processors: each emulated by a thread of its own.

    Raises VmError when the script does not end in time, or says ``@@DIE``.
    """
    kernel = build()
    extra = ("virtio_net",) if service else ()
    root = initrd(kernel, script, (*modules, *extra), programs, files or {})
    with tempfile.NamedTemporaryFile(suffix=".initrd") as file:
        file.write(root)
        file.flush()
        command = [*_machine(kernel.vmlinux, Path(file.name), memory, processors), *_disks(disks), *_network(service)]
        console = _console(command, deadline, told)
    notes = _notes(console)
    codes = [int(rest) for kind, rest in notes if kind == "EXIT"]
    died = any(kind == "DIE" for kind, _ in notes)
    if not codes or died:
        raise VmError("the guest failed:\n" + "\n".join(console[-60:]))
    return Result(codes[0], console, notes)


def _machine(vmlinux: Path, root: Path, memory: int, processors: int) -> list[str]:
    rate = _tsc_khz()
    options = f"{KERNEL_OPTIONS} tsc_early_khz={rate}" if rate else KERNEL_OPTIONS
    return [
        *(QEMU, "-M", MACHINE, "-accel", "tcg,tb-size=256", "-cpu", "max", "-m", str(memory), "-smp", str(processors)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(vmlinux), "-initrd", str(root), "-append", options),
    ]


def _disks(disks: Sequence[Path]) -> list[str]:
    arguments = []
    for number, path in enumerate(disks):
        arguments += ["-drive", f"file={path},if=none,id=d{number},format=raw,cache=unsafe"]
        arguments += ["-device", f"virtio-blk-device,drive=d{number}"]
    return arguments


def _network(service: str) -> list[str]:
    if not service:
        return []
    forward = f"guestfwd=tcp:{SERVICE}:{SERVICE_PORT}-cmd:{service}"
    return ["-netdev", f"user,id=n0,restrict=on,{forward}", "-device", "virtio-net-device,netdev=n0"]


def _tsc_khz() -> int:
    found = re.search(r"cpu MHz\s*: (\d+)\.(\d{3})", Path("/proc/cpuinfo").read_text())
    return int(found[1] + found[2]) if found else 0


def _console(command: list[str], deadline: float, told: Callable[[str, str], None]) -> list[str]:
    try:
        guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise KernelError(f"{QEMU}: not installed (package qemu-system-x86)") from None
    late = threading.Timer(deadline, guest.kill)
    late.start()
    lines: list[str] = []
    try:
        assert guest.stdout is not None
        for raw in guest.stdout:
            lines.append(raw.decode(errors="replace").rstrip())
            for kind, rest in _notes(lines[-1:]):
                told(kind, rest)
        guest.wait()
    finally:
        late.cancel()
        if guest.poll() is None:
            guest.kill()
            guest.wait()
        guest.stdout.close()
    if guest.returncode < 0:
        lines.append(f"(stopped: it did not end within {deadline:.0f} s)")
    return lines


def _notes(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and rest of every ``@@KIND rest``."""
    found = (re.search(r"@@(\w+) ?(.*)", line) for line in lines)
    return [(match[1], match[2]) for match in found if match]
