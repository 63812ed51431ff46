"""A Ray cluster: the connection to it, and work for one actor a device; the only file that imports Ray.

Inputs, the bundle and the results lie on a file system that all nodes share, under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from editverse_rt.errors import BackendError

__all__ = [
    "ClusterOptions",
    "connect_cluster",
    "connected_cluster",
    "count_gpus",
    "live_nodes",
    "open_actors",
    "run_on_devices",
]

Task = TypeVar("Task")
_GLANCE_S = 0.2


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster, and what each of its devices opens.

    address: of the cluster, such as "auto" or "ray://HOST:10001"; None starts one on this machine, and ends it.
    bundle, backend, open_options: what `Pipeline.open` takes on each node.
    """

    address: str | None = None
    bundle: str = "nano"
    backend: str = "auto"
    open_options: Mapping[str, Any] = field(default_factory=dict)


def import_ray() -> Any:
    """Ray. Raises BackendError (`backend.unavailable`) where it is not installed."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BackendError(
            f"Ray cannot be imported ({error})",
            hint="pip install 'editverse-rt[ray]'",
            code="backend.unavailable",
        ) from error
    return ray


def connect_cluster(address: str | None) -> Any:
    """Ray, connected to a cluster; with None, to one that is started on this machine.

    address: "auto", or host and port of the cluster's head. Raises BackendError (`backend.unavailable`).
    """
    ray = import_ray()
    # "local" starts one even where another one runs on this machine, which Ray would use without an address.
    where = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level="error", **where)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"the Ray cluster {address or 'of this machine'} cannot be used ({error})",
            hint="check the address",
            code="backend.unavailable",
        ) from error
    return ray


@contextmanager
def connected_cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected for as long as the block; where this process is connected already, that is used and left."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    connect_cluster(address)
    try:
        yield ray
    finally:
        ray.shutdown()


def count_gpus(ray: Any) -> int:
    """The GPUs that a cluster has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def live_nodes(ray: Any) -> list[str]:
    """The ids of the nodes that a cluster has now."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def open_actors(ray: Any, kind: type, arguments: tuple[Any, ...], options: ClusterOptions) -> list[Any]:
    """An actor for each GPU of the cluster; for each node where there is no GPU, or the backend is ort-cpu.

    kind: the actors' class. An instance is made of the bundle, the backend and the options of `Pipeline.open`, and
    then the arguments.
    """
    num_gpus = count_gpus(ray)
    given = (options.bundle, options.backend, dict(options.open_options), *arguments)
    # A process that ends, such as for want of memory, is started again and does its task once more; results are
    # written by a rename, so two tries make one.
    actor = ray.remote(max_restarts=-1, max_task_retries=1, num_cpus=1)(kind)
    if num_gpus and options.backend != "ort-cpu":
        return [actor.options(num_gpus=1).remote(*given) for _ in range(num_gpus)]
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    return [
        actor.options(scheduling_strategy=place(node, soft=False)).remote(*given) for node in live_nodes(ray)
    ]


def run_on_devices(
    kind: type,
    arguments: tuple[Any, ...],
    options: ClusterOptions,
    waiting: list[Task],
    on_over: Callable[[Task, Any], object],
    num_interrupts: Callable[[], int] = lambda: 0,
) -> int:
    """Do tasks on the devices of a cluster, one at a time on each; returns how many devices there were.

    kind, arguments: see `open_actors`. The method `run(task)` of the class does a task and returns what came of it,
    an exception where it has failed. waiting: tasks, the next one last; those that are not done in
    the end are left there. on_over(task, outcome): called with what `run` returned, or with a BackendError
    (`backend.process`) where the process ended in each of two tries. num_interrupts: asked five times a second;
    from 1 on no task is begun, from 2 on those that run are given up.
    Raises BackendError (`backend.unavailable`) without Ray, where the cluster cannot be reached, and where an actor
    cannot be made. Without tasks nothing is connected to.
    """
    if not waiting:
        return 0
    with connected_cluster(options.address) as ray:
        actors: list[Any] = []
        try:
            actors = open_actors(ray, kind, arguments, options)
            _give_out(ray, actors, waiting, on_over, num_interrupts)
        finally:
            for actor in actors:
                ray.kill(actor)
    return len(actors)


def _give_out(
    ray: Any,
    actors: list[Any],
    waiting: list[Task],
    on_over: Callable[[Task, Any], object],
    num_interrupts: Callable[[], int],
) -> None:
    """Give each actor a task at a time until all are over, or until it is stopped."""
    idle = list(actors)
    running: dict[Any, tuple[Any, Task]] = {}
    while num_interrupts() < 2 and (running or (waiting and num_interrupts() == 0)):
        while idle and waiting and num_interrupts() == 0:
            actor, task = idle.pop(), waiting.pop()
            running[actor.run.remote(task)] = (actor, task)
        done, _ = ray.wait(list(running), num_returns=1, timeout=_GLANCE_S)
        for reference in done:
            actor, task = running.pop(reference)
            idle.append(actor)
            on_over(task, _outcome(ray, reference))
    waiting += [task for _, task in running.values()]


def _outcome(ray: Any, reference: Any) -> Any:
    """What came of a task. Raises BackendError where its actor could not be made."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as ended:
        # Ray's texts are long; the last line of a traceback and the first one of its own words say why.
        lines = [line.strip() for line in str(ended).splitlines() if line.strip()] or [type(ended).__name__]
        if getattr(ended, "actor_init_failed", False):
            raise BackendError(
                f"a pipeline cannot be opened on a node of the cluster ({lines[-1]})",
                hint="open it there without Ray",
                code="backend.unavailable",
            ) from ended
        text = lines[-1] if isinstance(ended, ray.exceptions.RayTaskError) else lines[0]
        return BackendError(
            f"the process that did it has ended ({text})",
            hint="run it again; Ray's logs say more",
            code="backend.process",
        )
