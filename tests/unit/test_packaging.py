"""What is installed is what was pinned, and README's examples are true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from snapd.config import load

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; .*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def lock(name: str) -> dict[str, Version]:
    """Return package -> version of a lock; every line of it must be a pin with a hash, or a comment."""
    text = (ROOT / "requirements" / name).read_text()
    rest = re.sub(r"^ *#.*\n", "", PINNED.sub("", text), flags=re.MULTILINE)
    assert rest.strip() == ""
    return {package: Version(version) for package, version, _ in PINNED.findall(text)}


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (PROJECT["project"]["dependencies"], "run.txt"),
        (PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"], "dev.txt"),
        (PROJECT["dependency-groups"]["build"] + PROJECT["build-system"]["requires"], "build.txt"),
    ],
    ids=["run", "dev", "build"],
)
def test_every_dependency_is_locked_at_a_version_that_the_project_allows(wanted: list[str], name: str) -> None:
    """pyproject.toml was not changed without the lock."""
    locked = lock(name)
    for requirement in map(Requirement, wanted):
        assert locked[requirement.name] in requirement.specifier


def test_the_developer_runs_what_a_host_runs() -> None:
    """dev.txt has every package of run.txt, in the same version."""
    assert lock("run.txt").items() <= lock("dev.txt").items()


@pytest.mark.parametrize("name", ["debian-demo.txt", "debian-test.txt"])
def test_every_debian_package_has_a_reason(name: str) -> None:
    """One package a line, sorted, with the reason behind it."""
    lines = [line for line in (ROOT / "tools" / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+ +# .+", line) for line in lines)
    assert lines == sorted(lines)


def test_the_configuration_in_the_readme_is_accepted(tmp_path: Path) -> None:
    """A newcomer may copy it."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "vmstore.toml").write_text("".join(blocks))
    assert load(tmp_path / "vmstore.toml").volume.name == "vmstore"


def test_the_links_in_the_documents_lead_somewhere() -> None:
    """No document was renamed under another's feet."""
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
