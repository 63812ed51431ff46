"""Work for one actor a device: each task once, whatever ends, is interrupted or cannot be opened."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fake_ray import FakeRay
from hypothesis import given
from hypothesis import strategies as st

from editverse_rt import cluster
from editverse_rt.cluster import ClusterOptions, connected_cluster, open_actors, run_on_devices
from editverse_rt.errors import BackendError

OPTIONS = ClusterOptions("auto", "my-bundle", "ort-cpu", {"num_threads": 1})


class Doubler:
    """An actor: doubles numbers; 13 is a bug, 7 ends the process, and 5 has failed."""

    def __init__(self, bundle: str, backend: str, open_options: dict[str, Any], *more: Any) -> None:
        if backend == "none":
            raise BackendError('there is no backend "none"')
        self.given = (bundle, backend, open_options, *more)

    def run(self, task: int) -> Any:
        if task == 13:
            raise KeyError("a bug")
        if task == 7:
            raise SystemExit(1)
        return ValueError("no fives") if task == 5 else 2 * task


def run(waiting: list[int], options: ClusterOptions = OPTIONS) -> tuple[list[tuple[int, Any]], int]:
    """The tasks in the order of their ends, each with its outcome; how many devices."""
    over: list[tuple[int, Any]] = []
    count = run_on_devices(
        Doubler, ("x",), options, waiting, lambda task, outcome: over.append((task, outcome))
    )
    return over, count


@given(tasks=st.lists(st.integers(14, 1000), max_size=12), nodes=st.integers(1, 4))
def test_each_task_is_done_once_and_the_next_one_is_last(tasks: list[int], nodes: int) -> None:
    ray = FakeRay(nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "import_ray", lambda: ray)
        waiting = tasks[::-1]
        over, count = run(waiting)
    assert sorted(over) == sorted((task, 2 * task) for task in tasks)
    assert waiting == []
    # Without anything to do, nothing is connected to.
    assert (count, ray.inits) == ((nodes, ["auto"]) if tasks else (0, []))
    assert not ray.is_initialized()
    assert all(actor.is_killed for actor in ray.actors)
    # The first tasks are given out first.
    assert {task for task, _ in over[: min(nodes, 1)]} <= set(tasks[:nodes])


@pytest.mark.parametrize(
    ("num_gpus", "backend", "where"),
    [
        (0, "auto", [("node0", False), ("node1", False)]),
        (3, "ort-cpu", [("node0", False), ("node1", False)]),
        (3, "auto", [1, 1, 1]),
        (1, "tensorrt", [1]),
    ],
)
def test_actors_stand_on_gpus_or_on_nodes(num_gpus: int, backend: str, where: list[Any]) -> None:
    ray = FakeRay(2, num_gpus)
    ray.init("auto")
    actors = open_actors(ray, Doubler, ("x",), ClusterOptions("auto", "b", backend))
    assert [next(iter(actor.where.values())) for actor in actors] == where


def test_an_actor_is_made_of_what_was_given(fake_ray: FakeRay) -> None:
    run([1])
    assert fake_ray.actors[0].instance is None  # the second one was free
    assert fake_ray.actors[1].instance.given == ("my-bundle", "ort-cpu", {"num_threads": 1}, "x")


def test_what_fails_or_ends_a_process_is_an_outcome_and_the_others_go_on(fake_ray: FakeRay) -> None:
    outcomes = dict(run([1, 13, 7, 5, 2])[0])
    assert (outcomes[1], outcomes[2]) == (2, 4)
    assert str(outcomes[5]) == "no fives"
    for task, text in ((7, "died unexpectedly"), (13, "KeyError: 'a bug'")):
        assert isinstance(outcomes[task], BackendError)
        assert outcomes[task].code == "backend.process"
        assert text in str(outcomes[task])
        assert "\n" not in str(outcomes[task])


def test_an_actor_that_cannot_be_made_ends_the_run_in_one_line(fake_ray: FakeRay) -> None:
    with pytest.raises(BackendError, match='there is no backend "none"') as caught:
        run([1, 2], ClusterOptions(backend="none"))
    assert caught.value.code == "backend.unavailable"
    assert "\n" not in str(caught.value)
    assert all(actor.is_killed for actor in fake_ray.actors)
    assert not fake_ray.is_initialized()


@pytest.mark.parametrize(("interrupts", "num_over"), [(1, 2), (2, 1)])
def test_an_interrupt_finishes_what_runs_and_a_second_one_gives_it_up(
    fake_ray: FakeRay, interrupts: int, num_over: int
) -> None:
    """They come when the first of five tasks is over and the second one runs."""
    over: list[int] = []
    waiting = [5, 4, 3, 2, 1]
    run_on_devices(
        Doubler, (), OPTIONS, waiting, lambda task, _: over.append(task), lambda: interrupts if over else 0
    )
    assert over == [1, 2][:num_over]
    assert sorted(waiting) == [1, 2, 3, 4, 5][num_over:]
    assert all(actor.is_killed for actor in fake_ray.actors)


def test_an_error_of_the_caller_ends_the_actors(fake_ray: FakeRay) -> None:
    def refuse(task: int, outcome: Any) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        run_on_devices(Doubler, (), OPTIONS, [1, 2, 3], refuse)
    assert all(actor.is_killed for actor in fake_ray.actors)
    assert not fake_ray.is_initialized()


def test_a_connection_that_is_there_is_left(fake_ray: FakeRay) -> None:
    fake_ray.init("mine")
    run([1])
    assert fake_ray.inits == ["mine"]
    assert fake_ray.is_initialized()


def test_a_cluster_that_cannot_be_reached_is_said(fake_ray: FakeRay) -> None:
    fake_ray.refused = ConnectionError("nobody is there")
    with (
        pytest.raises(BackendError, match=r"Ray cluster 10\.0\.0\.1:6379 cannot be used \(nobody") as caught,
        connected_cluster("10.0.0.1:6379"),
    ):
        pass
    assert caught.value.code == "backend.unavailable"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"editverse-rt\[ray\]"):
        run([1])
