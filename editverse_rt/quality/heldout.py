"""Held-out edits that a bundle carries with their right answers, and the rule by which a result is judged.

`heldout.npz` is written by `export/write_heldout.py`: an array for each clip, named `<edit>/<input>` or
`<edit>/target`, and the rest as JSON in `facts`. The rule's numbers are data, like the edits: the reference
that judges by them (`reference/nano/heldout.py`) is not here.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.errors import BundleError
from editverse_rt.fields import Fields
from editverse_rt.media.frames import Frames

__all__ = ["HELDOUT_FILE", "HeldoutEdit", "Rule", "is_right", "load_heldout", "measure_psnr_db"]

HELDOUT_FILE = "heldout.npz"


@dataclass(frozen=True, eq=False)
class HeldoutEdit:
    """One edit.

    inputs: clips uint8 [T, H, W, 3] by the names of the prompt's tags. source: the name of the input that is
    edited. target: the right answer, in the shape of a result.
    """

    task: str
    prompt: str
    inputs: dict[str, Frames]
    source: str
    target: Frames


@dataclass(frozen=True)
class Rule:
    """When a result is right.

    changed_levels: a pixel had to change when the right answer differs from the source by more in a channel.
    min_preserved_db: what the other pixels have to reach. min_region_share: they are not judged when they are
    a smaller share of the clip.
    """

    changed_levels: int
    min_preserved_db: float
    min_region_share: float


def load_heldout(bundle: Bundle) -> tuple[tuple[HeldoutEdit, ...], Rule] | None:
    """The edits of a verified bundle, or None if it carries none. Raises BundleError for a file of others."""
    if all(file.path != HELDOUT_FILE for file in bundle.spec.files):
        return None
    path = bundle.root / HELDOUT_FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            clips = {name: arrays[name] for name in arrays.files}
        facts = json.loads(bytes(clips.pop("facts")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path} holds no held-out edits ({error})", hint="write it again", code="bundle.field"
        ) from error
    fields = Fields(facts, str(path), "", fix="write it with python -m export.write_heldout")
    rule = fields.child("rule")
    found = Rule(
        changed_levels=rule.integer("changed_levels", 0),
        min_preserved_db=rule.positive_number("min_preserved_db"),
        min_region_share=rule.positive_number("min_region_share"),
    )
    edits = tuple(_read_edit(entry, clips, i) for i, entry in enumerate(fields.children("edits")))
    if not edits:
        fields.refuse("edits", [], "one edit or more")
    return edits, found


def is_right(edit: HeldoutEdit, result: Frames, rule: Rule) -> bool:
    """Whether a result is nearer to the right answer than to the source where it had to change, and near
    enough to the right answer elsewhere.

    Raises ValueError for a result of another shape than the right answer's.
    """
    if result.shape != edit.target.shape:
        raise ValueError(f"the result is {result.shape}; the right answer is {edit.target.shape}")
    source = edit.inputs[edit.source]
    changed = np.abs(source.astype(np.int16) - edit.target).max(-1) > rule.changed_levels
    if changed.any():
        to_answer = measure_psnr_db(result, edit.target, changed)
        if to_answer <= measure_psnr_db(result, source, changed):
            return False
    if (~changed).mean() < rule.min_region_share or changed.all():
        return True
    return measure_psnr_db(result, edit.target, ~changed) >= rule.min_preserved_db


def measure_psnr_db(found: Frames, expected: Frames, where: NDArray[np.bool_] | None = None) -> float:
    """PSNR in dB over the pixels of `where` ([T, H, W], at least one) or all; 99 at most."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    error = float((difference**2 if where is None else difference[where] ** 2).mean())
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))


def _read_edit(fields: Fields, clips: dict[str, NDArray[Any]], index: int) -> HeldoutEdit:
    names = [str(name) for name in fields.array("inputs")]

    def clip(name: str) -> Frames:
        found = clips.get(f"{index}/{name}")
        if found is None or found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3:
            fields.refuse("inputs", name, "a clip uint8 [T, H, W, 3] in the file")
        return found

    edit = HeldoutEdit(
        task=fields.string("task"),
        prompt=fields.string("prompt"),
        inputs={name: clip(name) for name in names},
        source=fields.string("source"),
        target=clip("target"),
    )
    fields.finish()
    if edit.source not in edit.inputs or edit.inputs[edit.source].shape != edit.target.shape:
        fields.refuse("source", edit.source, "one of the inputs, of the right answer's shape")
    return edit
