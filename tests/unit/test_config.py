"""The configuration file: what is read, and that every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapd import config
from snapd.errors import ConfigError
from snapd.units import KIB, MIB, SECOND

GOOD = """
[volume]
name = "vmstore"
cluster_uuid = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
origin = "/dev/disk/by-id/x"
chunk_size = "16KiB"
region_size = "64MiB"
type = "clusterized_persistent"
[node]
name = "host-a"
[lockspace]
endpoints = ["https://10.0.0.1:2379"]
lease_ttl = 10
[export]
directory = "/run/csnap/vmstore"
[metrics]
listen = "127.0.0.1:9942"
[fencing]
method = "unsafe"
"""


def load(tmp_path: Path, text: str = GOOD) -> config.Config:
    path = tmp_path / "vmstore.toml"
    path.write_text(text)
    return config.load(path)


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    """Sizes become bytes, times nanoseconds (but the TTL, which etcd counts in seconds)."""
    read = load(tmp_path)
    assert read.volume == config.VolumeConfig(
        "vmstore", "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11", "/dev/disk/by-id/x", 16 * KIB, 64 * MIB,
        "clusterized_persistent", True,
    )  # fmt: skip
    assert read.node.name == "host-a"
    assert read.lockspace.endpoints == ("https://10.0.0.1:2379",)
    assert (read.lockspace.lease_ttl, read.lockspace.freeze_limit) == (10, 5 * SECOND)
    assert read.export.admin == "/run/csnap/vmstore/admin.sock"
    assert (read.metrics.host, read.metrics.port) == ("127.0.0.1", 9942)
    assert (read.fencing.method, read.fencing.options, read.fencing.hosts) == ("unsafe", {}, {})


def test_a_credential_is_where_systemd_puts_it_and_where_root_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the unit: $CREDENTIALS_DIRECTORY; at the command line: the first of systemd's stores that has it."""
    text = GOOD.replace("lease_ttl = 10", 'ca = "credential:etcd.ca"\ncert = "credential:c"\nkey = "/k"')
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr("snapd.config.credentials.STORES", (first, second))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    read = load(tmp_path, text).lockspace
    assert (read.ca, read.cert, read.key) == ("/run/credentials/x/etcd.ca", "/run/credentials/x/c", "/k")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert load(tmp_path, text).lockspace.ca == str(first / "csnap.vmstore.ca")
    second.mkdir()
    (second / "csnap.vmstore.ca").touch()
    assert load(tmp_path, text).lockspace.ca == str(second / "csnap.vmstore.ca")
    for bad in ("credential:", "credential:../x", "credential:a/b", "etcd.ca"):
        with pytest.raises(ConfigError, match=r"\[lockspace\] ca.*expected"):
            load(tmp_path, GOOD.replace("lease_ttl = 10", f'ca = "{bad}"'))


