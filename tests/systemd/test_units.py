"""The units, by systemd's own judgement, and where they have to agree with the daemon."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from snapd import config
from snapd.attach import detach
from snapd.config.credentials import secret
from snapd.daemon import ending, serve
from snapd.units import SECOND
from tests.systemd.units import UNITS, analyze, make_root, seconds, settings

DAEMON, HELPER, ATTACH = "csnapd@.service", "csnap-helper@.service", "csnap-attach@.service"
AGAIN = "csnap-attach-again@.service"
INSTANCES = [unit.replace("@", "@demo") for unit in (DAEMON, HELPER, ATTACH, AGAIN)]
EXPOSURE_MOST = 25
"""Tenths: 2.5."""

ROOT = UNITS.parent


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing (it ends with 0 even for a key that it does not know)."""
    make_root(tmp_path)
    result = analyze("verify", f"--root={tmp_path}", *INSTANCES)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_that_check_sees_a_misspelt_key_and_a_missing_program(tmp_path: Path) -> None:
    """The test above would fail for them."""
    make_root(tmp_path)
    unit = tmp_path / "etc/systemd/system" / DAEMON
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WachdogSec="))
    (tmp_path / "opt/csnap/current/bin/python").unlink()
    said = analyze("verify", f"--root={tmp_path}", *INSTANCES).stderr
    assert "WachdogSec" in said
    assert "/opt/csnap/current/bin/python" in said


@pytest.mark.parametrize("unit", [DAEMON, HELPER, ATTACH, AGAIN])
def test_the_exposure_is_low(unit: str) -> None:
    """`systemd-analyze security` puts each at 2.5 or below, without any drop-in."""
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(UNITS / unit))
    assert result.returncode == 0, result.stdout[-200:]


def test_the_data_path_is_not_root_and_has_one_capability() -> None:
    """User csnap; CAP_SYS_RESOURCE for PR_SET_IO_FLUSHER, and no other to be had."""
    unit = settings(DAEMON)
    assert (unit["User"], unit["Group"]) == (["csnap"], ["csnap"])
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_SYS_RESOURCE"]


def test_the_watchdog_bites_before_the_lease_ends() -> None:
    """WatchdogSec is below the default lease_ttl, and SIGABRT makes faulthandler say where it hung."""
    default = re.search(r"^\| `lease_ttl` \| `(\d+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert default is not None
    assert seconds(DAEMON, "WatchdogSec") < int(default[1])
    assert settings(DAEMON)["WatchdogSignal"] == ["SIGABRT"]


def test_systemd_waits_longer_than_a_stop_may_take() -> None:
    """The daemon ends by itself before it is killed, and tells its worker itself."""
    assert seconds(DAEMON, "TimeoutStopSec") * SECOND > ending.KEEP_END + SECOND
    assert settings(DAEMON)["KillMode"] == ["mixed"]


def test_a_crash_loop_ends() -> None:
    """The start limit is reached by a daemon that fails within a second each time."""
    for unit in (DAEMON, HELPER):
        attempt = seconds(unit, "RestartSec") + 1
        assert attempt * seconds(unit, "StartLimitBurst") < seconds(unit, "StartLimitIntervalSec")


def test_a_fenced_daemon_is_started_again() -> None:
    """Of the exit codes only the one of a wrong call keeps it down."""
    unit = settings(DAEMON)
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert serve.EXIT_FENCED != 2


def test_the_lock_file_outlives_the_service() -> None:
    """An older worker may have it open: the directory stays when the service has stopped."""
    unit = settings(DAEMON)
    assert unit["RuntimeDirectory"] == ["csnap/%i"]
    assert unit["RuntimeDirectoryMode"] == ["0750"]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]


def test_nothing_slows_the_block_path_down() -> None:
    """No limit of memory and no real-time class; memory may be locked."""
    for unit in (settings(DAEMON), settings(ATTACH)):
        assert not {"MemoryMax", "MemoryHigh", "IOSchedulingClass", "CPUSchedulingPolicy"} & unit.keys()
        assert unit["LimitMEMLOCK"] == ["infinity"]


