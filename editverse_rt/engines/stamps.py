"""Stamps: that the plans of a folder were verified on a GPU, with the report that says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from editverse_rt.engines.manifest import BUILD_AGAIN, EngineSet
from editverse_rt.errors import BackendError
from editverse_rt.fields import read_json
from editverse_rt.files import write_json

__all__ = ["is_verified", "write_stamp"]

STAMP = "verified.json"


def write_stamp(engines: EngineSet, gpu: str, quality: Mapping[str, object]) -> Path:
    """Note that these plans were verified on a GPU, with the quality report that says so."""
    plans = {plan.file: plan.sha256 for plan in engines.plans}
    return write_json(engines.folder / STAMP, {"gpu": gpu, "plans": plans, "quality": dict(quality)})


def is_verified(engines: EngineSet, gpu: str) -> bool:
    """Whether a stamp says that just these plans were verified on that GPU."""
    plans = {plan.file: plan.sha256 for plan in engines.plans}
    try:
        stamp = read_json(engines.folder / STAMP, error=BackendError, fix=BUILD_AGAIN)
    except BackendError:
        return False
    return isinstance(stamp, dict) and stamp.get("gpu") == gpu and stamp.get("plans") == plans