def test_what_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Region size, type, node, TTL and metrics have defaults; the node's is the host's name."""
    monkeypatch.setattr("socket.gethostname", lambda: "host-z")
    text = "\n".join(
        line
        for line in GOOD.splitlines()
        if not line.startswith(("region_size", "type", "lease_ttl", "[metrics]", "listen"))
    ).replace('[node]\nname = "host-a"\n', "")
    read = load(tmp_path, text)
    assert (read.volume.region_size, read.volume.type) == (0, "clusterized_persistent")
    assert (read.node.name, read.lockspace.lease_ttl, read.metrics.host) == ("host-z", 10, "127.0.0.1")


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('chunk_size = "16KiB"', 'chunk_size = "3KiB"', ["[volume] chunk_size", '"3KiB"', "a power of two from 4KiB"]),
        ('chunk_size = "16KiB"', 'chunk_size = "2MiB"', ["[volume] chunk_size", '"2MiB"', "4KiB to 1MiB"]),
        ('chunk_size = "16KiB"', 'chunk_size = "16KB"', ["[volume] chunk_size", "16KB", "KiB"]),
        ('chunk_size = "16KiB"', "chunk_size = true", ["[volume] chunk_size", "true"]),
        ('region_size = "64MiB"', 'region_size = "8KiB"', ["[volume] region_size", "at least chunk_size"]),
        ('region_size = "64MiB"', 'region_size = "3MiB"', ["[volume] region_size", "power of two"]),
        ('a11"', 'a1"', ["[volume] cluster_uuid", "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a1", "a UUID"]),
        ('a11"', 'a1100"', ["[volume] cluster_uuid", "a UUID"]),
        ('origin = "/dev', 'origin = "dev', ["[volume] origin", "absolute path"]),
        ('name = "vmstore"', 'name = "vm/store"', ["[volume] name", '"vm/store"', "letters"]),
        ('name = "vmstore"', "", ["[volume] name", "missing"]),
        ('name = "vmstore"', 'name = "vmstore"\norigins = 1', ["[volume] origins", "unknown", "did you mean origin?"]),
        ("[metrics]", "[metric]", ["[metric]", "unknown", "did you mean metrics?"]),
        ("[export]", "[exports]", ["[export]", "missing"]),
        ('["https://10.0.0.1:2379"]', "[]", ["[lockspace] endpoints", "expected a list"]),
        ('["https://10.0.0.1:2379"]', '["10.0.0.1:2379"]', ["[lockspace] endpoints", "10.0.0.1:2379", "http(s)://"]),
        ("lease_ttl = 10", "lease_ttl = 1", ["[lockspace] lease_ttl", "= 1", "from 2 to 300"]),
        ("lease_ttl = 10", "lease_ttl = 10.5", ["[lockspace] lease_ttl", "whole number"]),
        ("lease_ttl = 10", "freeze_limit = 0", ["[lockspace] freeze_limit", "more than 0"]),
        ("lease_ttl = 10", 'cert = "/c"', ["[lockspace] key", "both cert and key"]),
        ("https://10.0.0.1:2379\"]\n", "http://10.0.0.1:2379\"]\nca = \"/c\"\n", ["[lockspace] endpoints", "https://"]),
        ('"127.0.0.1:9942"', '"localhost:9942"', ["[metrics] listen", "IP address"]),
        ('"127.0.0.1:9942"', '"127.0.0.1:99999"', ["[metrics] listen", "port"]),
        ('method = "unsafe"', "", ["[fencing] method", "missing", "unsafe, agent, scsi-pr, watchdog"]),
        ('method = "unsafe"', 'method = "none"', ["[fencing] method", '"none"', "unsafe, agent, scsi-pr, watchdog"]),
        ('method = "unsafe"', 'method = "agent"', ["[fencing] agent", "missing"]),
        ('method = "unsafe"', 'method = "watchdog"\nwatchdog_timeout = 1', ["watchdog_timeout", "from 2 to 600"]),
        ('method = "unsafe"', 'method = "watchdog"\ndevice = "watchdog"', ["[fencing] device", "absolute path"]),
        ("/run/csnap/vmstore", "/" + "d" * 100, ["[export] directory", "/admin.sock", "at most 107"]),
        ("[volume]", "volume]", ["not TOML"]),
    ],
)  # fmt: skip
def test_every_mistake_is_named(tmp_path: Path, old: str, new: str, names: list[str]) -> None:
    """The error says file, section, key, the value found and what was expected."""
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    for part in (str(tmp_path / "vmstore.toml"), *names):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_fencing_section_is_refused_by_name(tmp_path: Path) -> None:
    """A volume without fencing must say so ("unsafe"); silence is refused."""
    with pytest.raises(ConfigError, match=r"\[fencing\]: missing"):
        load(tmp_path, GOOD.replace('[fencing]\nmethod = "unsafe"\n', ""))


def test_fencing_options_become_text(tmp_path: Path) -> None:
    """What the agent reads on its standard input: numbers and booleans as fence agents write them."""
    text = GOOD.replace(
        'method = "unsafe"',
        'method = "agent"\nagent = "/usr/sbin/fence_ipmilan"\ntimeout = 30\n'
        "[fencing.options]\nlanplus = true\nlogin = 'admin'\n[fencing.hosts.host-b]\nip = '10.9.0.2'\nipport = 623",
    )
    fencing = load(tmp_path, text).fencing
    assert fencing.options == {"lanplus": "1", "login": "admin"}
    assert fencing.hosts == {"host-b": {"ip": "10.9.0.2", "ipport": "623"}}
    assert (fencing.agent, fencing.timeout) == ("/usr/sbin/fence_ipmilan", 30)


def test_secrets_of_fencing_are_never_shown(tmp_path: Path) -> None:
    """Neither in the configuration's repr nor in the error about a bad value."""
    text = GOOD + '[fencing.options]\npassword = "hunter2"\n'
    assert "hunter2" not in repr(load(tmp_path, text))
    with pytest.raises(ConfigError, match=r"\[fencing.options\] password") as caught:
        load(tmp_path, GOOD + '[fencing.options]\npassword = "hunter2\\n"\n')
    assert "hunter2" not in str(caught.value)


def test_a_configuration_is_a_path_or_a_name() -> None:
    """Whatever holds a slash or ends in .toml is a path; the rest is a volume under /etc/csnap."""
    assert config.find("vmstore") == Path("/etc/csnap/vmstore.toml")
    assert config.find("./vmstore") == Path("vmstore")
    assert config.find("vmstore.toml") == Path("vmstore.toml")
    with pytest.raises(ConfigError, match="expected a path"):
        config.find("-x")


@pytest.mark.parametrize("value", [[], 1, "x"])
def test_a_section_must_be_a_table(value: Any) -> None:
    """``volume = 1`` is named like any other mistake."""
    with pytest.raises(ConfigError, match=r"f: \[volume\]: expected a table"):
        config.parse(Path("f"), {"volume": value})


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """No traceback: the path and the reason."""
    with pytest.raises(ConfigError, match=r"nowhere.toml: no such file"):
        config.load(tmp_path / "nowhere.toml")


def test_a_volume_that_is_not_there_beside_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name mistyped: what there is is said."""
    monkeypatch.setattr(config, "DIRECTORY", tmp_path)
    for name in ("vmstore", "archive"):
        (tmp_path / f"{name}.toml").touch()
    with pytest.raises(ConfigError, match=r"vmstor.toml: no such file; volumes there: archive, vmstore"):
        config.load(config.find("vmstor"))
