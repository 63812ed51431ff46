"""Workers on the nodes of a Ray cluster: the same processes, and the same lines, carried by an actor each.

The server, its store and its queue stay one process. Ray decides on which node a worker is, starts it elsewhere where
that node is gone, and carries the lines; no job is ever kept in Ray. The data folder and bundles lie on a file system
that all nodes share, under the same paths.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from editverse_rt.cluster import count_gpus, live_nodes
from editverse_rt.serve.process import Message, WorkerOptions, WorkerProcess

__all__ = ["RayWorker", "devices_of"]

_MAX_LINE_BYTES = 1 << 22


def devices_of(ray: Any, backend: str) -> tuple[int | None, int]:
    """What a worker opens, a GPU's number or None for the CPU, and for how many a cluster has room now.

    A backend for GPUs takes them even where the cluster has none yet; "auto" takes those that are there.
    """
    num_gpus = count_gpus(ray)
    if backend == "ort-cpu" or (backend == "auto" and not num_gpus):
        return None, max(1, len(live_nodes(ray)))
    # Ray shows a process the one GPU that it may use, as number 0.
    return 0, max(1, num_gpus)


class WorkerHost:
    """The actor: a worker's process on its node, and the link to it. Each method has a thread of its own."""

    def __init__(self, command: tuple[str, ...]) -> None:
        """command: of the worker, without the interpreter, which is this node's."""
        ours, theirs = socket.socketpair()
        self._link = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def send(self, line: bytes) -> None:
        """Pass a line to the worker."""
        with suppress(OSError):  # it has ended, which `lines` tells
            self._link.sendall(line)

    def lines(self) -> Iterator[bytes]:
        """The worker's lines, until it has ended."""
        with self._link.makefile("rb") as stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                yield line

    def end(self) -> None:
        """End the worker at once, whatever it does."""
        self._process.kill()


class RayWorker(WorkerProcess):
    """A worker on a node that Ray chooses. ray: the module, connected."""

    def __init__(
        self,
        ray: Any,
        options: WorkerOptions,
        on_event: Callable[[WorkerProcess, Message], None],
        on_end: Callable[[WorkerProcess, str, bool], None],
    ) -> None:
        super().__init__(options, on_event, on_end)
        self._ray = ray
        # An actor's methods come in order only within a group of one thread.
        hosts = type(
            "WorkerHost",
            (WorkerHost,),
            {
                name: ray.method(concurrency_group=name)(getattr(WorkerHost, name))
                for name in ("send", "lines", "end")
            },
        )
        needs = {"num_gpus": 1} if options.device is not None else {"num_cpus": max(1, options.slots)}
        groups = {"send": 1, "lines": 1, "end": 1}
        self._kind = ray.remote(concurrency_groups=groups, scheduling_strategy="SPREAD", **needs)(hosts)

    async def _connect(self, command: tuple[str, ...]) -> tuple[asyncio.StreamReader, Any, Any]:
        actor = self._kind.remote(command[1:])
        reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        carrying = asyncio.get_running_loop().create_task(_carry(actor, reader))
        return reader, _Writer(actor), _RemoteProcess(self._ray, actor, carrying)


async def _carry(actor: Any, reader: asyncio.StreamReader) -> None:
    """Lines from an actor to a reader, until the worker, the actor or its node has ended."""
    try:
        async for line in actor.lines.options(num_returns="streaming").remote():
            reader.feed_data(await line)
    except Exception as error:  # Ray's many ways to say that an actor is gone
        del error
    finally:
        reader.feed_eof()


class _Writer:
    """As the base class uses a stream's writer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def write(self, line: bytes) -> None:
        self._actor.send.remote(line)

    def close(self) -> None: ...


class _RemoteProcess:
    """As the base class uses a process."""

    pid = None

    def __init__(self, ray: Any, actor: Any, carrying: asyncio.Task[None]) -> None:
        self._ray, self._actor, self._carrying = ray, actor, carrying
        self.returncode: int | None = None

    def kill(self) -> None:
        # Where the actor or its node is gone, so is the worker.
        self._actor.end.remote()

    async def wait(self) -> int:
        """Wait for the last line, and give the node's device back."""
        await asyncio.wait({self._carrying}, timeout=10)
        self._carrying.cancel()
        self._ray.kill(self._actor)
        self.returncode = -1
        return self.returncode
