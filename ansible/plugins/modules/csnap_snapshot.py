#!/usr/bin/python

# Copyright: the csnap authors
# GNU General Public License v2.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-or-later

"""Takes and deletes snapshots by the ``csnap`` command of the host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: csnap_snapshot
short_description: Take or delete a snapshot of a csnap volume
version_added: 0.1.0
description:
  - Takes a copy-on-write snapshot of a volume that csnap serves on this host, or deletes one.
  - A snapshot belongs to the volume, not to a host. Run this on one host of the cluster, with C(run_once).
  - It asks the daemon on the host, by the C(csnap) command. The daemon must be active.
options:
  volume:
    description:
      - The name of a volume that is configured in C(/etc/csnap), or the absolute path of its configuration file.
    type: str
    required: true
  name:
    description:
      - The snapshot's name.
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot unless it is there. One that is invalid is refused, since it cannot be read;
        delete it first.
      - V(absent) deletes it. Only the oldest snapshot and invalid ones can be deleted, because older ones read
        through the newer.
    type: str
    choices: [present, absent]
    default: present
  device:
    description:
      - Absolute path of the COW device, the same on every host. Needed to take a snapshot.
      - A snapshot of this name on another device is an error. It is never moved or taken anew.
      - With O(state=absent), if given, only a snapshot on this device is deleted.
    type: path
  writable:
    description:
      - Whether clients may write to the snapshot. Fixed when it is taken.
    type: bool
    default: false
  force:
    description:
      - Overwrite foreign content of the COW device, except the volume itself.
    type: bool
    default: false
  executable:
    description:
      - The C(csnap) command, as a path or as a name that is looked for.
    type: str
    default: csnap
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - What cannot be seen without taking it (whether another host can open the device, whether the device holds
        foreign content) is not foreseen.
  diff_mode:
    support: full
  platform:
    platforms: posix
author:
  - the csnap authors (@csnap)
"""

EXAMPLES = r"""
- name: Take a snapshot before the upgrade of the application
  csnap.cluster.csnap_snapshot:
    volume: vmstore
    name: before-upgrade
    device: /dev/mapper/cow1
  run_once: true

- name: Give the COW device back
  csnap.cluster.csnap_snapshot:
    volume: vmstore
    name: before-upgrade
    device: /dev/mapper/cow1
    state: absent
  run_once: true
"""

RETURN = r"""
snapshot:
  description: The snapshot, as C(csnap snapshot list --json) shows it; empty if there is none now.
  returned: success
  type: dict
  sample:
    name: before-upgrade
    state: active
    dm_status: 16/16384 16
    percent_full: 0.1
    exceptions: 0
    writable: false
    cow: /dev/mapper/cow1
    store: 0d5bb7e3-7d6c-4be1-95f7-2d2c3ba0a3d1
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

FIXED = ("name", "state", "cow", "writable")
"""What of a snapshot does not change while clients write: what a difference is shown of."""

NO_DAEMON = 3
"""The command's exit code when nobody answers."""

IN_THE_WAY = {
    "creating": "it is being taken just now, perhaps by another host: run this on one host only",
    "deleting": "it is being deleted: try again when it is gone",
    "invalid": "it is invalid and cannot be read: delete it first",
    "overflow": "it is full and cannot be read: delete it first",
}
"""Why a snapshot in this state is not ``present``."""


class Snapshots:
    """The volume's snapshots, newest first, by the ``csnap`` command."""

    def __init__(self, module):
        self._module = module
        self._volume = module.params["volume"]
        self._command = module.get_bin_path(module.params["executable"], required=True)

    def list(self):
        output = self._run("list", self._volume, "--json")
        try:
            return json.loads(output)
        except ValueError:
            self._module.fail_json(msg=f"csnap snapshot list {self._volume} --json: no JSON: {output!r}")

    def find(self, name):
        return next((one for one in self.list() if one["name"] == name), None)

    def create(self, name, device, writable, force):
        options = ["--writable"] * writable + ["--force"] * force
        self._run("create", self._volume, name, "--cow", device, *options)

    def delete(self, name):
        self._run("delete", self._volume, name)

    def _run(self, *arguments):
        code, output, errors = self._module.run_command([self._command, "snapshot", *arguments])
        if code:
            said = errors.strip().removeprefix("csnap: ") or output.strip()
            advice = "; is csnapd running and active on this host?" if code == NO_DAEMON else ""
            self._module.fail_json(msg=f"csnap snapshot {arguments[0]}: {said}{advice}", rc=code, stderr=errors)
        return output


def same_device(one, other):
    """Whether two paths are one device: the same path, or the same file behind links."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def fixed(snapshot):
    return {key: snapshot[key] for key in FIXED} if snapshot else {}


def unlike(found, params):
    """Return what makes the snapshot that is there another than the one that is asked for; empty if nothing does."""
    if params["device"] and not same_device(found["cow"], params["device"]):
        return f"it is on {found['cow']}, not on {params['device']}"
    if params["state"] == "absent":
        return ""
    if found["writable"] != params["writable"]:
        return f"it is {'writable' if found['writable'] else 'read-only'}, which is fixed when it is taken"
    return IN_THE_WAY.get(found["state"], "")


def refusal(snapshots, params):
    """Return why the daemon is going to refuse, as far as it can be seen: for check mode."""
    name, device = params["name"], params["device"]
    if params["state"] == "absent":
        place = [one["name"] for one in snapshots].index(name)
        if snapshots[place]["state"] in ("creating", "deleting"):
            return f"is {snapshots[place]['state']}"
        older = [one["name"] for one in snapshots[place + 1 :] if one["state"] != "invalid"]
        if older and snapshots[place]["state"] != "invalid":
            return f"{', '.join(older)} is older and reads through it: delete that first"
        return ""
    if not Path(device).exists():
        return f"there is no device {device}"
    user = next((one["name"] for one in snapshots if same_device(one["cow"], device)), None)
    return f"the device {device} belongs to snapshot {user}" if user else ""


def main():
    module = AnsibleModule(
        argument_spec={
            "volume": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "device": {"type": "path"},
            "writable": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "executable": {"type": "str", "default": "csnap"},
        },
        required_if=[("state", "present", ("device",))],
        supports_check_mode=True,
    )
    params = module.params
    name, device = params["name"], params["device"]
    if device and not Path(device).is_absolute():
        module.fail_json(msg=f"device: {device}: expected an absolute path, the same on every host")

    snapshots = Snapshots(module)
    there = snapshots.list()
    found = next((one for one in there if one["name"] == name), None)
    if found and (why := unlike(found, params)):
        module.fail_json(msg=f"snapshot {name}: {why}", snapshot=found)
    if bool(found) == (params["state"] == "present"):
        module.exit_json(changed=False, snapshot=found or {}, diff={"before": fixed(found), "after": fixed(found)})

    if module.check_mode:
        if why := refusal(there, params):
            module.fail_json(msg=f"snapshot {name}: {why}", snapshot=found or {})
        after = {} if found else {"name": name, "state": "active", "cow": device, "writable": params["writable"]}
    elif found:
        snapshots.delete(name)
        after = snapshots.find(name)
    else:
        snapshots.create(name, device, params["writable"], params["force"])
        after = snapshots.find(name)
    module.exit_json(changed=True, snapshot=after or {}, diff={"before": fixed(found), "after": fixed(after)})


if __name__ == "__main__":
    main()
