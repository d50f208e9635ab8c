"""The example inventories are what the playbooks and roles take, and give configurations that csnap takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from snapd.config import load
from tests.ansible.playbooks import command, environment, play
from tests.ansible.runner import COLLECTION

pytestmark = pytest.mark.timeout(400)  # runs of Ansible, on a busy machine

EXAMPLES = COLLECTION / "examples"
ROLES = {"csnap": ["csnap", "release"], "etcd": ["etcd"], "monitoring": ["monitoring"]}
"""Which roles run on the hosts of which group."""

VAULT = ["--vault-password-file", str(EXAMPLES / "site/vault-password")]
HERE = [
    "-e",
    json.dumps({"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}),
]
OPTIONS = {"small": HERE, "site": [*VAULT, *HERE]}

CONFIGURE = """\
- hosts: csnap
  gather_facts: false
  vars_files: [{collection}/roles/csnap/vars/main.yml]
  tasks:
    - ansible.builtin.template:
        src: {collection}/roles/csnap/templates/volume.toml.j2
        dest: "{directory}/{{{{ inventory_hostname }}}}.{{{{ item.name }}}}.toml"
        mode: "0600"
      loop: "{{{{ csnap_volumes }}}}"
"""

VALIDATE = """\
- hosts: {group}
  gather_facts: false
  tasks:
    - ansible.builtin.validate_argument_spec:
        argument_spec: "{{{{ (lookup('file', '{collection}/roles/{role}/meta/argument_specs.yml')
          | from_yaml).argument_specs.main.options }}}}"
"""


@pytest.fixture(params=sorted(OPTIONS))
def example(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_playbook_takes_them(example: str, tmp_path: Path) -> None:
    """ansible-playbook --syntax-check, of each playbook with each inventory."""
    playbooks = sorted((COLLECTION / "playbooks").glob("*.yml"))
    assert {"site.yml", "rolling_update.yml", "rollback.yml"} <= {one.name for one in playbooks}
    run = play(tmp_path, "-i", EXAMPLES / example / "hosts.yml", *OPTIONS[example], "--syntax-check", *playbooks)
    assert "ERROR" not in run.output


def test_the_roles_arguments(example: str, tmp_path: Path) -> None:
    """Every host's variables pass the specifications of the roles that run on it; none is unknown to all of them."""
    inventory = EXAMPLES / example / "hosts.yml"
    listed = subprocess.run(
        [command("ansible-inventory"), "-i", inventory, *OPTIONS[example][:2], "--list"],
        env=environment(tmp_path),
        capture_output=True,
        check=True,
    )
    known = json.loads(listed.stdout)
    specified = {
        option
        for roles in ROLES.values()
        for role in roles
        for option in yaml.safe_load((COLLECTION / f"roles/{role}/meta/argument_specs.yml").read_text())[
            "argument_specs"
        ]["main"]["options"]
    }
    own = {
        name
        for host in known["_meta"]["hostvars"].values()
        for name in host
        if not name.startswith(("ansible", "vault"))
    }
    assert own <= specified
    playbook = tmp_path / "validate.yml"
    parts = [(group, role) for group, roles in ROLES.items() if group in known for role in roles]
    text = "".join(VALIDATE.format(group=group, role=role, collection=COLLECTION) for group, role in parts)
    playbook.write_text(text)
    play(tmp_path, "-i", inventory, *OPTIONS[example], playbook)


def test_csnap_takes_the_configurations(example: str, tmp_path: Path) -> None:
    """What the role would write is good; the site's has the passwords of its vault, each host its own."""
    defaults = yaml.safe_load((COLLECTION / "roles/csnap/defaults/main.yml").read_text())
    (tmp_path / "defaults.yml").write_text(yaml.safe_dump({"all": {"vars": defaults}}))
    made = tmp_path / "made"
    made.mkdir()
    playbook = tmp_path / "configure.yml"
    playbook.write_text(CONFIGURE.format(collection=COLLECTION, directory=made))
    inventory = EXAMPLES / example / "hosts.yml"
    play(tmp_path, "-i", tmp_path / "defaults.yml", "-i", inventory, *OPTIONS[example], playbook)
    configs = {one.name: load(one) for one in made.iterdir()}
    volumes = ["home", "vmstore"] if example == "site" else ["vmstore"]
    assert sorted(configs) == [f"host-{host}.{volume}.toml" for host in "abc" for volume in volumes]
    assert {config.node.name for config in configs.values()} == {"host-a", "host-b", "host-c"}
    if example == "site":
        text = (made / "host-a.vmstore.toml").read_text()
        assert "example-fence-password-of-host-c" in text


def test_secrets_are_in_the_vault_alone(tmp_path: Path) -> None:
    """The vault can be read with the documented password, and none of its values stands elsewhere in clear."""
    vault = EXAMPLES / "site/group_vars/all/vault.yml"
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    viewed = subprocess.run(
        [command("ansible-vault"), "view", *VAULT, str(vault)],
        env=environment(tmp_path),
        capture_output=True,
        check=True,
        text=True,
    )
    secrets = yaml.safe_load(viewed.stdout).values()
    texts = "".join(file.read_text() for file in EXAMPLES.rglob("*") if file.is_file() and file != vault)
    assert secrets
    assert not [secret for secret in secrets if secret in texts]
