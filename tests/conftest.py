"""What holds for every test run: with EDITVERSE_TEST_INSTALLED=1, the wheel is what is tested."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Programs started by a test hear Ctrl-C where the run itself does not, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop a run that claims to test the wheel but imports the source tree, or could import PyTorch."""
    if os.environ.get("EDITVERSE_TEST_INSTALLED") != "1":
        return
    spec = importlib.util.find_spec("editverse_rt")
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    if origin is None or "site-packages" not in origin.parts:
        pytest.exit(f"editverse_rt was found at {origin}, not in site-packages", returncode=4)
    for name in ("torch", "onnx"):
        if importlib.util.find_spec(name) is not None:
            pytest.exit(f"{name} can be imported here; the wheel is to be tested without it", returncode=4)
