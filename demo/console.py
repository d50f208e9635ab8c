"""What the demo prints: steps with the time that has passed, coloured on a terminal only."""

from __future__ import annotations

import sys
import time

_BOLD, _GREEN, _RED, _DIM, _PLAIN = "1", "32", "31", "2", "0"


class Console:
    """Prints to standard output, line by line."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._coloured = sys.stdout.isatty()

    def _paint(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[{_PLAIN}m" if self._coloured else text

    def title(self, text: str) -> None:
        print(self._paint(_BOLD, text), flush=True)

    def step(self, text: str) -> None:
        """Something begins or has happened."""
        print(f"{self._paint(_DIM, f'{time.monotonic() - self._begun:5.1f} s')}  {text}", flush=True)

    def detail(self, text: str) -> None:
        """Something to look at, perhaps several lines."""
        for line in text.splitlines():
            print(f"         {line}", flush=True)

    def proof(self, held: bool, text: str) -> None:
        """Something that was claimed and looked at."""
        print(f"         {self._paint(_GREEN, 'ok') if held else self._paint(_RED, 'WRONG')}  {text}", flush=True)
