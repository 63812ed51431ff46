"""What the exporter asks of a model family, found by the class of the loaded checkpoint."""

from __future__ import annotations

from export.families.base import FamilyExport
from export.families.editverse import EditVerseExport
from export.families.wan import WanExport
from export.graphs import Graph
from reference.checkpoint import AnyCheckpoint
from reference.families.wan_checkpoint import WanCheckpoint

__all__ = ["FamilyExport", "build_graphs", "family_export"]


def family_export(checkpoint: AnyCheckpoint) -> FamilyExport:
    """How a checkpoint becomes a bundle."""
    return WanExport(checkpoint) if isinstance(checkpoint, WanCheckpoint) else EditVerseExport(checkpoint)


def build_graphs(checkpoint: AnyCheckpoint) -> dict[str, Graph]:
    """The graphs of a checkpoint's bundle. Modules are made when called for."""
    return family_export(checkpoint).graphs()
