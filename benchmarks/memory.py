"""Memory of a whole process, as the system counts it; not what an allocator believes."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

__all__ = ["current_bytes", "forget_peak", "peak_bytes"]

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The largest resident memory of this process so far, or since `forget_peak`."""
    if _STATUS.exists():
        # Not getrusage: what it says of a child begins with the memory of the parent that forked it.
        return _status_bytes("VmHWM")
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def current_bytes() -> int:
    """Resident memory now; where the system does not say it, the peak."""
    return _status_bytes("VmRSS") if _STATUS.exists() else peak_bytes()


def forget_peak() -> bool:
    """Begin to look for the peak anew; says whether the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{_STATUS} has no {field}; expected it of Linux")
    return int(match[1]) * 1024
