"""A job as its two interfaces show it: the native one, and OpenAI's video."""

from __future__ import annotations

from typing import Any

from editverse_rt.serve.dispatcher import Dispatcher
from editverse_rt.serve.job import FINISHED, Job
from editverse_rt.serve.problems import error_json

__all__ = ["estimate_json", "native_job", "native_jobs", "video_json"]


async def native_job(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """What `GET /v1/jobs/{id}` answers."""
    queued = await dispatcher.do(dispatcher.store.queued) if job.state == "queued" else []
    return _native(dispatcher, job, queued, await _eta_s(dispatcher, job))


async def native_jobs(dispatcher: Dispatcher, jobs: list[Job]) -> list[dict[str, Any]]:
    """Several jobs, with one look at the queue."""
    queued = await dispatcher.do(dispatcher.store.queued)
    return [_native(dispatcher, job, queued, await _eta_s(dispatcher, job)) for job in jobs]


async def _eta_s(dispatcher: Dispatcher, job: Job) -> float | None:
    """Seconds until the job is done, as far as is known."""
    run = dispatcher.live.get(job.id)
    if job.state == "in_progress" and run is not None:
        return run.left_s(dispatcher.speeds)
    if job.state != "queued":
        return None
    wait_s = await dispatcher.wait_seconds(ahead_of=job)
    own_s = dispatcher.expected_seconds(job.model, job.estimate)
    return None if wait_s is None or own_s is None else wait_s + own_s


def _native(dispatcher: Dispatcher, job: Job, queued: list[Job], eta_s: float | None) -> dict[str, Any]:
    run = dispatcher.live.get(job.id) if job.state == "in_progress" else None
    progress = 1.0 if job.state == "completed" else 0.0 if run is None else run.progress
    ahead = [i for i, other in enumerate(queued) if other.id == job.id]
    return {
        "object": "job",
        "id": job.id,
        "model": job.model,
        "state": job.state,
        "phase": None if run is None else run.phase,
        "step": run.step
        if run is not None
        else (job.estimate["num_inference_steps"] if progress == 1 else 0),
        "num_steps": job.estimate["num_inference_steps"],
        "window": run.window if run is not None else (job.num_windows - 1 if progress == 1 else 0),
        "num_windows": job.num_windows,
        "progress": round(progress, 4),
        "queue_position": ahead[0] if ahead else None,
        "eta_s": None if eta_s is None else round(eta_s, 2),
        "is_cancelling": job.is_cancelling and job.state == "in_progress",
        "attempts": job.runs,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": dispatcher.store.expires_at(job),
        "format": job.format,
        "request": {**job.request, **({"inputs": _inputs(job)} if job.inputs else {})},
        "result": _result(job),
        "notices": (job.result or {}).get("notices", []),
        "error": None if job.error is None else error_json(job.error, 500)["error"],
    }


def _inputs(job: Job) -> dict[str, Any]:
    origins = job.extra.get("inputs_from", {})
    return {
        name: {"bytes": stored.num_bytes, "sha256": stored.sha256, **origins.get(name, {})}
        for name, stored in job.inputs.items()
    }


def _result(job: Job) -> dict[str, Any] | None:
    result = job.result
    if result is None or job.state != "completed":
        return None
    names = ("type", "bytes", "sha256", "width", "height", "num_frames", "fps", "seconds", "timings")
    return {
        **{name: result[name] for name in names},
        "has_source": "source" in result["files"],
    }


def estimate_json(
    dispatcher: Dispatcher, answer: dict[str, Any], model: str, wait_s: float | None
) -> dict[str, Any]:
    """What a dry run answers."""
    estimate = answer["estimate"]
    seconds = dispatcher.expected_seconds(model, estimate)
    return {
        "object": "estimate",
        "model": model,
        "format": answer["format"],
        "size": f"{estimate['width']}x{estimate['height']}",
        "num_frames": estimate["num_frames"],
        "fps": estimate["fps"],
        "schedule": estimate["schedule"],
        "num_inference_steps": estimate["num_inference_steps"],
        "memory_bytes": estimate["memory_bytes"],
        "flops": sum(estimate["flops"].values()),
        "seconds": None if seconds is None else round(seconds, 2),
        "wait_s": None if wait_s is None else round(wait_s, 2),
        "prompt": answer["request"]["prompt"],
    }


def video_json(dispatcher: Dispatcher, job: Job) -> dict[str, Any]:
    """The job as OpenAI's video; a cancelled one has failed with the code `cancelled`."""
    run = dispatcher.live.get(job.id)
    state = {"cancelled": "failed", "expired": "completed" if job.error is None else "failed"}.get(
        job.state, job.state
    )
    error = None
    if job.error is not None:
        error = {"code": job.error["code"], "message": job.error["message"]}
    elif job.state == "cancelled":
        error = {"code": "cancelled", "message": "cancelled by its caller"}
    estimate, expires_at = job.estimate, dispatcher.store.expires_at(job)
    is_done = job.state in FINISHED and state == "completed"
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": state,
        "progress": 100 if is_done else int(100 * run.progress) if run is not None else 0,
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if is_done and job.finished_at is not None else None,
        "expires_at": None if expires_at is None else int(expires_at),
        "size": f"{estimate['width']}x{estimate['height']}",
        "seconds": f"{estimate['num_frames'] / estimate['fps']:g}",
        "prompt": job.request["prompt"],
        "remixed_from_video_id": job.extra.get("remixed_from"),
        "error": error,
    }
