"""A batch over a Ray cluster: one actor a device, each with a pipeline of its own; the only file that imports Ray.

Inputs, the bundle and the folder of results lie on a file system that all nodes share, under the same paths. Which rows
are left is decided as in `run_batch`, by the names of results, so a batch may go on with Ray or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from editverse_rt.batch.folder import BatchFolder, save_result
from editverse_rt.batch.rows import BatchRow, Failure, KeyMaker
from editverse_rt.batch.running import BatchLog, BatchProgress, BatchReport, check_unchanged, sort_rows
from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.errors import BackendError
from editverse_rt.pipeline import Pipeline

__all__ = ["open_actors", "run_ray_batch"]

_GLANCE_S = 0.2


class RowRunner:
    """What each actor is: a pipeline on one device, which makes results one after another."""

    def __init__(self, bundle: str, backend: str, open_options: Mapping[str, Any]) -> None:
        self._pipeline = Pipeline.open(bundle, backend, **open_options)
        self._make_key = KeyMaker(self._pipeline.bundle)

    def run(self, row: BatchRow, folder: str) -> Exception | None:
        """Write a row's result; the error where there is none."""
        try:
            check_unchanged(row, self._make_key)
            result = self._pipeline(row.request)
            check_unchanged(row, self._make_key)
            save_result(Path(folder), row, result)
        except Exception as error:
            return error
        return None


def import_ray() -> Any:
    """Ray. Raises BackendError (`backend.unavailable`) where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise BackendError(
            f"Ray cannot be imported ({error})",
            hint="pip install 'editverse-rt[ray]'",
            code="backend.unavailable",
        ) from error
    return ray


def open_actors(ray: Any, bundle: str, backend: str, open_options: Mapping[str, Any]) -> list[Any]:
    """An actor for each GPU of the cluster; for each node where there is no GPU, or the backend is ort-cpu."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    # A process that ends, such as for want of memory, is started again and tries its row once more; a result is
    # written by a rename, so two tries make one.
    kind = ray.remote(max_restarts=-1, max_task_retries=1, num_cpus=1)(RowRunner)
    if num_gpus and backend != "ort-cpu":
        return [kind.options(num_gpus=1).remote(bundle, backend, open_options) for _ in range(num_gpus)]
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return [
        kind.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            bundle, backend, open_options
        )
        for node in nodes
    ]


def run_ray_batch(
    rows: Iterable[BatchRow],
    folder: BatchFolder,
    *,
    bundle: str = "nano",
    backend: str = "auto",
    address: str | None = None,
    open_options: Mapping[str, Any] | None = None,
    failures: Iterable[Failure] = (),
    schedule: str | None = None,
    num_interrupts: Callable[[], int] = lambda: 0,
    on_progress: BatchProgress = lambda done, total, found: None,
) -> BatchReport:
    """Make the results that are missing, as `run_batch` does, on the devices of a cluster.

    address: of the cluster, such as "auto" or "ray://HOST:10001"; None starts one on this machine, and ends it.
    bundle, backend, open_options: what `Pipeline.open` takes on each node. Raises as `run_batch`, and BackendError
    (`backend.unavailable`) without Ray, and where the cluster cannot be reached or a pipeline not be opened.
    """
    ray = import_ray()
    here = load_bundle(bundle)
    absolute = [replace(row, request=row.request.with_paths_from(Path.cwd())) for row in rows]
    split = sort_rows(absolute, KeyMaker(here), folder, schedule)
    is_ours = not ray.is_initialized()
    if is_ours:
        local = {"include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BackendError(
                f"the Ray cluster {address or 'of this machine'} cannot be used ({error})",
                hint="check the address",
                code="backend.unavailable",
            ) from error
    place = str(folder.path.absolute())
    actors: list[Any] = []
    try:
        with BatchLog(folder, split, failures, on_progress) as log:
            if log.waiting:
                actors = open_actors(ray, str(here.root), backend, open_options or {})
            _give_out(ray, actors, log, place, num_interrupts)
    finally:
        for actor in actors:
            ray.kill(actor)
        if is_ours:
            ray.shutdown()
    return log.report


def _give_out(
    ray: Any, actors: list[Any], log: BatchLog, folder: str, num_interrupts: Callable[[], int]
) -> None:
    """Give each actor a row at a time until all are over, or until it is stopped."""
    idle = list(actors)
    running: dict[Any, tuple[Any, BatchRow]] = {}
    while num_interrupts() < 2 and (running or (log.waiting and num_interrupts() == 0)):
        while idle and log.waiting and num_interrupts() == 0:
            actor, row = idle.pop(), log.waiting.pop()
            running[actor.run.remote(row, folder)] = (actor, row)
        done, _ = ray.wait(list(running), num_returns=1, timeout=_GLANCE_S)
        for reference in done:
            actor, row = running.pop(reference)
            idle.append(actor)
            try:
                error: Exception | None = ray.get(reference)
            except ray.exceptions.RayError as ended:
                if getattr(ended, "actor_init_failed", False):
                    raise BackendError(
                        f"a pipeline cannot be opened on a node of the cluster ({ended})",
                        hint="open it there without Ray",
                        code="backend.unavailable",
                    ) from ended
                error = ended
            if error is None:
                log.succeed()
            else:
                log.fail(row, error)
    log.waiting += [row for _, row in running.values()]
