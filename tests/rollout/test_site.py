"""site.yml on three bare hosts, checked first, then for real, then again; what it gives, and how it changes later."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snapd import __version__
from tests.hosts.host import Host
from tests.hosts.testbed import Testbed
from tests.rollout.conftest import Rollout
from tests.rollout.controller import UUID, VOLUME, Controller
from tests.rollout.load import SOCKET, Load
from tests.support.etcd_server import wait_for

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="boots systemds: needs root"),
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("rollout"),
]

UNIT = f"csnapd@{VOLUME}.service"
CSNAP = "/usr/local/bin/csnap"
READ = """
import hashlib, nbd, sys
client = nbd.NBD()
client.set_export_name(sys.argv[2])
client.connect_unix(sys.argv[1])
print(hashlib.sha256(b"".join(client.pread(1 << 20, n << 20) for n in range(client.get_size() >> 20))).hexdigest())
"""


def status(host: Host) -> dict[str, Any]:
    found = host.call(CSNAP, "status", VOLUME, "--json")
    return json.loads(found.stdout) if found.returncode == 0 else {}


def serves(host: Host, members: int = 3) -> bool:
    """The host is active, and so is every other, as it sees them."""
    found = status(host)
    if found.get("member", {}).get("state") != "active":
        return False
    return [row["state"] for row in found["members"]] == ["active"] * members


def checksum(host: Host, export: str) -> str:
    return host.run("python3", "-c", READ, SOCKET, export).strip()


def etcdctl(host: Host, user: str, *words: str) -> str:
    """Return what etcd tells the user, whose key root has here: ``member`` is the server's own."""
    command = ["etcdctl", f"--endpoints=https://{host.address}:2379", "--cacert=/etc/etcd/pki/ca.crt"]
    files = {"root": "/etc/etcd/pki/root", "member": "/etc/etcd/pki/member"}
    if user in files:
        command += [f"--cert={files[user]}.crt", f"--key={files[user]}.key"]
    elif user:
        command += [f"--cert=/etc/credstore/csnap.{VOLUME}.cert", f"--key=/etc/credstore/csnap.{VOLUME}.key"]
    done = host.call("env", "ETCDCTL_API=3", *command, *words)
    return done.stdout + done.stderr


def test_check_on_bare_hosts_says_what_would_change_and_changes_nothing(bed: Testbed, rollout: Rollout) -> None:
    """Files, users and units are what they were; packages, files, etcd's users and the starts are named."""
    assert rollout.left_by_check == ""
    for host in bed.hosts:
        assert rollout.checked.count(host, "changed") > 10
    names = "\n".join(rollout.checked.changed)
    for part in ("packages", "Would install this version", "configurations", "Would start the services", "Users, and"):
        assert part in names
    for line in (f'+cluster_uuid = "{UUID}"', "+client-cert-auth: true", "+user add host3 --no-password"):
        assert line in rollout.checked.output.replace("+  ", "+")


def test_the_second_run_changes_nothing(bed: Testbed, rollout: Rollout) -> None:
    assert rollout.second.changed == set()
    for host in bed.hosts:
        assert rollout.second.count(host, "changed") == 0
        assert rollout.second.count(host, "ok") > 20


def test_every_host_serves_the_volume(bed: Testbed) -> None:
    """Enabled, active, of the version that was asked for, and each sees all three."""
    for host in bed.hosts.values():
        wait_for(lambda host=host: serves(host), f"{host.name} serves")  # type: ignore[misc]
        assert host.show(UNIT, "UnitFileState") == "enabled"
        assert host.run(CSNAP, "version").strip() == f"csnap {__version__}"
        assert host.run("systemctl", "is-system-running", check=False).strip() == "running"


def test_etcd_has_three_members_and_lets_nobody_in_without_a_certificate(bed: Testbed) -> None:
    for host in bed.hosts.values():
        assert len(etcdctl(host, "root", "member", "list").splitlines()) == 3
        assert "is healthy" in etcdctl(host, "root", "endpoint", "health")
        assert "is healthy" not in etcdctl(host, "", "--command-timeout=2s", "endpoint", "health")


def test_a_host_may_use_its_volumes_keys_and_no_others(bed: Testbed) -> None:
    """Nor may the server's own certificate, which is no user."""
    host = bed.hosts["host2"]
    assert f"/csnap/{UUID}/format" in etcdctl(host, "host", "get", "--prefix", "--keys-only", f"/csnap/{UUID}/")
    for words in (("get", "/other"), ("put", "/csnap/other", "x"), ("get", "--prefix", "/csnap"), ("user", "list")):
        assert "permission denied" in etcdctl(host, "host", *words)
    assert "denied" in etcdctl(host, "member", "get", f"/csnap/{UUID}/format")


