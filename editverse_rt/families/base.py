"""What a model family says: how a request becomes a sequence, which texts are encoded, what the clean rows
are."""

from __future__ import annotations

from typing import Protocol

from editverse_rt.backends import Array
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.media.frames import Frames
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.inputs import Footage
from editverse_rt.request.laid_out import LaidOutRequest
from editverse_rt.stages import Run

__all__ = ["Family"]


class Family(Protocol):
    """The rules of one family. A host asks it three things; everything else is the same for all."""

    @property
    def name(self) -> str: ...

    def lay_out(self, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> LaidOutRequest:
        """The request in integers, now that its clips were read. Raises RequestError."""
        ...

    def go_on(
        self, spec: BundleSpec, checked: CheckedRequest, footage: Footage, before: Frames
    ) -> tuple[Footage, Frames | None]:
        """How a window begins where the one before ends: its clips, and the frames that it has to begin with.

        before: the last `shared_frames` frames of the result so far, uint8 [T, H, W, 3].
        """
        ...

    def encode_known(self, run: Run, spec: BundleSpec, frames: Frames) -> Array:
        """Noisy rows float32 [Lk, P] of frames of the result."""
        ...

    def texts(self, checked: CheckedRequest) -> list[tuple[int, ...]]:
        """Token ids of each text to encode; the branches of the laid-out request name them by index."""
        ...

    def encode_clean(self, run: Run, spec: BundleSpec, checked: CheckedRequest, footage: Footage) -> Array:
        """The clean rows float32 [Lc, Pc]: what the transformer sees of the inputs."""
        ...
