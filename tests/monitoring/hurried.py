"""The rules as the live tests use them: time runs faster in them, and nothing else is changed.

Every duration in a rule (``for:``, a range ``[5m]``, an ``offset``) is divided by FASTER. It is not less than SHORTEST,
so that a range has samples of some scrapes, one a second, and not more than LONGEST, so that no test waits an hour.
Thresholds stay: what the rules call slow, stuck or almost full has to happen.
"""

from __future__ import annotations

import re

FASTER = 30
SHORTEST, LONGEST = 5, 30  # seconds
SECONDS = {"s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(?<=for: )(\d+)([smh])$|(?<=\[)(\d+)([smh])(?=\])|(?<=offset )(\d+)([smh])\b", re.MULTILINE)


def hurried(rules: str) -> str:
    """Return the rules with their durations shortened."""

    def shorter(match: re.Match[str]) -> str:
        number, unit = [group for group in match.groups() if group is not None]
        return f"{min(max(int(number) * SECONDS[unit] // FASTER, SHORTEST), LONGEST)}s"

    return DURATION.sub(shorter, rules)
