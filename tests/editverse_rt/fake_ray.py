"""Ray, played in this process, for tests without it: nodes, actors, and what crosses between processes.

An actor is an object, made when its first method is called. A method runs when `wait` is asked for it. Arguments and
outcomes are pickled and read back, as between processes. A method that raises SystemExit is a process that ends.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from editverse_rt import cluster

__all__ = ["FakeRay"]


class RayError(Exception):
    actor_init_failed = False


class RayTaskError(RayError): ...


class FakeRay:
    """What `editverse_rt.cluster` uses of Ray. actors: all that were asked for; inits: addresses connected to."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, num_nodes: int = 2, num_gpus: int = 0) -> None:
        self.num_nodes, self.num_gpus = num_nodes, num_gpus
        self.inits: list[str] = []
        self.actors: list[Actor] = []
        self.refused: Exception | None = None
        self._is_connected = False
        place = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
        self.util = SimpleNamespace(scheduling_strategies=place)

    def is_initialized(self) -> bool:
        return self._is_connected

    def init(self, address: str, **_: Any) -> None:
        if self.refused is not None:
            raise self.refused
        self._is_connected = True
        self.inits.append(address)

    def shutdown(self) -> None:
        self._is_connected = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, **({"GPU": float(self.num_gpus)} if self.num_gpus else {})}

    def nodes(self) -> list[dict[str, Any]]:
        found = [{"NodeID": f"node{index}", "Alive": True} for index in range(self.num_nodes)]
        return [*found, {"NodeID": "gone", "Alive": False}]

    def remote(self, **_: Any) -> Any:
        def kind_from(kind: type) -> Any:
            def options(**where: Any) -> Any:
                return SimpleNamespace(remote=lambda *given: self._make(kind, where, given))

            return SimpleNamespace(options=options)

        return kind_from

    def _make(self, kind: type, where: dict[str, Any], given: tuple[Any, ...]) -> Actor:
        assert self._is_connected
        self.actors.append(Actor(kind, where, pickle.dumps(given)))
        return self.actors[-1]

    def wait(
        self, references: Sequence[Reference], num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        assert (num_returns, timeout > 0) == (1, True)
        for reference in references[:1]:
            reference.do()
        return list(references[:1]), list(references[1:])

    def get(self, reference: Reference) -> Any:
        return reference.outcome()

    def kill(self, actor: Actor) -> None:
        actor.is_killed = True


class Actor:
    def __init__(self, kind: type, where: dict[str, Any], given: bytes) -> None:
        self.kind, self.where, self.given = kind, where, given
        self.is_killed, self.num_open = False, 0
        self.instance: Any = None
        self.run = SimpleNamespace(remote=lambda task: Reference(self, pickle.dumps(task)))


class Reference:
    """A method's call. An actor has one at a time, which is what `run_on_devices` promises."""

    def __init__(self, actor: Actor, task: bytes) -> None:
        assert not actor.is_killed
        actor.num_open += 1
        assert actor.num_open == 1
        self._actor, self._task = actor, task
        self._outcome: bytes | RayError = b""

    def do(self) -> None:
        actor = self._actor
        actor.num_open -= 1
        try:
            if actor.instance is None:
                actor.instance = actor.kind(*pickle.loads(actor.given))
        except Exception as error:
            self._outcome = RayError(f"The actor died because of an error.\nTraceback ...\n{error}")
            self._outcome.actor_init_failed = True
            return
        try:
            self._outcome = pickle.dumps(actor.instance.run(pickle.loads(self._task)))
        except SystemExit:
            self._outcome = RayError(
                "The actor died unexpectedly before finishing this task.\n\tclass_name: x"
            )
        except Exception as error:
            self._outcome = RayTaskError(f"ray::run()\nTraceback ...\n{type(error).__name__}: {error}")

    def outcome(self) -> Any:
        if isinstance(self._outcome, RayError):
            raise self._outcome
        return pickle.loads(self._outcome)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """In place of Ray, whether it is installed or not."""
    found = FakeRay()
    monkeypatch.setattr(cluster, "import_ray", lambda: found)
    return found
