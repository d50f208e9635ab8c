"""The terminal: the other screen, keys, resizing; and however this ends, the terminal is left as it was.

Keys are read unbuffered and without echo. Control-Z is not taken: it would give the shell a terminal in that state.
Signals arrive through a pipe that is waited on together with the keyboard and the sampler, so nothing polls.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console, RenderableType
from rich.control import Control
from rich.screen import Screen as Whole
from rich.text import Text

from snapd.cli.top.model import Model
from snapd.cli.top.render import ORDERS, draw
from snapd.cli.top.sampler import Observe, Sampler

WIDTH = 80
"""Of output that is no terminal, unless COLUMNS says otherwise."""

VSUSP = 10
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def make_console() -> Console:
    """Colour if standard output is a terminal that has some, and NO_COLOR is not set."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def is_full(console: Console) -> bool:
    """Whether there is a screen to draw on; else frames are printed one below the other."""
    return console.is_terminal and not console.is_dumb_terminal


def print_frame(console: Console, model: Model) -> None:
    """One frame as plain lines: no control codes but colour on a terminal, no blanks at line ends."""
    with console.capture() as captured:
        console.print(draw(model, console.width, None, keys=False))
    for line in captured.get().splitlines():
        print(line.rstrip(), flush=True)


class Screen:
    """``run`` until a key or a signal ends it."""

    def __init__(self, console: Console, observe: Observe, interval: float) -> None:
        self._console = console
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sampler = Sampler(observe, interval, self._woken)
        self._order = 0
        self._ended = False

    def run(self) -> None:
        """Raises Refused if this user may not ask."""
        with _signals(self._end) as signals, _keyboard() as keys, self._console.screen(hide_cursor=True):
            self._sampler.start()
            self._turns(signals, keys)
        self._sampler.stop()
        if self._sampler.refused is not None:
            raise self._sampler.refused

    def _turns(self, signals: int, keys: int | None) -> None:
        poll = select.poll()
        for fd in (self._wake, signals, *(() if keys is None else (keys,))):
            poll.register(fd, select.POLLIN)
        self._draw()
        while not self._ended:
            for fd, _ in poll.poll():
                if fd == keys:
                    if not self._keys(os.read(fd, 64)):
                        poll.unregister(fd)
                else:
                    os.read(fd, 64)
            if self._sampler.refused is not None:
                return
            self._draw()

    def _draw(self) -> None:
        """Every line of the window, in one write: nothing of the frame before shows through, and nothing flickers."""
        with self._console as console:
            console.control(Control.home())
            console.print(Whole(self._frame()), end="")

    def _keys(self, typed: bytes) -> bool:
        """False: the keyboard is gone."""
        for key in typed.decode("ascii", "replace").lower():
            if key in "q\x03\x04":
                self._ended = True
            elif key == "s":
                self._order = (self._order + 1) % len(ORDERS)
            elif key == " ":
                self._sampler.now()
        return bool(typed)

    def _frame(self) -> RenderableType:
        model, silence = self._sampler.look()
        width, height = self._console.size
        if model is None:
            return Text(f"csnap top: {silence or 'asking the daemon'}\n\nq quit", overflow="ellipsis", no_wrap=True)
        return draw(model, width, height, ORDERS[self._order])

    def _woken(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile
            os.eventfd_write(self._wake, 1)

    def _end(self) -> None:
        self._ended = True


@contextlib.contextmanager
def _keyboard() -> Iterator[int | None]:
    """Standard input without echo, key by key; None if it is no terminal."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield None
        return
    tty.setcbreak(0, termios.TCSANOW)
    changed = termios.tcgetattr(0)
    changed[6][VSUSP] = b"\0"
    termios.tcsetattr(0, termios.TCSANOW, changed)
    try:
        yield 0
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _signals(end: Callable[[], None]) -> Iterator[int]:
    """A descriptor that becomes readable when the window has changed, or ``end`` has been called by a signal."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ended(number: int, frame: FrameType | None) -> None:
        end()

    before = {number: signal.signal(number, ended) for number in ENDING}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
