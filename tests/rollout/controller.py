"""Ansible on this machine, in the network of the test hosts, with an inventory and a wheelhouse of the test's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from snapd import __version__
from tests.hosts.testbed import Testbed

ROOT = Path(__file__).resolve().parents[2]
UUID = "5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11"
VOLUME = "vmstore"

SETTINGS = {
    "ANSIBLE_HOST_KEY_CHECKING": "False",
    "ANSIBLE_PIPELINING": "True",
    "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=600 -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
    "ANSIBLE_GATHERING": "smart",
    "ANSIBLE_CACHE_PLUGIN": "jsonfile",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_LOCALHOST_WARNING": "False",
    "ANSIBLE_FORKS": "3",
}


@dataclass(frozen=True)
class Run:
    """What a run of a playbook came to."""

    code: int
    output: str

    def count(self, host: str, word: str) -> int:
        """Of the last line for the host: ok, changed, unreachable, failed, skipped."""
        line = re.search(rf"^{host} +: (.*)$", self.output, re.MULTILINE)
        assert line is not None, self.output[-3000:]
        found = re.search(rf"\b{word}=(\d+)", line[1])
        return int(found[1]) if found else 0

    @property
    def changed(self) -> set[str]:
        """Tasks and handlers that changed something on some host."""
        found, task = set(), ""
        for line in self.output.splitlines():
            if begun := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
                task = begun[1]
            elif line.startswith("changed: "):
                found.add(task)
        return found


class Controller:
    """Runs playbooks of the collection; ``variables`` are all hosts', and may be changed between runs."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.variables: dict[str, Any] = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(bed.key),
            "ansible_python_interpreter": "/usr/bin/python3",
            "csnap_version": __version__,
            "csnap_wheelhouse": str(bed.directory / "wheelhouse"),
            "csnap_volumes": [
                {
                    "name": VOLUME,
                    "cluster_uuid": UUID,
                    "origin": "/dev/csnap-origin",
                    "chunk_size": "16KiB",
                    "region_size": "1MiB",
                }
            ],
            "csnap_etcd_endpoints": [f"https://{host.address}:2379" for host in bed.hosts.values()],
            "csnap_etcd_ca": f"{bed.directory}/pki/ca.crt",
            "csnap_etcd_cert": f"{bed.directory}/pki/csnap-{{{{ inventory_hostname }}}}.crt",
            "csnap_etcd_key": f"{bed.directory}/pki/csnap-{{{{ inventory_hostname }}}}.key",
            "csnap_allow_old_etcd": True,
            "csnap_fencing": {"method": "unsafe"},
            "csnap_device_classes": ["block-loop"],
            "csnap_unit_settings": "SupplementaryGroups=disk",
            "etcd_allow_old": "{{ csnap_allow_old_etcd }}",
            "etcd_heartbeat_interval": 100,
        }
        collections = bed.directory / "collections/ansible_collections/csnap"
        collections.mkdir(parents=True)
        (collections / "cluster").symlink_to(ROOT / "ansible")
        self._environment = {
            **SETTINGS,
            "ANSIBLE_HOME": str(bed.directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(bed.directory / "collections"),
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(bed.directory / "facts"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(bed.directory / "ssh"),
        }

    def build(self, local: str = "") -> str:
        """Put a wheelhouse of this checkout where the playbooks look for it; return its version."""
        command = [str(ROOT / "tools/wheelhouse"), "--output", self.variables["csnap_wheelhouse"]]
        done = subprocess.run([*command, *(["--local", local] if local else [])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip()).name.removeprefix("csnap-")

    def play(self, playbook: str, *options: str, check: bool = False, fails: bool = False, **variables: Any) -> Run:
        """Run one of the collection's playbooks; ``check``: with --check --diff; ``variables`` are this run's."""
        inventory = self.bed.directory / "inventory.yml"
        hosts = {name: {"ansible_host": host.address} for name, host in self.bed.hosts.items()}
        groups = {"csnap": {"hosts": hosts}, "etcd": {"hosts": hosts}}
        inventory.write_text(yaml.safe_dump({"all": {"children": groups, "vars": self.variables}}))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *options]
        command += ["--check", "--diff"] if check else []
        command += ["-e", json.dumps(variables)] if variables else []
        done = self.bed.run(*command, f"csnap.cluster.{playbook}", check=False, cwd=self.bed.directory, env=self._env())
        run = Run(done.returncode, done.stdout + done.stderr)
        print(run.output)
        assert (run.code != 0) == fails, run.output[-6000:]
        return run

    def _env(self) -> dict[str, str]:
        return {**self._environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
