"""``python -m snapd.cli``."""

import sys

from snapd.cli.main import main

sys.exit(main())
