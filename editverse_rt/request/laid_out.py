"""A request laid out in integers: what the graphs are called with, besides pixels."""

from __future__ import annotations

from dataclasses import dataclass

from editverse_rt.bundle.schedule import Schedule
from editverse_rt.planning.planner import Work
from editverse_rt.request.checked import CheckedRequest
from editverse_rt.request.inputs import Footage
from editverse_rt.request.layout import Grid, Layout
from editverse_rt.request.prompt import TextSegment, VisionSegment

__all__ = ["Branch", "LaidOutRequest"]


@dataclass(frozen=True, eq=False)
class Branch:
    """One of guidance's two branches. text: which of the encoded texts it takes, None for no text rows."""

    text: int | None
    layout: Layout


@dataclass(frozen=True, eq=False)
class LaidOutRequest:
    """What a request came to, before any graph ran.

    segments: the instruction in order. sources: what each input became, as (frames, height, width) in pixels.
    main: the input that the result follows, or None. target: what is solved for, in latent units. cond, uncond:
    the branches of guidance. num_kept: clean latent frames that stand before the solved ones in the result.
    num_dropped: leading latent frames that do not belong to it. start: the input that is noised to begin with.
    """

    segments: tuple[TextSegment | VisionSegment, ...]
    sources: dict[str, tuple[int, int, int]]
    main: str | None
    num_frames: int
    height_px: int
    width_px: int
    fps: float
    schedule: Schedule
    seed: int
    target: Grid
    cond: Branch
    uncond: Branch
    num_kept: int = 0
    num_dropped: int = 0
    start: str | None = None

    @classmethod
    def of(
        cls,
        checked: CheckedRequest,
        footage: Footage,
        *,
        target: Grid,
        cond: Branch,
        uncond: Branch,
        num_kept: int = 0,
        num_dropped: int = 0,
        start: str | None = None,
    ) -> LaidOutRequest:
        """A family's layout with what every family takes over from the request; the fields are the class's."""
        height_px, width_px = checked.inputs.size
        return cls(
            segments=checked.segments,
            sources={name: footage.clips[name].shape[:3] for name in checked.inputs.names},
            main=checked.inputs.main,
            num_frames=footage.num_frames,
            height_px=height_px,
            width_px=width_px,
            fps=footage.fps,
            schedule=checked.schedule,
            seed=checked.request.seed,
            target=target,
            cond=cond,
            uncond=uncond,
            num_kept=num_kept,
            num_dropped=num_dropped,
            start=start,
        )

    @property
    def work(self) -> Work:
        """What is computed, for the planner."""
        steps = self.schedule.num_inference_steps
        guided = self.schedule.table.num_evaluations - steps
        result = (self.num_frames, self.height_px, self.width_px)
        return Work(self.cond.layout.num_text, tuple(self.sources.values()), result, steps, guided)
