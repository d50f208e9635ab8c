"""Numbers as people read them in narrow columns: three figures and a unit. None: "-"."""

from __future__ import annotations

UNKNOWN = "-"


def count(value: float | None) -> str:
    """A number or a rate: 0, 0.4, 17, 1.2k, 34M."""
    if value is None:
        return UNKNOWN
    if value < 10 and value != int(value):
        return f"{value:.1f}"
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def size(value: float | None) -> str:
    """Bytes: 0, 512B, 16K, 1.2M, 34G (binary)."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return "0"
    for unit in ("B", "K", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}{unit}" if unit != "B" and value < 9.95 else f"{value:.0f}{unit}"


def duration(seconds: float | None) -> str:
    """A latency or an age: 85us, 1.3ms, 240ms, 2.5s, 14m, 3.1h, 9d."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.000_9995:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 0.9995:
        value = seconds * 1e3
        return f"{value:.1f}ms" if value < 9.95 else f"{value:.0f}ms"
    for limit, length, unit in ((99.5, 1, "s"), (99.5 * 60, 60, "m"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / length
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    days = seconds / 86400
    return f"{days:.0f}d" if days < 999.5 else ">999d"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}%"


def bar(value: float | None, width: int) -> str:
    """A filled part of ``width`` signs that any terminal has."""
    filled = 0 if value is None else min(width, max(0, round(value / 100 * width)))
    return "[" + "#" * filled + "." * (width - filled) + "]"
