#!/usr/bin/python

# Copyright: the csnap authors
# GNU General Public License v2.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-or-later

"""Has etcd let each user do what it needs and no more, by ``etcdctl``."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_access
short_description: Have etcd's users, roles and permissions, and have it ask for them
version_added: 0.1.0
description:
  - Users have no password. They are known by the common name of their certificate.
  - The user C(root) is made as well, since etcd wants one before it asks anybody who they are.
  - Roles and users that are not named are left alone. A role that is named has just these permissions, and a user
    that is named has just these roles.
options:
  roles:
    description:
      - The roles.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The role's name.
        type: str
        required: true
      prefixes:
        description:
          - The role may read and write the keys that begin so.
        type: list
        elements: str
        required: true
  users:
    description:
      - The users.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The user's name.
        type: str
        required: true
      roles:
        description:
          - The roles it has.
        type: list
        elements: str
        required: true
  endpoint:
    description:
      - The member to ask.
    type: str
    default: https://127.0.0.1:2379
  ca:
    description:
      - The authority that has signed the member's certificate.
    type: path
    required: true
  cert:
    description:
      - A certificate for C(root).
    type: path
    required: true
  key:
    description:
      - Its key.
    type: path
    required: true
  executable:
    description:
      - The C(etcdctl) command.
    type: str
    default: etcdctl
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Where etcd does not answer yet, all is taken for absent.
  diff_mode:
    support: full
  platform:
    platforms: posix
author:
  - the csnap authors (@csnap)
"""

EXAMPLES = r"""
- name: Each host may use the volume's keys
  csnap.cluster.etcd_access:
    roles:
      - name: vmstore
        prefixes: [/csnap/5b1c0e7e-6d0f-4c57-9a5e-0d8a7f2f9a11/]
    users:
      - {name: host-a, roles: [vmstore]}
      - {name: host-b, roles: [vmstore]}
    ca: /etc/etcd/pki/ca.crt
    cert: /etc/etcd/pki/root.crt
    key: /etc/etcd/pki/root.key
  run_once: true
"""

RETURN = r"""
commands:
  description: What etcdctl was, or would be, told.
  returned: always
  type: list
  elements: str
  sample: ["role add vmstore"]
"""

import base64
import json

from ansible.module_utils.basic import AnsibleModule

LIMIT = "10s"  # for a command to be answered


class Etcdctl:
    def __init__(self, module):
        params = module.params
        self._module = module
        self._path = module.get_bin_path(params["executable"])
        self._options = [f"--endpoints={params['endpoint']}", f"--command-timeout={LIMIT}"]
        self._options += [f"--cacert={params['ca']}", f"--cert={params['cert']}", f"--key={params['key']}"]

    def call(self, *words):
        """Return the exit code, and what was printed."""
        command = [self._path, *self._options, *words]
        code, output, errors = self._module.run_command(command, environ_update={"ETCDCTL_API": "3"})
        return code, output if code == 0 else output + errors

    def answers(self):
        return self._path is not None and self.call("endpoint", "health")[0] == 0

    def must(self, *words):
        code, output = self.call(*words)
        if code:
            self._module.fail_json(msg=f"etcdctl {' '.join(words)}: {output.strip()}")
        return output

    def names(self, kind, field):
        """Return the names of all users, or all roles."""
        return set(json.loads(self.must(kind, "list", "-w", "json")).get(field) or [])

    def roles_of(self, user):
        return set(json.loads(self.must("user", "get", user, "-w", "json")).get("roles") or [])

    def permissions_of(self, role):
        """Return (kind, key, end) of each; kind 2 is readwrite."""
        rows = json.loads(self.must("role", "get", role, "-w", "json")).get("perm") or []
        return {(row.get("permType", 0), decoded(row.get("key")), decoded(row.get("range_end"))) for row in rows}

    def asks(self):
        """Whether etcd asks who somebody is: then nobody is let in with a wrong password."""
        code, output = self.call("--user=csnap-nobody:wrong", "get", "csnap-nobody")
        return code != 0 and "authentication failed" in output


READ_WRITE = 2


def decoded(text):
    return base64.b64decode(text).decode() if text else ""


def end_of(prefix):
    """The first key behind all that begin with ``prefix``."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def role_commands(etcdctl, role, there):
    name = role["name"]
    found = etcdctl.permissions_of(name) if name in there else set()
    wanted = {(READ_WRITE, prefix, end_of(prefix)) for prefix in role["prefixes"]}
    if name not in there:
        yield "role", "add", name
    for _, key, end in sorted(found - wanted):
        yield "role", "revoke-permission", name, key, *([end] if end else [])
    for _, key, _ in sorted(wanted - found):
        yield "role", "grant-permission", name, "readwrite", key, "--prefix=true"


def user_commands(etcdctl, name, roles, there):
    found = etcdctl.roles_of(name) if name in there else set()
    if name not in there:
        yield "user", "add", name, "--no-password"
    for role in sorted(set(roles) - found):
        yield "user", "grant-role", name, role
    for role in sorted(found - set(roles)):
        yield "user", "revoke-role", name, role


def plan(etcdctl, params):
    """Return what is to be told, in an order in which nobody is locked out."""
    answers = etcdctl.answers()
    roles = etcdctl.names("role", "roles") if answers else set()
    users = etcdctl.names("user", "users") if answers else set()
    commands = [] if "root" in roles else [("role", "add", "root")]
    commands += user_commands(etcdctl, "root", ["root"], users)
    for role in params["roles"]:
        commands += role_commands(etcdctl, role, roles)
    for user in params["users"]:
        commands += user_commands(etcdctl, user["name"], user["roles"], users)
    if not answers or not etcdctl.asks():
        commands.append(("auth", "enable"))
    return answers, commands


def main():
    names = {"type": "list", "elements": "str", "required": True}
    name = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "roles": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": name, "prefixes": names},
            },
            "users": {"type": "list", "elements": "dict", "required": True, "options": {"name": name, "roles": names}},
            "endpoint": {"type": "str", "default": "https://127.0.0.1:2379"},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "executable": {"type": "str", "default": "etcdctl"},
        },
        supports_check_mode=True,
    )
    etcdctl = Etcdctl(module)
    answers, commands = plan(etcdctl, module.params)
    if not answers and not module.check_mode:
        module.fail_json(msg=f"etcd does not answer at {module.params['endpoint']}")
    if not module.check_mode:
        for words in commands:
            etcdctl.must(*words)
    told = [" ".join(words) for words in commands]
    after = "".join(f"{line}\n" for line in told)
    module.exit_json(changed=bool(told), commands=told, diff={"before": "", "after": after})


if __name__ == "__main__":
    main()
