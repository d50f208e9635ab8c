"""A terminal of its own: tmux (Debian package tmux), driven by its commands. Ends with its context."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.support.etcd_server import wait_for

LIMIT = 40.0  # seconds: a daemon starts meanwhile, on a busy machine


class Terminal:
    """A shell at a prompt in a window of this size."""

    def __init__(self, width: int = 80, height: int = 24, environment: dict[str, str] | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="csnap-tmux-")
        self._socket = str(Path(self._directory.name) / "tmux")
        self._size = (width, height)
        self._environment = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
        for name in ("TMUX", "NO_COLOR", "COLUMNS", "LINES"):
            if name not in (environment or {}):
                self._environment.pop(name, None)

    def __enter__(self) -> Terminal:
        width, height = self._size
        shell = ("env", "PS1=$ ", "ENV=", "sh")
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), *shell)
        self.wait("$")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.screen())
        self._tmux("kill-server")
        self._directory.cleanup()

    def type(self, text: str) -> None:
        """Literally, then Enter."""
        self.keys("-l", text)
        self.keys("Enter")

    def keys(self, *names: str) -> None:
        self._tmux("send-keys", *names)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, colours: bool = False) -> str:
        """What stands on the screen, as lines without blanks at their ends."""
        return self._tmux("capture-pane", "-p", *(("-e",) if colours else ()))

    def flag(self, name: str) -> str:
        """A format of tmux, like alternate_on, cursor_flag."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").strip()

    def wait(self, text: str, gone: bool = False) -> str:
        """Return the screen once it shows ``text``, or does not any more."""
        wait_for(lambda: (text in self.screen()) is not gone, f"{text!r} {'gone' if gone else 'shown'}", LIMIT)
        return self.screen()

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, *arguments]
        ended = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=LIMIT)
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout
