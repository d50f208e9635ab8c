"""yamllint and ansible-lint, in its production profile, find nothing in the collection."""

from __future__ import annotations

import subprocess

import pytest

from tests.ansible.runner import COLLECTION


@pytest.mark.timeout(300)  # 15 s of one core
def test_the_collection_is_clean() -> None:
    """tools/lint-ansible, which a developer runs by hand."""
    done = subprocess.run([COLLECTION.parent / "tools/lint-ansible"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
