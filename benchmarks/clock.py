"""Time: warm-up, the clock, waiting for a device, and taking turns so that a busy machine hits all alike."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

__all__ = ["Sample", "Timing", "take_turns", "time_call", "wait_for_device"]


@dataclass(frozen=True)
class Sample:
    """One call: seconds of the wall clock, and CPU seconds of all threads of this process.

    Where other work shares the cores, only the second says something, and only beside one taken in turn.
    """

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Timing:
    """All calls of one kind, in order. first: the very first, with everything that is made only once."""

    first: Sample
    samples: tuple[Sample, ...]

    def median_of(self, clock: str) -> float:
        """The median in seconds; clock is "wall_s" or "cpu_s"."""
        return float(median(getattr(sample, clock) for sample in self.samples))

    def spread_of(self, clock: str) -> tuple[float, float]:
        """The first and the third quartile in seconds."""
        low, high = np.percentile([getattr(sample, clock) for sample in self.samples], [25, 75])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"first_wall_s": self.first.wall_s, "first_cpu_s": self.first.cpu_s}
        for clock in ("wall_s", "cpu_s"):
            facts[clock] = self.median_of(clock)
            facts[f"{clock}_quartiles"] = list(self.spread_of(clock))
        return {**facts, "repeats": len(self.samples)}


def wait_for_device(backend: str) -> Callable[[], None]:
    """What to call so that a clock sees the end of the work: nothing for a CPU, else CUDA's whole device.

    Each runner has streams of its own, which an event on one stream would not see; hence the device.
    Raises ImportError where a GPU's backend is named and cuda-python is not installed.
    """
    if backend.endswith("-cpu"):
        return lambda: None
    cuda = importlib.import_module("cuda.bindings.runtime")

    def wait() -> None:
        (error,) = cuda.cudaDeviceSynchronize()
        if int(error) != 0:
            raise RuntimeError(f"cudaDeviceSynchronize gave {error}; expected success")

    return wait


def time_call(call: Callable[[], Any], wait: Callable[[], None] = lambda: None) -> tuple[Sample, Any]:
    """Time one call; returns its result as well."""
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wait()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu), result


def take_turns(
    calls: Mapping[str, Callable[[], Sample]], *, repeats: int, warm_up: int = 1, max_s: float = float("inf")
) -> dict[str, Timing]:
    """Time each call `repeats` times, A B A B; the first `warm_up` rounds count as warm-up.

    calls: each does its work once and says what it took. max_s: no further round is begun after so many
    seconds once there are three. Raises ValueError for repeats or warm_up below 1.
    """
    if repeats < 1 or warm_up < 1:
        raise ValueError(f"repeats is {repeats} and warm_up {warm_up}; give at least 1 of each")
    begin = time.monotonic()
    taken: dict[str, list[Sample]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        if turn >= warm_up + 3 and time.monotonic() - begin > max_s:
            break
        for name, call in calls.items():
            taken[name].append(call())
    return {name: Timing(samples[0], tuple(samples[warm_up:])) for name, samples in taken.items()}
