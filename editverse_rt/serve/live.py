"""What is known of jobs that run: phase, step, time left; and the speeds that devices were seen to reach."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from editverse_rt.serve.job import PHASES, Job
from editverse_rt.serve.process import WorkerProcess

__all__ = ["LiveRun", "Speeds"]

_NEWEST_SHARE = 0.3
SILENT_STEPS = 10
UNKNOWN_FLOPS_PER_S = 1e9
"""What a device is taken to reach before it was measured: less than any does."""


@dataclass(eq=False)
class LiveRun:
    """A run: where it is, and what its process has told last. Times are of the monotonic clock."""

    job: Job
    worker: WorkerProcess
    phase: str = "read"
    step: int = 0
    window: int = 0
    begun_s: float = field(default_factory=time.monotonic)
    heard_s: float = field(default_factory=time.monotonic)
    phase_begun_s: float = field(default_factory=time.monotonic)
    stage_s: dict[str, float] = field(default_factory=dict)
    step_s: float | None = None
    cancelled_s: float | None = None
    is_blamed: bool = False
    """Its process was killed because this run told nothing."""
    is_ending: bool = False
    """Its end is being recorded; what its process tells after that is not believed."""

    @property
    def num_steps(self) -> int:
        return int(self.job.estimate["num_inference_steps"])

    def hear(self, phase: str, step: int, window: int = 0) -> None:
        """Take what the process tells."""
        now = time.monotonic()
        if window != self.window:
            self.window, self.step = window, 0
        if phase != self.phase:
            self.stage_s[self.phase] = self.stage_s.get(self.phase, 0.0) + now - self.phase_begun_s
            self.phase, self.phase_begun_s = phase, now
        if step > self.step and self.phase == "denoise":
            self.step_s = (now - self.phase_begun_s) / step
        self.step, self.heard_s = step, now

    def is_silent(self, expected_step_s: float | None, least_s: float) -> bool:
        """Whether its process has told nothing for so long that it must hang.

        That is the time of 10 steps, but least_s at least and the job's deadline at most. expected_step_s: by
        the learnt speed, None before there is one.
        """
        step_s = self.step_s or expected_step_s
        if step_s is None:
            steps = self.job.num_windows * max(1, self.num_steps)
            step_s = sum(self.job.estimate["flops"].values()) / steps / UNKNOWN_FLOPS_PER_S
        limit_s = max(least_s, min(SILENT_STEPS * step_s, self.job.deadline_s))
        return time.monotonic() - self.heard_s > limit_s

    @property
    def done_flops(self) -> float:
        """Operations that are done, by the estimate: those of earlier phases, and the steps' share of this one."""
        flops, at = self.job.estimate["flops"], PHASES.index(self.phase)
        if self.phase == "write":
            return float(sum(flops.values()))
        done = sum(flops.get(phase, 0) for phase in PHASES[:at])
        if self.phase == "denoise":
            done += flops["denoise"] * self.step / max(1, self.num_steps)
        # The estimate is of all windows; this window's share is added to those that are done.
        window = min(self.window, self.job.num_windows - 1)
        return float(done + window * sum(flops.values())) / self.job.num_windows

    @property
    def progress(self) -> float:
        """The share of the job's operations that is done; 1 only when its files are in place."""
        total = sum(self.job.estimate["flops"].values())
        return min(0.99, self.done_flops / total) if total else 0.0

    def left_s(self, speeds: Speeds) -> float | None:
        """Seconds to its end: by its own speed once it has made a step, before that by the learnt one."""
        total = float(sum(self.job.estimate["flops"].values()))
        left = total - self.done_flops
        if self.step_s is not None and self.num_steps:
            own = self.job.estimate["flops"]["denoise"] / self.job.num_windows / self.num_steps / self.step_s
            return left / own if own else None
        return speeds.seconds(self.worker.name, self.job.model, left)


class Speeds:
    """Operations a second by device and model, a moving average of what finished jobs reached."""

    def __init__(self, known: dict[str, float]) -> None:
        self._known = dict(known)

    def learn(self, device: str, model: str, flops: float, seconds: float) -> tuple[str, float] | None:
        """Take in a finished job; the name and the average that are to be kept."""
        if flops <= 0 or seconds <= 0:
            return None
        name, speed = f"{device}/{model}", flops / seconds
        before = self._known.get(name, speed)
        self._known[name] = (1 - _NEWEST_SHARE) * before + _NEWEST_SHARE * speed
        return name, self._known[name]

    def seconds(self, device: str, model: str, flops: float) -> float | None:
        """How long operations take there; None before anything was learnt."""
        speed = self._known.get(f"{device}/{model}")
        return None if not speed else flops / speed