def test_only_disks_may_be_opened() -> None:
    """DeviceAllow names block drivers, for the helper the watchdog as well; the files' groups decide further."""
    for unit in (DAEMON, HELPER, ATTACH):
        assert settings(unit)["DevicePolicy"] == ["closed"]
        others = [value for value in settings(unit)["DeviceAllow"] if not value.startswith("block-")]
        assert others == (["char-watchdog rw", "/dev/watchdog rw"] if unit == HELPER else [])
    assert settings(ATTACH)["DeviceAllow"] == ["block-nbd r"]


def test_the_configuration_is_where_the_units_look() -> None:
    """A volume's name leads the command line and the unit to the same file."""
    for unit in (DAEMON, HELPER, ATTACH):
        assert settings(unit)["ConditionPathExists"] == [f"{config.DIRECTORY}/%i.toml"]
        assert settings(unit)["ExecStart"][0].endswith(f" {config.DIRECTORY}/%i.toml")


def test_credentials_are_where_the_command_line_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the unit loads under a name is the file that the same name means to root: one configuration for both."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    loaded = [value.split(":") for value in settings(DAEMON)["LoadCredential"]]
    assert {name for name, _ in loaded} >= {"etcd.ca", "etcd.cert", "etcd.key", "metrics.cert", "metrics.key"}
    for name, file in loaded:
        assert secret("%i")(f"credential:{name}") == f"/etc/credstore/{file}"


def test_user_and_directories_are_made(tmp_path: Path) -> None:
    """systemd-sysusers and systemd-tmpfiles make them, in a root of their own, without a word."""
    for name in ("etc", "run"):
        (tmp_path / name).mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_text("root:x:0:0::/:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
    sysusers = ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d/csnap.conf")]
    result = subprocess.run(sysusers, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^csnap:x:\d+:\d+:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    tmpfiles = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(UNITS / "tmpfiles.d/csnap.conf")]
    result = subprocess.run(tmpfiles, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "run/csnap").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc/csnap").stat().st_mode & 0o777 == 0o750


def test_the_device_outlives_the_daemon_and_the_attach_program() -> None:
    """No dependency takes it away with csnapd@, and no ExecStop= after a crash; what detaches is SIGTERM.
    Restart= would stop the mounts as well; it is started anew, and ten failures within two minutes are too many."""
    unit = settings(ATTACH)
    assert (unit["Restart"], unit["OnFailure"]) == (["no"], [AGAIN.replace("@", "@%i")])
    assert settings(AGAIN)["ExecStart"][0] == "/usr/bin/sleep 1"
    assert 2 * seconds(ATTACH, "StartLimitBurst") < seconds(ATTACH, "StartLimitIntervalSec")
    assert not {"Requires", "BindsTo", "PartOf", "Requisite", "ExecStop", "ExecStopPost"} & unit.keys()
    assert "csnapd@%i.service" in unit["Wants"][0] and "csnapd@%i.service" in unit["After"][0]
    assert unit["Before"] == ["remote-fs-pre.target"]
    assert seconds(ATTACH, "TimeoutStopSec") * SECOND > detach.PATIENCE + 5 * SECOND


def test_the_attach_program_has_two_capabilities_and_no_network() -> None:
    """Commands to the driver, and PR_SET_IO_FLUSHER; mounting is in no system call that it may make."""
    unit = settings(ATTACH)
    assert unit["CapabilityBoundingSet"] == ["CAP_SYS_ADMIN CAP_SYS_RESOURCE"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX AF_NETLINK"]
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged @resources", "prlimit64"]


@pytest.mark.parametrize("name", ["61-csnap.rules.example", "62-csnap-nbd.rules"])
def test_the_udev_rules_are_understood(name: str) -> None:
    """Each rule matches and assigns with keys that udev has; none gives access to more than the group."""
    text = (UNITS / "udev" / name).read_text()
    rules = [line for line in text.splitlines() if line and not line.startswith("#")]
    keys = r"ACTION|SUBSYSTEM|KERNEL|ENV\{\w+\}|ATTRS?\{\w+\}|PROGRAM|SYMLINK|OPTIONS|GROUP|MODE|GOTO|LABEL"
    term = rf'(?:{keys})(?:==|!=|=|\+=|-=)"[^"]*"'
    assert rules
    for rule in rules:
        assert re.fullmatch(f"{term}(?:, {term})*", rule), rule
        assert 'MODE="0660"' in rule or "MODE" not in rule
