"""The quick ones of the seeded bugs are caught, and all are still bugs of this code; ``make mutants`` has all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.loading import check


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies(mutant: Mutant) -> None:
    """Its text is found in the code, exactly once: a mutant that changes nothing would survive for no reason."""
    check(mutant)


@pytest.mark.timeout(600)
def test_the_quick_ones_are_caught() -> None:
    """Those that the battery catches within seconds."""
    command = [sys.executable, "-m", "tests.mutants", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
