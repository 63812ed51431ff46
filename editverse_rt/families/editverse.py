"""EditVerse: text, images and videos in one interleaved sequence (paper sections 3.1 and 3.2).

Where the paper is silent, docs/architecture.md has the rules.
"""

from __future__ import annotations

import numpy as np

from editverse_rt.backends import Array
from editverse_rt.bundle.spec import BundleSpec, Geometry
from editverse_rt.media.frames import Frames
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.inputs import Footage
from editverse_rt.request.laid_out import Branch, LaidOutRequest
from editverse_rt.request.layout import Grid, lay_out
from editverse_rt.request.prompt import TextSegment
from editverse_rt.stages import Run, encode_clip

__all__ = ["EditVerse"]


class EditVerse:
    """Inputs are interleaved with the text; guidance's second branch leaves the text rows out."""

    name = "editverse"

    def lay_out(self, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> LaidOutRequest:
        """See `Family.lay_out`. The segment to be generated stands last, after the end of the sequence."""
        geometry, (height_px, width_px) = spec.geometry, checked.inputs.size
        counts = map(len, checked.ids)
        items: list[int | Grid] = [
            next(counts)
            if isinstance(segment, TextSegment)
            else _grid(geometry, footage.clips[segment.name].shape)
            for segment in checked.segments
        ]
        items.append(next(counts))
        target = _grid(geometry, (footage.num_frames, height_px, width_px))
        return LaidOutRequest.of(
            checked,
            footage,
            target=target,
            cond=Branch(0, lay_out(items, target)),
            uncond=Branch(None, lay_out(items, target, with_text=False)),
        )

    def texts(self, checked: CheckedRequest) -> list[tuple[int, ...]]:
        """One text: all segments in one call, so that a word sees the whole instruction."""
        return [tuple(i for ids in checked.ids for i in ids)]

    def go_on(
        self, spec: BundleSpec, checked: CheckedRequest, footage: Footage, before: Frames
    ) -> tuple[Footage, Frames | None]:
        """See `Family.go_on`: the same request, whose first frames are known."""
        return footage, before

    def encode_known(self, run: Run, spec: BundleSpec, frames: Frames) -> Array:
        """The patches of the frames."""
        return encode_clip(run, spec.geometry, frames)

    def encode_clean(self, run: Run, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> Array:
        """The patches of every clip, in the order of the instruction."""
        none = np.zeros((0, spec.geometry.clean_dim), np.float32)
        clips = [encode_clip(run, spec.geometry, footage.clips[name]) for name in checked.clip_names]
        return np.concatenate([none, *clips])


def _grid(geometry: Geometry, shape: tuple[int, ...]) -> Grid:
    rows, columns = shape[1] // geometry.size_multiple, shape[2] // geometry.size_multiple
    return Grid(geometry.count_latent_frames(shape[0]), rows, columns)
