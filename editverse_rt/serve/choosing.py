"""Which waiting job a worker gets next."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from editverse_rt.serve.job import Job
from editverse_rt.serve.live import LiveRun
from editverse_rt.serve.process import WorkerProcess

__all__ = ["AGEING_S", "choose_next", "shape_of"]

AGEING_S = 30.0
"""A job that has waited this long goes before those of the shape that ran last."""


def shape_of(job: Job) -> tuple[object, ...]:
    """Jobs of one shape call graphs with the same lengths, which some backends do faster in a row."""
    estimate = job.estimate
    return (job.model, estimate["width"], estimate["height"], estimate["num_frames"], len(job.inputs))


def choose_next(
    queued: Sequence[Job],
    worker: WorkerProcess,
    live: Mapping[str, LiveRun],
    last_shape: tuple[object, ...] | None,
    now: float | None = None,
) -> Job | None:
    """The next of the waiting jobs (oldest first) for a worker, or None.

    Owners take turns: whoever has least running comes first. Among those, a job of the last shape comes before an
    older one that has not waited for AGEING_S. A job whose process died once runs alone, so that it takes no
    other with it. The next one waits until it fits the memory budget, and all behind it with it. A job that writes its
    files leaves the device to the next.
    """
    runs = [run for run in live.values() if run.worker is worker]
    running = [run.job for run in runs]
    num_busy = sum(run.phase != "write" for run in runs)
    models = {model["id"] for model in worker.models}
    mine = [job for job in queued if job.model in models]
    has_room = num_busy < worker.slots and len(runs) < 2 * worker.slots
    if not worker.is_up or not mine or not has_room or any(job.deaths for job in running):
        return None
    by_owner: dict[str, int] = {}
    for run in live.values():
        by_owner[run.job.owner] = by_owner.get(run.job.owner, 0) + 1
    least = min(by_owner.get(job.owner, 0) for job in mine)
    turn = [job for job in mine if by_owner.get(job.owner, 0) == least]
    chosen = turn[0]
    if (time.time() if now is None else now) - chosen.queued_at < AGEING_S:
        chosen = next((job for job in turn if shape_of(job) == last_shape), chosen)
    if chosen.deaths and running:
        return None
    budget = worker.options.limits.memory_budget_bytes
    held = worker.weight_bytes + sum(job.estimate["memory_bytes"] for job in running)
    fits = budget is None or not running or held + chosen.estimate["memory_bytes"] <= budget
    return chosen if fits else None
