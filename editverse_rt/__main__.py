"""The command `editverse-rt`, also as `python -m editverse_rt`.

Libraries take a second to load. Ctrl-C in that second ends the program as it does later, with one line.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

__all__ = ["main"]

EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line and return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    from editverse_rt.commands.main import main as run

    return run(on_loaded=lambda: signal.signal(signal.SIGINT, before))


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End while libraries are being loaded: an exception would be raised anywhere inside them."""
    with suppress(OSError):
        os.write(2, b"editverse-rt: error: stopped by Ctrl-C; nothing was written\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
