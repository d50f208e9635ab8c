"""Two thousand histories, and that each is exactly one.

Histories are played in processes of their own, with hashes that are the same every time: sets of names are walked in
the order of their hashes, and a history is to be the same wherever it is replayed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SEEDS = 2000
JOBS = 2


def simulate(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.sim", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(1200)  # 100 s on two idle cores
def test_two_thousand_histories() -> None:
    """No promise is broken under any fault: each failing seed is printed with the command that replays it."""
    share = SEEDS // JOBS
    ranges = [f"{job * share}-{(job + 1) * share - 1}" for job in range(JOBS)]
    processes = [simulate("--seeds", each, "--keep-going") for each in ranges]
    outputs = [process.communicate()[0] for process in processes]
    for output in outputs:
        print(output)
    assert [process.returncode for process in processes] == [0] * JOBS


@pytest.mark.parametrize("seed", [7, 98, 1044])
def test_a_seed_is_one_history(seed: int) -> None:
    """Played twice, told and untold, in two processes: the same to the last random number."""
    told, untold = simulate("--seed", str(seed), "--trace"), simulate("--seed", str(seed))
    digests = [process.communicate()[0].splitlines()[-1] for process in (told, untold)]
    assert digests[0].startswith("digest ")
    assert digests[0] == digests[1]
