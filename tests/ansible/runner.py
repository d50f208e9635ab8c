"""Runs a module of the collection as Ansible does: a process of its own, its arguments as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.host import csnap, environment

COLLECTION = Path(__file__).resolve().parents[2] / "ansible"
LIMIT = 60.0  # seconds, on a busy machine
LOADER = """\
import json, runpy, sys
from ansible.module_utils.testing import patch_module_args
with patch_module_args(json.load(sys.stdin)):
    runpy.run_path(sys.argv[1], run_name="__main__")
"""


class Runner:
    """One module; ``directory`` is made, and is its home. It finds the csnap of this checkout."""

    def __init__(self, name: str, directory: Path, *, asks_csnap: bool = True) -> None:
        self._asks_csnap = asks_csnap
        self._module = COLLECTION / f"plugins/modules/{name}.py"
        self._directory = directory
        directory.mkdir()
        self._csnap = directory / "csnap"
        self._csnap.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in csnap()) + ' "$@"\n')
        self._csnap.chmod(0o755)

    def __call__(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Return what it prints."""
        given = {**({"executable": str(self._csnap)} if self._asks_csnap else {}), **arguments}
        internal = {"check_mode": check, "diff": True, "remote_tmp": str(self._directory)}
        ended = subprocess.run(
            [sys.executable, "-c", LOADER, str(self._module)],
            input=json.dumps({**given, **{f"_ansible_{key}": value for key, value in internal.items()}}, default=str),
            env={**environment(), "HOME": str(self._directory)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert ended.stdout, ended.stderr
        result: dict[str, Any] = json.loads(ended.stdout)
        assert ended.returncode == bool(result.get("failed"))
        return result
