"""One mutant in a process of its own: ``python -m tests.mutants.hunt NAME`` prints ``caught: ...`` if it was."""

from __future__ import annotations

import sys

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.loading import apply


def by_simulator(mutant: Mutant) -> str:
    from tests.sim.play import play  # with the bug

    kinds = None if mutant.kinds is None else list(mutant.kinds)
    for seed in range(mutant.seeds):
        try:
            play(seed, None, kinds, mutant.fencing)
        except Exception as error:
            return f"simulator, seed {seed}: {type(error).__name__}: {str(error)[:150]}"
    return ""


def by_test(mutant: Mutant) -> str:
    failed = (
        pytest.main(["-q", "-x", "--no-header", "-p", "no:cacheprovider", mutant.by]) == pytest.ExitCode.TESTS_FAILED
    )
    return mutant.by if failed else ""


def main() -> int:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == sys.argv[1])
    apply(mutant)
    found = by_simulator(mutant) if mutant.by == "sim" else by_test(mutant)
    print(f"caught: {found}" if found else f"survived: {mutant.what}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
