"""``python -m demo``: exit 0 only if everything that is claimed held; 130 after Ctrl-C. Leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

from demo.console import Console
from demo.host import CommandFailed
from demo.stage import Interrupts, Stage, StageError
from demo.story import Story

INTERRUPTED = 130


def main() -> int:
    """Play the story on a stage that is always cleared."""
    interrupts = Interrupts()
    console = Console()
    with interrupts.held():
        stage = Stage(interrupts)
    try:
        try:
            good = Story(stage, console).tell()
        finally:
            interrupts.hold()
    except KeyboardInterrupt:
        print("interrupted: cleaning up", flush=True)
        return INTERRUPTED
    except (StageError, CommandFailed, OSError, subprocess.TimeoutExpired) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        stage.show_logs()
        return 1
    finally:
        stage.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
