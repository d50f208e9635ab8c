"""The bench that measures what counting costs takes out what is there."""

from __future__ import annotations

import compileall
import shutil
from pathlib import Path

import pytest

from bench.metrics_cost import REMOVED, ROOT, take_out


def test_what_is_taken_out_is_in_the_source(tmp_path: Path) -> None:
    """Every piece is found, and what is left is Python: else the bench would compare something with itself."""
    package = tmp_path / "snapd"
    shutil.copytree(ROOT / "snapd", package, ignore=shutil.ignore_patterns("__pycache__"))
    take_out(package)
    for name in {name for name, _, _ in REMOVED}:
        assert compileall.compile_file(package / name, quiet=1)
    with pytest.raises(LookupError, match=r"lots|transmission"):
        take_out(package)
