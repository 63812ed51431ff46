"""The bundles of a worker: opened, and described for those who choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from editverse_rt.errors import RequestError
from editverse_rt.pipeline import Pipeline
from editverse_rt.quality.heldout import load_heldout

__all__ = ["describe_model", "open_pipelines"]

_MAX_PER_TASK = 2


def open_pipelines(bundles: Sequence[str], backend: str, device: int | None) -> dict[str, Pipeline]:
    """Pipelines by the names of their bundles, on a CPU with one thread each.

    Raises BundleError, BackendError, and RequestError for two bundles of one name.
    """
    pipelines: dict[str, Pipeline] = {}
    for bundle in bundles:
        # On a CPU several requests on one thread each do more than one on several.
        pipeline = Pipeline.open(bundle, backend, device=device, num_threads=1)
        name = pipeline.bundle.spec.name
        if name in pipelines:
            raise RequestError(
                f'two bundles are called "{name}"',
                hint="serve one of them, or rename the other in its bundle.json",
                code="serve.bundles",
                field="bundle",
            )
        pipelines[name] = pipeline
    return pipelines


def describe_model(pipeline: Pipeline) -> dict[str, Any]:
    """What `GET /v1/models` says of a bundle: what it can do, its limits, schedules, and prompts that work."""
    spec, info = pipeline.bundle.spec, pipeline.info()
    geometry = asdict(spec.geometry)
    del geometry["patch_dim"], geometry["clean_dim"], geometry["patch_size"], geometry["spatial_ratio"]
    return {
        "id": spec.name,
        "object": "model",
        "created": 0,
        "owned_by": "editverse-rt",
        "family": spec.family,
        "backend": info["backend"],
        "capabilities": {
            name: getattr(spec.capabilities, name)
            for name in ("generates", "edits", "negative_prompt", "strength")
        },
        "geometry": {"size_multiple": spec.geometry.size_multiple, **geometry},
        "schedules": [
            {
                "name": name,
                "default": name == spec.default_schedule,
                "num_inference_steps": schedule.num_inference_steps,
                "guidance_scale": schedule.guidance_scale,
            }
            for name, schedule in spec.schedules.items()
        ],
        "suggestions": _suggestions(pipeline),
    }


def _suggestions(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Prompts of the bundle's held-out edits, tasks that succeed most often first."""
    heldout = load_heldout(pipeline.bundle)
    if heldout is None:
        return []
    by_task = pipeline.bundle.spec.quality.get("by_task")
    rates = by_task if isinstance(by_task, dict) else {}
    found: list[dict[str, Any]] = []
    for edit in heldout[0]:
        same = [entry for entry in found if entry["task"] == edit.task]
        if len(same) < _MAX_PER_TASK and all(entry["prompt"] != edit.prompt for entry in same):
            rate = rates.get(edit.task, {}).get("success_rate")
            found.append(
                {"task": edit.task, "prompt": edit.prompt, "inputs": list(edit.inputs), "success_rate": rate}
            )
    return sorted(found, key=lambda entry: (-(entry["success_rate"] or 0.0), entry["task"]))
