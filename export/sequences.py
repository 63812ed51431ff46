"""A transformer's rows as each family arranges them: how many a profile holds, and a small sequence to try.

EditVerse has text, clean and noisy rows and two marks for each clip in one sequence of L rows. Wan's text stands
beside the sequence, and the clean rows depend on the conditioning:

    none               there are none; L = Lg
    rows               those of a first frame, in the sequence; L = Lc + Lg
    channels, control  one beside each noisy row; L = Lc = Lg
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.planning.targets import Profile
from editverse_rt.request.layout import Grid, lay_out

__all__ = [
    "SAMPLE_GRID",
    "RowRange",
    "SampleRows",
    "most_noisy_rows",
    "most_tokens",
    "row_range",
    "sample_rows",
]

_MOST_CLIPS = 3
"""A request of three clips and the result is the longest that a profile provides for; so is one with three
reference pictures."""
_OPT_TEXT = 32
SAMPLE_GRID = Grid(2, 4, 5)
"""Latent frames, rows and columns of the sample."""
_SAMPLE_TEXT = 12


@dataclass(frozen=True)
class RowRange:
    """The least, the most likely and the largest size of each axis of a transformer: Lt, Lc, Lg, L."""

    low: dict[str, int]
    opt: dict[str, int]
    high: dict[str, int]


@dataclass(frozen=True)
class SampleRows:
    """A small sequence: layout int64 [L], positions int64 [L, 4], and the sizes of the other axes."""

    layout: NDArray[np.int64]
    positions: NDArray[np.int64]
    num_text: int
    num_clean: int
    num_noisy: int


def most_noisy_rows(spec: BundleSpec) -> int:
    """The most rows that a request makes anew: its longest result, with reference pictures where there are some."""
    frames = spec.geometry.count_latent_frames(spec.geometry.max_frames)
    return _rows_of(spec, frames + (_MOST_CLIPS if spec.conditioning == "control" else 0))


def most_tokens(spec: BundleSpec) -> int:
    """The longest sequence of the bundle."""
    if spec.family != "wan":
        # Its whole text, three clips and the result at their largest, each with two marks.
        return spec.tokenizer.max_tokens + (_MOST_CLIPS + 1) * (most_noisy_rows(spec) + 2)
    return most_noisy_rows(spec)


def row_range(spec: BundleSpec, profile: Profile) -> RowRange:
    """The sizes that one profile of a target holds."""
    return _range_of_grid(spec, profile) if spec.family == "wan" else _range_of_sequence(spec, profile)


def _rows_of(spec: BundleSpec, latent_frames: int) -> int:
    return latent_frames * (spec.geometry.max_area_px // spec.geometry.size_multiple**2)


def _range_of_sequence(spec: BundleSpec, profile: Profile) -> RowRange:
    patches = most_noisy_rows(spec)

    def split(total: int, text: int, share: float) -> dict[str, int]:
        text = min(text, total // 4)
        noisy = max(1, min(patches, int(share * (total - text - 2))))
        return {"Lt": text, "Lc": max(0, min(_MOST_CLIPS * patches, total - 3)), "Lg": noisy, "L": total}

    opt = split(profile.opt_tokens, _OPT_TEXT, 0.5)
    opt["Lc"] = max(0, opt["L"] - opt["Lt"] - opt["Lg"] - 4)
    high = split(profile.max_tokens, spec.tokenizer.max_tokens, 1.0)
    high["Lt"] = spec.tokenizer.max_tokens
    return RowRange({"Lt": 0, "Lc": 0, "Lg": 1, "L": 3}, opt, high)


def _range_of_grid(spec: BundleSpec, profile: Profile) -> RowRange:
    text, in_frame = spec.tokenizer.max_tokens, _rows_of(spec, 1)
    sizes = []
    for total, num_text in ((1, 1), (profile.opt_tokens, min(_OPT_TEXT, text)), (profile.max_tokens, text)):
        clean = 0
        if spec.conditioning == "rows" and total > 1:
            clean = min(in_frame, total - 1)
        elif spec.conditioning in ("channels", "control"):
            clean = total
        sizes.append({"Lt": num_text, "Lc": clean, "Lg": total, "L": total})
    low, opt, high = sizes
    if spec.conditioning == "rows":
        opt["Lg"] = opt["L"] - opt["Lc"]
    return RowRange(low, opt, high)


def sample_rows(spec: BundleSpec, grid: Grid = SAMPLE_GRID) -> SampleRows:
    """A small clip, with as many clean rows as the family puts beside it."""
    if spec.family != "wan":
        found = lay_out([_SAMPLE_TEXT - 1, grid, 1], grid)
        return SampleRows(found.layout, found.positions, _SAMPLE_TEXT, grid.num_patches, grid.num_patches)
    noisy, clean = grid.num_patches, grid.num_patches
    frames, layout = grid.frames, np.arange(noisy)
    if spec.conditioning == "none":
        clean = 0
    elif spec.conditioning == "rows":
        clean, frames = grid.rows * grid.columns, grid.frames + 1
        layout = np.concatenate([np.arange(noisy, noisy + clean), layout])
    axes = np.indices((1, frames, grid.rows, grid.columns), dtype=np.int64)
    positions = np.stack([axis.reshape(-1) for axis in axes], 1)
    return SampleRows(layout.astype(np.int64), positions, _SAMPLE_TEXT, clean, noisy)
