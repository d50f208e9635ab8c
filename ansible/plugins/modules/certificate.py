#!/usr/bin/python

# Copyright: the csnap authors
# GNU General Public License v2.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-2.0.txt)
# SPDX-License-Identifier: GPL-2.0-or-later

"""Makes keys and certificates with the ``openssl`` command, which controllers without a way out have too."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: certificate
short_description: Have a key and a certificate, made by openssl where they are missing or due
version_added: 0.1.0
description:
  - Makes C(<name>.key) and C(<name>.crt) in a directory, on a NIST P-256 curve, unless they are there, valid for longer
    than O(renew_before), of this subject, and signed by O(authority).
  - What a site's own authority has made is left alone as long as that holds.
options:
  directory:
    description:
      - Where the files are. Made if it is missing, for its owner alone.
    type: path
    required: true
  name:
    description:
      - The name of the files, without C(.key) and C(.crt).
    type: str
    required: true
  common_name:
    description:
      - The subject's common name. To etcd it is the user's name.
    type: str
    required: true
  alternative_names:
    description:
      - The subject's alternative names, as C(DNS:name) and C(IP:address).
    type: list
    elements: str
    default: []
  usages:
    description:
      - What the certificate is for.
    type: list
    elements: str
    choices: [serverAuth, clientAuth]
    default: []
  authority:
    description:
      - The name of the signing authority's files in O(directory). Without it, an authority is made.
    type: str
  days:
    description:
      - For how many days a new one is valid.
    type: int
    default: 825
  renew_before:
    description:
      - One that is valid for no more than this many days is made anew.
    type: int
    default: 30
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: posix
author:
  - the csnap authors (@csnap)
"""

EXAMPLES = r"""
- name: An authority for etcd
  csnap.cluster.certificate:
    directory: pki
    name: ca
    common_name: etcd of this site
  delegate_to: localhost

- name: What a host says to etcd that it is
  csnap.cluster.certificate:
    directory: pki
    name: csnap-host-a
    common_name: host-a
    usages: [clientAuth]
    authority: ca
  delegate_to: localhost
"""

RETURN = r"""
reason:
  description: Why a new one was, or would be, made.
  returned: changed
  type: str
  sample: it is missing
"""

import os
import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DAY = 86400  # seconds
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
DIGITS = 16  # of a serial number, in hexadecimal: random, since hosts are signed for at once


class Files:
    """A key and its certificate."""

    def __init__(self, directory, name):
        self.key = Path(directory) / f"{name}.key"
        self.certificate = Path(directory) / f"{name}.crt"


def openssl(module, *arguments):
    code, output, errors = module.run_command(["openssl", *map(str, arguments)])
    return code, output + errors


def must(module, *arguments):
    code, output = openssl(module, *arguments)
    if code:
        module.fail_json(msg=f"openssl {arguments[0]}: {output.strip()}")
    return output


def reason(module, own, authority):
    """Return why what is there will not do; empty if it will."""
    params = module.params
    if not own.certificate.exists() or not own.key.exists():
        return "it is missing"
    code, _ = openssl(module, "x509", "-in", own.certificate, "-noout", "-checkend", params["renew_before"] * DAY)
    if code:
        return f"it ends within {params['renew_before']} days"
    if authority is None:
        return ""  # whose subject is whatever the site has called it
    subject = must(module, "x509", "-in", own.certificate, "-noout", "-subject", "-nameopt", "multiline")
    names = re.findall(r"commonName\s*=\s*(.*)", subject)
    if names != [params["common_name"]]:
        return f"its common name is {', '.join(names)}"
    text = must(module, "x509", "-in", own.certificate, "-noout", "-ext", "subjectAltName")
    found = set(re.findall(r"(DNS:[^,\s]+|IP Address:[^,\s]+)", text))
    lacking = {name.replace("IP:", "IP Address:") for name in params["alternative_names"]} - found
    if lacking:
        return f"it does not name {', '.join(sorted(lacking))}"
    code, _ = openssl(module, "verify", "-CAfile", authority.certificate, own.certificate)
    return f"{authority.certificate.name} has not signed it" if code else ""


def make(module, own, authority):
    """Write the key, then the certificate, each by rename: whoever ends this in between starts anew."""
    params = module.params
    directory = Path(params["directory"])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-") as scratch:
        new = Files(scratch, "new")
        subject = f"/CN={params['common_name']}"
        days = ("-days", params["days"])
        if authority is None:
            signs = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
            must(
                module, "req", "-x509", *NEW_KEY, *days, "-subj", subject, *signs,
                "-keyout", new.key, "-out", new.certificate,
            )  # fmt: skip
        else:
            request, extensions = Path(scratch) / "request", Path(scratch) / "extensions"
            must(module, "req", "-new", *NEW_KEY, "-subj", subject, "-keyout", new.key, "-out", request)
            extensions.write_text(
                "basicConstraints=critical,CA:FALSE\n"
                + (f"extendedKeyUsage={','.join(params['usages'])}\n" if params["usages"] else "")
                + (f"subjectAltName={','.join(params['alternative_names'])}\n" if params["alternative_names"] else "")
            )
            must(
                module, "x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key,
                "-set_serial", f"0x{os.urandom(DIGITS // 2).hex()}", *days, "-extfile", extensions,
                "-out", new.certificate,
            )  # fmt: skip
        new.key.chmod(0o600)
        new.certificate.chmod(0o644)
        new.key.rename(own.key)
        new.certificate.rename(own.certificate)


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "common_name": {"type": "str", "required": True},
            "alternative_names": {"type": "list", "elements": "str", "default": []},
            "usages": {"type": "list", "elements": "str", "choices": ["serverAuth", "clientAuth"], "default": []},
            "authority": {"type": "str"},
            "days": {"type": "int", "default": 825},
            "renew_before": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    os.umask(0o077)
    own = Files(params["directory"], params["name"])
    authority = Files(params["directory"], params["authority"]) if params["authority"] else None
    why = reason(module, own, authority)
    if not why:
        module.exit_json(changed=False)
    if authority is not None and authority.certificate.exists() and not authority.key.exists():
        module.fail_json(msg=f"{own.certificate}: {why}, and there is no {authority.key} to sign another with")
    if not module.check_mode:
        make(module, own, authority)
    difference = {"before": f"{why}\n", "after": f"a new one for {params['common_name']}\n"}
    difference |= {"before_header": str(own.certificate), "after_header": str(own.certificate)}
    module.exit_json(changed=True, reason=why, diff=difference)


if __name__ == "__main__":
    main()
