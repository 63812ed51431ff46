"""The process that runs jobs on one device: `python -m editverse_rt.serve.worker HANDLE`.

Only here are uploads opened, so that a file which breaks a decoder ends this process and not the server. It
speaks JSON, one object a line, over the socket whose handle it is given, and ends when the other side closes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from editverse_rt import media
from editverse_rt.errors import BackendError, EditVerseError, RequestCancelled
from editverse_rt.files import hash_file
from editverse_rt.media.frames import Frames
from editverse_rt.pipeline import Pipeline
from editverse_rt.planning.planner import count_weights
from editverse_rt.serve.bundles import describe_model, open_pipelines
from editverse_rt.serve.checking import Limits, error_without_paths, prepare_request, share_budget
from editverse_rt.serve.folder import remove
from editverse_rt.serve.kept_windows import KeptWindows
from editverse_rt.serve.problems import HttpError, disk_full, is_disk_full
from editverse_rt.serve.result_files import TYPES, write_result

__all__ = ["main"]

BEAT_S = 1.0
"""How often a run that goes on says so at most."""
KEPT = "windows-"
"""What folders of a run's windows are called, in front of a random part."""
STEP_S = 0.1
"""How often it tells of a step at most."""
Message = dict[str, Any]
_M_ARENA_MAX = -8  # of glibc's malloc.h


