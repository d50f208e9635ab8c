"""What a dashboard is said in: panels, their units and limits, and the queries that recur.

``SEL`` in an expression stands for the dashboard's variables. Every panel says what is normal: whoever looks at it at
3 a.m. sees it for the first time. Limits are those of the alerts that the panel names, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

SECONDS, BYTES, RATE, SHARE, BYTE_RATE, NUMBER = "s", "bytes", "ops", "percentunit", "Bps", "short"
GREEN, YELLOW, RED = "green", "yellow", "red"

Step = tuple[float | None, str]
"""From this value on (None: from below all) it has this colour."""
PLAIN: tuple[Step, ...] = ((None, GREEN),)
NONE_AT_ALL: tuple[Step, ...] = ((None, GREEN), (1, RED))
"""Of things counted, the first is one too many."""

Query = tuple[str, str]
"""Expression and legend."""


@dataclass(frozen=True, slots=True)
class Panel:
    """``normal``: what is seen while all is well. ``alerts``: those that look at the same; it links to their sections.

    ``low``, ``high``: ends of the axis. ``empty``: what is shown when there is nothing.
    """

    title: str
    unit: str
    normal: str
    queries: tuple[Query, ...]
    alerts: tuple[str, ...] = ()
    steps: tuple[Step, ...] = PLAIN
    low: float | None = 0
    high: float | None = None
    empty: str = ""
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``depth``: how many of the variables select. ``rows``: the panels, in the order of the story."""

    name: str
    title: str
    depth: int
    rows: tuple[tuple[Panel, ...], ...]


def graph(
    title: str,
    unit: str,
    normal: str,
    *queries: Query,
    alerts: tuple[str, ...] = (),
    steps: tuple[Step, ...] = PLAIN,
    low: float | None = 0,
    high: float | None = None,
) -> Panel:
    """Lines over time; the axis begins at 0 if it is not said otherwise, so that heights compare."""
    return Panel(title, unit, normal, queries, alerts, steps, low, high)


def stat(
    title: str,
    normal: str,
    *queries: Query,
    alerts: tuple[str, ...] = (),
    steps: tuple[Step, ...] = PLAIN,
    empty: str = "none",
) -> Panel:
    """Numbers of now, in colour."""
    return Panel(title, NUMBER, normal, queries, alerts, steps, None, None, empty, "stat")


def rate(name: str, by: str, matchers: str = "") -> str:
    return f"sum by ({by}) (rate({name}{{SEL{matchers}}}[$__rate_interval]))"


def quantile(q: float, name: str, by: str, matchers: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', f'{by}, le', matchers)})"


def mean(name: str, by: str) -> str:
    return f"{rate(f'{name}_sum', by)} / {rate(f'{name}_count', by)}"


VOLUME = "cluster, volume"
AT_VOLUME, AT_HOST, AT_SNAPSHOT = "{{cluster}}/{{volume}}", "{{host}}", "{{snapshot}}"

FILL_STEPS: tuple[Step, ...] = ((None, GREEN), (0.8, YELLOW), (0.95, RED))
FULL_IN_STEPS: tuple[Step, ...] = ((None, RED), (3600, GREEN))
LEASE_STEPS: tuple[Step, ...] = ((None, RED), (0.5, GREEN))
SLOW_LOCK_STEPS: tuple[Step, ...] = ((None, GREEN), (1, YELLOW))
STUCK_STEPS: tuple[Step, ...] = ((None, GREEN), (15, RED))
REREAD_STEPS: tuple[Step, ...] = ((None, GREEN), (20, YELLOW))

FILL_NORMAL = "Grows while the origin is written, at most to 80 %. At 100 % the snapshot and all older ones are lost."
FULL_IN_NORMAL = (
    "At the rate of the last 30 minutes. No line while it does not grow; more than the time the snapshot is for."
)
OLDEST_WAIT_NORMAL = "0, with peaks below a second. Above the lease's TTL a holder hangs, or is dead and not fenced."
LOCK_WAIT_NORMAL = (
    "Some milliseconds where hosts share regions, no line where they do not. Above 1 s look for the holder."
)
OLDEST_REQUEST_NORMAL = "Below a second. If the disk's line grows with it, it is the disk; if not, a lock or the lease."
ERRORS_NORMAL = "0. Every one was seen by a client."
