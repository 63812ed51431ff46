"""`python -m editverse_rt` is `editverse-rt`."""

from __future__ import annotations

import sys

from editverse_rt.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
