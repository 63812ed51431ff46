"""Model families: the rules by which a request of each is laid out, found by the name in the bundle."""

from __future__ import annotations

from editverse_rt.families.base import Family
from editverse_rt.families.editverse import EditVerse
from editverse_rt.families.wan import Wan

__all__ = ["Family", "family_of"]

_FAMILIES: dict[str, Family] = {family.name: family for family in (EditVerse(), Wan())}


def family_of(name: str) -> Family:
    """The rules of a family that a bundle names; a bundle of another one does not load."""
    return _FAMILIES[name]
