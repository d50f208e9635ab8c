"""The golden screens of ``csnap top``, one file each in ``screens/``.

``python -m tests.terminal.screens`` draws them anew: look at what changed before it is committed.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from rich.console import Console

from snapd.cli.top.model import Model
from snapd.cli.top.render import draw
from tests.support.top_scenes import SCENES

FOLDER = Path(__file__).with_name("screens")
SIZES = ((80, 24), (120, 40))


def drawn(model: Model, width: int, height: int | None, order: str = "trouble", colour: bool = False) -> str:
    """One frame as a terminal of this size gets it, times of day in UTC."""
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        system = "standard" if colour else None
        console = Console(
            file=io.StringIO(), width=width, height=height, force_terminal=colour, color_system=system,
            markup=False, emoji=False, highlight=False, _environ={"TERM": "xterm"},
        )  # fmt: skip
        with console.capture() as captured:
            console.print(draw(model, width, height, order))
        return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())
    finally:
        if zone is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = zone
        time.tzset()


def golden(scene: str, width: int, height: int) -> Path:
    return FOLDER / f"{scene}-{width}x{height}.txt"


if __name__ == "__main__":
    for name, make in SCENES.items():
        for size in SIZES:
            golden(name, *size).write_text(drawn(make(), *size))