class Worker:
    """The pipelines of one device, and the runs on them; each message is answered from a thread of its own."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._turn = threading.Lock()
        self._pipelines: dict[str, Pipeline] = {}
        self._limits: dict[str, Limits] = {}
        self._stops: dict[str, threading.Event] = {}

    def serve(self) -> None:
        """Read messages until the server is gone."""
        with self._link.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if message["do"] == "open":
                    self._open(message)
                elif message["do"] == "cancel":
                    if (stop := self._stops.get(message["job"])) is not None:
                        stop.set()
                else:
                    if message["do"] == "run":
                        self._stops[message["job"]] = threading.Event()
                    self._start(message)

    def _start(self, message: Message) -> None:
        """Answer a message in a thread; where the memory has no room for one, say so at once."""
        act = {"prepare": self._prepare, "run": self._run}[message["do"]]
        try:
            threading.Thread(target=act, args=(message,), daemon=True).start()
        except (RuntimeError, MemoryError):
            error = self._error(MemoryError(), {})
            if message["do"] == "prepare":
                self._send(event="refused", id=message["id"], error=error)
            else:
                del self._stops[message["job"]]
                self._send(event="failed", job=message["job"], run=message["run"], error=error)

    def _send(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._turn:
            try:
                self._link.sendall(line)
            except OSError:  # the server is gone, and nobody waits for this run
                os._exit(0)

    def _open(self, message: Message) -> None:
        try:
            if message["address_space_bytes"] is not None:
                limit = int(message["address_space_bytes"])
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            self._pipelines = open_pipelines(message["bundles"], message["backend"], message["device"])
            models = [describe_model(pipeline) for pipeline in self._pipelines.values()]
            runs_concurrently = all(p.traits.runs_concurrently for p in self._pipelines.values())
            weights = {name: count_weights(p.bundle.spec) for name, p in self._pipelines.items()}
            self._limits = share_budget(Limits(**message["limits"]), weights)
        except EditVerseError as error:
            self._send(event="failed_to_open", error=error.to_json())
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slots = message["slots"] or (cores if runs_concurrently else 1)
        self._send(
            event="ready",
            models=models,
            slots=slots if runs_concurrently else 1,
            weight_bytes=sum(weights.values()),
        )

    def _prepare(self, message: Message) -> None:
        inputs = {name: Path(path) for name, path in message["inputs"].items()}
        unnamed = [Path(path) for path in message["unnamed"]]
        try:
            prepared = prepare_request(
                self._pipelines[message["model"]],
                message["request"],
                inputs,
                unnamed,
                message["format"],
                self._limits[message["model"]],
            )
            prepared.close()
        except BaseException as error:
            shown = {**inputs, **{f"input {i + 1}": path for i, path in enumerate(unnamed)}}
            self._send(event="refused", id=message["id"], error=self._error(error, shown))
            return
        self._send(
            event="prepared",
            id=message["id"],
            request=prepared.request,
            inputs={name: path.name for name, path in prepared.inputs.items()},
            format=prepared.format,
            estimate=prepared.estimate,
        )

    def _run(self, message: Message) -> None:
        job = message["job"]
        run = _Run(self, message, self._stops[job])
        try:
            result = run.make(self._pipelines[message["model"]], self._limits[message["model"]])
        except BaseException as error:
            if isinstance(error, RequestCancelled) and not run.is_late:
                event: Message = {"event": "cancelled"}
            else:
                places = {**run.inputs, "the result": Path(message["folder"])}
                event = {"event": "failed", "error": self._error(run.late_error() or error, places)}
        else:
            event = {"event": "done", "result": result}
        # Before it is told, so that a cancel that comes later finds nothing, and the memory is free.
        del self._stops[job], run
        self._send(job=job, run=message["run"], **event)

    def _error(self, error: BaseException, places: dict[str, Path]) -> dict[str, str]:
        """The error as JSON. places: paths of the server that must not be told, by what is told instead."""
        if is_disk_full(error):
            error = disk_full()
        if isinstance(error, MemoryError):
            error = BackendError(
                "the worker has no memory left",
                hint="make the request smaller, or allow the worker more",
                code="backend.memory",
            )
        if isinstance(error, EditVerseError):
            return error_without_paths(error, places)
        self._send(event="log", level="error", text="".join(traceback.format_exception(error)))
        return HttpError(
            500,
            f"an error inside the server ({type(error).__name__})",
            hint="its log says more",
            code="error",
        ).to_json()


class _Run:
    """One run of a job: what it tells on its way, and what makes it stop."""

    def __init__(self, worker: Worker, message: Message, stop: threading.Event) -> None:
        self._worker, self._message, self._stop = worker, message, stop
        self._last_told, self._phase, self._step, self._window = 0.0, "", 0, 0
        self._end = time.monotonic() + message["deadline_s"]
        self.inputs = {name: Path(path) for name, path in message["inputs"].items()}
        self.is_late = False

    def make(self, pipeline: Pipeline, limits: Limits) -> Message:
        """Run the job and write its files; what is to be told of them."""
        message = self._message
        self._tell("read")
        prepared = prepare_request(pipeline, message["request"], self.inputs, (), message["format"], limits)
        folder = Path(message["folder"])
        folder.mkdir(mode=0o700, exist_ok=True)
        for stale in folder.glob(f"{KEPT}*"):  # of a run whose process was killed
            remove(stale)
        with TemporaryDirectory(dir=folder, prefix=KEPT) as kept:
            try:
                run = pipeline.run_windows(
                    prepared.checked,
                    callback_on_step_end=self._on_step_end,
                    is_cancelled=self._must_stop,
                    on_graph=self._on_graph,
                )
                windows = KeptWindows(run, prepared.estimate["main"], Path(kept), limits.max_frames)
            finally:
                prepared.close()
            self._tell("write")
            return self._write(windows, folder)

    def late_error(self) -> EditVerseError | None:
        """What a run that its deadline has stopped failed with."""
        if not self.is_late:
            return None
        return HttpError(
            500,
            f"the job has run for {self._message['deadline_s']:g} s",
            hint="make the request smaller, or give a larger deadline_s",
            code="serve.deadline",
            field="deadline_s",
        )

    def _must_stop(self) -> bool:
        if time.monotonic() > self._end:
            self.is_late = True
        return self.is_late or self._stop.is_set()

    def _on_graph(self, graph: str) -> None:
        phase = "encode"
        if graph.startswith(("transformer", "solver_step", "keep_known")):
            phase = "denoise"
        elif graph.startswith("vae_decoder"):
            phase = "decode"
        if phase == "encode" and self._phase == "decode":  # of the next window
            self._window, self._step = self._window + 1, 0
        self._tell(phase)

    def _on_step_end(self, pipeline: Pipeline, step: int, timestep: float, facts: Message) -> None:
        self._step = step + 1
        self._tell("denoise", STEP_S)

    def _tell(self, phase: str, pause_s: float = BEAT_S) -> None:
        """Tell the server how far it is: each new phase at once, the same one after a pause."""
        now = time.monotonic()
        if phase == self._phase and now - self._last_told < pause_s:
            return
        self._phase, self._last_told = phase, now
        message = self._message
        self._worker._send(
            event="progress",
            job=message["job"],
            run=message["run"],
            phase=phase,
            step=self._step,
            window=self._window,
        )

    def _write(self, windows: KeptWindows, folder: Path) -> Message:
        message, frames, source, times_s = self._message, windows.frames, windows.source, windows.times_s
        written = {"result": folder / f"part-{message['run']}-result.{message['format']}"}
        notices = write_result(
            written["result"], self._pictures(frames), windows.fps, times_s=times_s, sound=windows.sound
        )
        if source is not None:
            suffix = "png" if source.num_frames == 1 else "mp4"
            written["source"] = folder / f"part-{message['run']}-source.{suffix}"
            own_times_s = times_s if source.num_frames == frames.num_frames else None
            media.write_clip(written["source"], self._pictures(source), windows.fps, times_s=own_times_s)
        if self._must_stop():
            raise RequestCancelled("cancelled by its caller", hint="nothing was written", code="cancelled")
        height, width = frames.size
        return {
            "parts": {variant: path.name for variant, path in written.items()},
            "type": TYPES[message["format"]],
            "bytes": written["result"].stat().st_size,
            "sha256": hash_file(written["result"]),
            "width": width,
            "height": height,
            "num_frames": frames.num_frames,
            "fps": windows.fps,
            "seconds": times_s[-1] if times_s is not None else frames.num_frames / windows.fps,
            "notices": [*windows.notices, *notices],
            "timings": windows.timings,
        }

    def _pictures(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        """The frames one by one, so that writing stops where the job is cancelled."""
        for picture in frames:
            if self._must_stop():
                raise RequestCancelled(
                    "cancelled by its caller", hint="nothing was written", code="cancelled"
                )
            self._tell("write")
            yield picture


def limit_heaps(count: int) -> None:
    """Have malloc share so many arenas between all threads, where it is glibc's.

    Each job runs in a thread of its own. By default the threads of a job get one of eight arenas a core, and each
    arena keeps the pieces that the largest jobs in it have left.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)


def main() -> None:
    """Serve the socket whose handle is the one argument."""
    limit_heaps(max(1, (os.cpu_count() or 1) // 4))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server says when to end
    Worker(socket.socket(fileno=int(sys.argv[1]))).serve()
    # Threads may be inside a graph, and nothing that they could still do is wanted.
    os._exit(0)


if __name__ == "__main__":
    main()
