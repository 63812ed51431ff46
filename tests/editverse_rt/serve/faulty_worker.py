"""The server's worker, which fails at the first graph of a job as the job's prompt says.

"fault hang once" hangs in the first run of the job only, "fault hang always" in each; "look-hang" and "look-die" fail
while the request is looked at, before it is queued. A bundle whose folder holds a file `hang-once` is opened never
the first time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editverse_rt.pipeline import Pipeline
from editverse_rt.serve import worker

HOURS_S = 36_000.0
LIMIT_BYTES = 4_000_000_000
HERE = threading.local()


def die() -> None:
    """What the system does to the process that takes the most memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(HOURS_S)


def take_memory() -> None:
    """More than the address space that `--worker-memory` leaves; without it, untouched pages cost nothing."""
    bytearray(LIMIT_BYTES + 1)


def fill_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


FAULTS: dict[str, Callable[[], None]] = {
    "hang": lambda: time.sleep(HOURS_S),
    "die": die,
    "memory": take_memory,
    "disk": fill_disk,
    "garbage": lambda: HERE.worker._link.sendall(b"no JSON\n"),
    "bug": lambda: {}["a name that is not there"],
}


def fail(words: list[str], marks: Path) -> None:
    """Do what a prompt asks for; `once` where the mark of it is not there yet."""
    _, fault, how = words[:3]
    mark = marks / f"mark-{HERE.job}"
    if how == "always" or not mark.exists():
        mark.touch()
        FAULTS[fault]()


def main() -> None:
    real_run, real_graph = worker.Worker._run, Pipeline.run_graph
    real_prepare, real_open = worker.prepare_request, worker.open_pipelines

    def run(self: worker.Worker, message: dict[str, Any]) -> None:
        HERE.words, HERE.job, HERE.worker = message["request"]["prompt"].split(), message["job"], self
        HERE.marks = Path(message["folder"]).parents[1]
        real_run(self, message)

    def run_graph(self: Pipeline, *given: Any, **inputs: Any) -> Any:
        if getattr(HERE, "words", [""])[0] == "fault":
            fail(HERE.words, HERE.marks)
        return real_graph(self, *given, **inputs)

    def prepare(pipeline: Pipeline, request: dict[str, Any], *given: Any) -> Any:
        words = request["prompt"].split()
        if words[0] == "look-hang":
            time.sleep(HOURS_S)
        if words[0] == "look-die":
            die()
        return real_prepare(pipeline, request, *given)

    def open_pipelines(bundles: list[str], *given: Any) -> Any:
        for mark in (Path(bundle, "hang-once") for bundle in bundles):
            if mark.exists():
                mark.unlink()
                time.sleep(HOURS_S)
        return real_open(bundles, *given)

    worker.Worker._run = run  # type: ignore[method-assign]
    Pipeline.run_graph = run_graph  # type: ignore[method-assign]
    worker.prepare_request = prepare
    worker.open_pipelines = open_pipelines
    worker.main()


if __name__ == "__main__":
    main()
