#!/usr/bin/python

# Copyright: the csnap authors
# GNU General Public License v2.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-or-later

"""Restarts a host's daemon when no other host is without its own."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: csnap_restart
short_description: Restart csnap's daemon of a volume once every other member is active
version_added: 0.1.0
description:
  - Waits until every other member of the volume is active, as the daemon on this host sees it, restarts that daemon,
    and waits until it is active again.
  - Run it with C(throttle=1), and never two hosts of a volume are without their daemon. Where the first host does not
    come back, the module fails on the others before it has touched them.
  - A daemon that does not answer has nothing to lose, and is restarted without waiting for others.
  - In check mode nothing is restarted, and the result is changed.
options:
  volume:
    description:
      - The name of a volume that is configured in C(/etc/csnap).
    type: str
    required: true
  members:
    description:
      - Node names that have to be active members. Those that the daemon knows of count too.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - For how many seconds to wait for the others, and again for this host.
    type: float
    default: 90
  executable:
    description:
      - The C(csnap) command.
    type: str
    default: /opt/csnap/current/bin/csnap
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
- name: Restart the daemons, one host at a time
  csnap.cluster.csnap_restart:
    volume: vmstore
    members: "{{ ansible_play_hosts_all }}"
  throttle: 1
"""

RETURN = r"""
waited:
  description: Seconds that this host waited for the others.
  returned: when it was restarted
  type: float
  sample: 0.3
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule

AGAIN = 0.3  # seconds between looks


def status(module):
    """Return what the daemon says of itself; None if none answers."""
    code, output, _ = module.run_command([module.params["executable"], "status", module.params["volume"], "--json"])
    return json.loads(output) if code == 0 else None


def missing(found, members):
    """Return what keeps this host from being restarted: a sentence for each other member that is not active."""
    states = {row["node"]: row["state"] for row in found["members"] if row["node"] != found["node"]}
    states |= {node: "not a member" for node in members if node not in states and node != found["node"]}
    return [f"{node} is {state}" for node, state in sorted(states.items()) if state != "active"]


def wait(module, problem):
    """Look until ``problem``, called with the status, has none to name. Return the seconds that it took."""
    begun = time.monotonic()
    while found := problem(status(module)):
        if time.monotonic() > begun + module.params["timeout"]:
            module.fail_json(msg=f"{module.params['volume']}: {'; '.join(found)}, {module.params['timeout']:g} s on")
        time.sleep(AGAIN)
    return time.monotonic() - begun


def restart(module):
    unit = f"csnapd@{module.params['volume']}.service"
    module.run_command(["systemctl", "reset-failed", unit])  # its limit of starts, if it has run into that
    code, _, errors = module.run_command(["systemctl", "restart", unit])
    if code:
        module.fail_json(msg=f"{unit}: {errors.strip() or f'exit {code}'}")


def main():
    module = AnsibleModule(
        argument_spec={
            "volume": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 90},
            "executable": {"type": "str", "default": "/opt/csnap/current/bin/csnap"},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    members = module.params["members"]
    waited = wait(module, lambda found: found is not None and missing(found, members))
    restart(module)

    def not_active(found):
        if found is None:
            return ["no daemon answers"]
        state = found["member"]["state"]
        return [] if state == "active" else [f"{found['node']} is {state} {found['member'].get('why') or ''}".strip()]

    wait(module, not_active)
    module.exit_json(changed=True, waited=round(waited, 1))


if __name__ == "__main__":
    main()
