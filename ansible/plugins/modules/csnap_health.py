#!/usr/bin/python

# Copyright: the csnap authors
# GNU General Public License v2.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tells whether a host's csnap, its peers as it sees them, its snapshots and its etcd are well."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: csnap_health
short_description: Tell whether csnap is healthy on a host, or wait until it is
version_added: 0.1.0
description:
  - Asks the daemon of a volume on this host, by the C(csnap) command, and every etcd endpoint of its configuration.
  - Fails, and names every problem, unless all is well. It changes nothing, in check mode neither.
options:
  volume:
    description:
      - The name of a volume that is configured in C(/etc/csnap), or the absolute path of its configuration file.
    type: str
    required: true
  members:
    description:
      - Node names that have to be active members, besides this host's own.
    type: list
    elements: str
    default: []
  others:
    description:
      - Whether every other member that the daemon knows of has to be active, also one that O(members) does not name.
    type: bool
    default: true
  version:
    description:
      - The version that the daemon which runs must have. Any, if not given.
    type: str
  snapshots:
    description:
      - Whether snapshots count, that none is invalid and that none is fuller than O(full).
    type: bool
    default: true
  full:
    description:
      - How full a COW device may be, in percent.
    type: float
    default: 95
  etcd:
    description:
      - Whether each etcd endpoint has to say that it is healthy. Keys that systemd hands to the daemon as credentials
        are read in C(/etc/credstore), so this needs root.
    type: bool
    default: true
  timeout:
    description:
      - For how many seconds to wait until all is well.
    type: float
    default: 0
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
  diff_mode:
    support: none
  platform:
    platforms: posix
author:
  - the csnap authors (@csnap)
"""

EXAMPLES = r"""
- name: Wait until this host serves the volume again
  csnap.cluster.csnap_health:
    volume: vmstore
    members: "{{ groups['csnap'] }}"
    timeout: 60
"""

RETURN = r"""
problems:
  description: What is not well, a sentence each. Also returned, with words around it, as the message of the failure.
  returned: always
  type: list
  elements: str
  sample: ["host-b: is not a member"]
version:
  description: The version of the daemon that answered.
  returned: when a daemon answers
  type: str
  sample: 0.1.0
status:
  description: What C(csnap status --json) says.
  returned: when a daemon answers
  type: dict
"""

import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import tomllib
except ImportError:  # a distribution whose own Python is older than the one csnap runs with
    tomllib = None

CONFIGURATIONS = Path("/etc/csnap")
CREDENTIAL = "credential:"
STORE = Path("/etc/credstore")
ETCD_LIMIT = 5.0  # seconds for an endpoint to answer
AGAIN = 0.3  # seconds between looks


def config_path(volume):
    return Path(volume) if "/" in volume else CONFIGURATIONS / f"{volume}.toml"


def key_file(path, volume):
    """Return where root reads a file that the configuration names: a unit's credential comes from the store."""
    if path.startswith(CREDENTIAL):
        return STORE / f"csnap.{volume}.{path.removeprefix(CREDENTIAL).removeprefix('etcd.')}"
    return Path(path)


def etcd_problems(config):
    """Ask each endpoint for its health: etcd itself tries a read that needs the quorum."""
    lockspace, volume = config["lockspace"], config["volume"]["name"]
    handlers = [urllib.request.ProxyHandler({})]
    files = {name: key_file(lockspace[name], volume) for name in ("ca", "cert", "key") if lockspace.get(name)}
    try:
        if files:
            context = ssl.create_default_context(cafile=files.get("ca"))
            if "cert" in files:
                context.load_cert_chain(files["cert"], files["key"])
            handlers.append(urllib.request.HTTPSHandler(context=context))
    except (OSError, KeyError) as error:
        return [f"etcd: its keys cannot be used: {error} ({', '.join(map(str, files.values()))})"]
    opener = urllib.request.build_opener(*handlers)
    found = []
    for endpoint in lockspace["endpoints"]:
        try:
            with opener.open(f"{endpoint.rstrip('/')}/health", timeout=ETCD_LIMIT) as answer:
                said = json.loads(answer.read())
            if said.get("health") not in ("true", True):
                found.append(f"etcd {endpoint}: {said}")
        except urllib.error.HTTPError as error:
            found.append(f"etcd {endpoint}: {error.read().decode(errors='replace').strip() or error}")
        except (OSError, ValueError, AttributeError) as error:
            found.append(f"etcd {endpoint}: {getattr(error, 'reason', error)}")
    return found


def status_problems(status, params):
    """Return what the daemon's own report says that is not well."""
    found = []
    member = status["member"]
    if member["state"] != "active":
        why = f" ({member['why']})" if member.get("why") else ""
        found.append(f"{status['node']}: is {member['state']}{why}, expected active")
    if params["version"] and status["version"] != params["version"]:
        found.append(f"{status['node']}: runs {status['version']}, expected {params['version']}")
    states = {row["node"]: row["state"] for row in status["members"]}
    for node in params["members"]:
        if node not in states:
            found.append(f"{node}: is not a member, as {status['node']} sees it")
    found += [
        f"{node}: is {state}, as {status['node']} sees it"
        for node, state in states.items()
        if state != "active" and node != status["node"] and (params["others"] or node in params["members"])
    ]
    if params["snapshots"]:
        for row in status["snapshots"]:
            if row["state"] != "active":
                found.append(f"snapshot {row['name']}: is {row['state']}")
            elif (row["percent_full"] or 0) >= params["full"]:
                found.append(
                    f"snapshot {row['name']}: is {row['percent_full']} % full, expected below {params['full']:g}"
                )
    return found


def look(module, command):
    """Return the problems, and the daemon's status if one answers."""
    params = module.params
    try:
        config = tomllib.loads(config_path(params["volume"]).read_text())
    except (OSError, ValueError) as error:
        return [f"configuration of {params['volume']}: {error}"], None
    code, output, errors = module.run_command([command, "status", params["volume"], "--json"])
    status = None
    if code:
        problems = [errors.strip().removeprefix("csnap: ") or f"csnap status: exit {code}"]
    else:
        status = json.loads(output)
        problems = status_problems(status, params)
    return problems + (etcd_problems(config) if params["etcd"] else []), status


def main():
    module = AnsibleModule(
        argument_spec={
            "volume": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "str", "default": []},
            "others": {"type": "bool", "default": True},
            "version": {"type": "str"},
            "snapshots": {"type": "bool", "default": True},
            "full": {"type": "float", "default": 95},
            "etcd": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 0},
            "executable": {"type": "str", "default": "csnap"},
        },
        supports_check_mode=True,
    )
    if tomllib is None:
        reason = "csnap runs with Python 3.11 or newer: set ansible_python_interpreter to that one for this task"
        module.fail_json(msg=missing_required_lib("tomllib", reason=reason))
    end = time.monotonic() + module.params["timeout"]
    command = module.get_bin_path(module.params["executable"], required=True)
    problems, status = look(module, command)
    while problems and time.monotonic() < end:
        time.sleep(AGAIN)
        problems, status = look(module, command)
    facts = {"problems": problems}
    if status is not None:
        facts |= {"version": status["version"], "status": status}
    if problems:
        waited = f" after {module.params['timeout']:g} s" if module.params["timeout"] else ""
        module.fail_json(msg=f"{module.params['volume']} is not well{waited}: {'; '.join(problems)}", **facts)
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
