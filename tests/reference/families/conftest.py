"""Tiny Wan checkpoints with random weights, one folder for each pipeline, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from reference.checkpoint import make_random_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Read only: a test that changes a folder copies it."""
    root = tmp_path_factory.mktemp("wan")

    @lru_cache
    def make(name: str) -> Path:
        return make_random_checkpoint(name, root / name)

    return make