def test_keys_are_roots_and_were_not_shown(bed: Testbed, rollout: Rollout) -> None:
    """In the hosts, in what Ansible printed, and in their journals."""
    for host in bed.hosts.values():
        store = f"/etc/credstore/csnap.{VOLUME}.key"
        assert host.run("stat", "-c", "%U:%G %a", store).strip() == "root:root 600"
        secret = host.run("cat", store).splitlines()[1]
        assert secret not in rollout.checked.output + rollout.first.output
        assert secret not in host.run("journalctl", "--no-pager")
    for key in (bed.directory / "pki").glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0


def test_a_snapshot_is_read_from_every_host_unchanged(bed: Testbed) -> None:
    """While every host writes."""
    hosts = list(bed.hosts.values())
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(host, area)) for area, host in enumerate(hosts)]
        hosts[0].run(CSNAP, "snapshot", "create", VOLUME, "s1", "--cow", "/dev/csnap-cow1")
        first = checksum(hosts[1], "snapshot/s1")
        assert [checksum(host, "snapshot/s1") for host in hosts] == [first] * 3
    assert [load.result.errors for load in loads] == [[], [], []]


def test_check_shows_a_changed_configuration(bed: Testbed, controller: Controller) -> None:
    """Old line and new line, and that daemons would be restarted; none is."""
    before = {name: (host.show(UNIT, "MainPID"), configuration(host)) for name, host in bed.hosts.items()}
    run = controller.play("site", "--tags", "csnap_configure,csnap_run", check=True, csnap_freeze_limit=6)
    assert "-freeze_limit = 5" in run.output
    assert "+freeze_limit = 6" in run.output
    assert {name.partition(" : ")[2] for name in run.changed} == {"The configurations", "Restart csnapd"}
    assert {name: (host.show(UNIT, "MainPID"), configuration(host)) for name, host in bed.hosts.items()} == before


def configuration(host: Host) -> str:
    return host.run("cat", f"/etc/csnap/{VOLUME}.toml")


def test_a_changed_configuration_restarts_one_host_at_a_time(bed: Testbed, controller: Controller) -> None:
    """By the units' own times, under load on every host: no error, no snapshot changed."""
    hosts = list(bed.hosts.values())
    content = checksum(hosts[0], "snapshot/s1")
    with ExitStack() as stack:
        loads = [stack.enter_context(Load(host, area)) for area, host in enumerate(hosts)]
        controller.play("site", "--tags", "csnap_configure,csnap_run", csnap_freeze_limit=6)
    assert [load.result.errors for load in loads] == [[], [], []]
    keys = ("ActiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    gaps = sorted(tuple(int(host.show(UNIT, key)) for key in keys) for host in hosts)  # of the one clock that all have
    assert all(0 < left < back for left, back in gaps)
    assert all(back < left for (_, back), (left, _) in pairwise(gaps))
    assert all("freeze_limit = 6" in configuration(host) for host in hosts)
    assert [checksum(host, "snapshot/s1") for host in hosts] == [content] * 3


def test_a_configuration_that_csnap_refuses_is_not_put_in_place(bed: Testbed, controller: Controller) -> None:
    """The run fails, saying why; the daemon and its file stay."""
    host = bed.hosts["host1"]
    before = host.show(UNIT, "MainPID"), configuration(host)
    run = controller.play("site", "--tags", "csnap_configure", "--limit", "host1", fails=True, csnap_lease_ttl=100000)
    assert "lease_ttl" in run.output
    assert (host.show(UNIT, "MainPID"), configuration(host)) == before


def test_another_version_is_refused(controller: Controller) -> None:
    """From one to another is what rolling_update is for."""
    run = controller.play("site", "--tags", "csnap_install", "--limit", "host1", fails=True, csnap_version="9.9")
    assert "rolling_update" in run.output
    assert run.changed == set()


def test_a_host_whose_power_was_cut_rejoins_by_itself(bed: Testbed) -> None:
    """The others go on without an error; so does etcd, of which a member is gone; and the snapshot is what it was."""
    one, two, three = bed.hosts.values()
    content = checksum(one, "snapshot/s1")
    with Load(one, 0) as load:
        three.cut_power()
        wait_for(lambda: not serves(one), "it is missed", 60)
        three.boot()
        three.wait_booted()
        for host in (one, two, three):
            wait_for(lambda host=host: serves(host), f"{host.name} serves", 90)  # type: ignore[misc]
    assert load.result.errors == []
    assert [checksum(host, "snapshot/s1") for host in (one, two, three)] == [content] * 3
    assert "is healthy" in etcdctl(three, "root", "endpoint", "health")


def test_what_the_roles_ask_for_is_in_the_documents() -> None:
    """Each role's variables are described where Ansible looks, with the defaults they have."""
    import yaml

    for role in ("csnap", "etcd"):
        folder = Path(__file__).parents[2] / "ansible/roles" / role
        defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
        options = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        assert set(defaults) <= set(options)
        assert {name for name in options if not options[name].get("required")} == set(defaults)
        for name, option in options.items():
            assert option.get("default", defaults.get(name)) == defaults.get(name), name
