"""The straight line from a request to frames: check, read, lay out, encode, solve, decode.

No arithmetic on pixels or latents happens here: graphs do it, and what they are called with are the
integers of the laid-out request and the numbers of the bundle's schedule.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from editverse_rt import stages
from editverse_rt.backends import Array, ReleasesGraphs, Runner, RunnerTraits, Selection, select_backend
from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.bundle.schedule import ScheduleTable
from editverse_rt.errors import BackendError, RequestCancelled, RequestError
from editverse_rt.families import family_of
from editverse_rt.media.frames import Frames
from editverse_rt.native_calls import NativeCalls
from editverse_rt.request.checked import CheckedRequest, check_request
from editverse_rt.request.edit_request import EditRequest, Source, request_of_call
from editverse_rt.request.sizes import Size
from editverse_rt.request.tokenizer import Tokenizer
from editverse_rt.request.windows import Windows, read_windows
from editverse_rt.result import EditedWindow, Result, WindowRun, check_fits_memory, check_not_cancelled

__all__ = ["Pipeline", "Result", "StepCallback"]

StepCallback = Callable[["Pipeline", int, float, dict[str, Any]], Any]


class Pipeline:
    """A bundle, opened on a backend, that edits and generates.

    Use it as a context manager, or close() it. Several threads may call it: where the backend runs graphs
    side by side (`traits.runs_concurrently`) their requests do too, elsewhere they go one after another.
    Either way each gets the bytes that it gets alone. `RequestQueue` serves many requests on one pipeline.
    A program that ends while daemon threads run requests waits for the graph that each of them is in.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        selection: Selection | None = None,
        *,
        release_graphs: bool = False,
    ) -> None:
        """Prefer `Pipeline.open`. runner: of this bundle's graphs, not yet entered."""
        self._release_graphs = release_graphs
        tokenizer = bundle.spec.tokenizer
        self._bundle = bundle
        self._tokenizer = Tokenizer(bundle.tokenizer_path(), tokenizer.eos_id, tokenizer.max_tokens)
        self._family = family_of(bundle.spec.family)
        self._selection = selection
        self._runner: Runner | None = runner
        self._traits = runner.traits
        # Reentrant: a request's callback may call the pipeline.
        self._turn: AbstractContextManager[Any] = (
            nullcontext() if self._traits.runs_concurrently else threading.RLock()
        )
        self._native_calls = NativeCalls(self)
        runner.__enter__()

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] = "nano",
        backend: str = "auto",
        *,
        num_threads: int | None = None,
        allow_unverified: bool = False,
        device: int | None = None,
        cuda_graphs: bool = False,
        weight_budget_bytes: int | None = None,
        plugin: str | os.PathLike[str] | None = None,
        kernel_cache: str | os.PathLike[str] | None = None,
        gpu_memory_limit_bytes: int | None = None,
        release_graphs: bool = False,
    ) -> Pipeline:
        """Verify a bundle and open it on a backend.

        Args:
            bundle: The name of a bundle that ships with the package, or a bundle's folder.
            backend: A name from `editverse_rt.backends`, or "auto" for the first one that works here.
            num_threads: Threads of the CPU; None for one for each physical core. Results do not depend on it.
            allow_unverified: Use TensorRT plans that `editverse-rt verify` has not accepted on this GPU.
            device: The GPU's number; None for the first.
            cuda_graphs: TensorRT only: launch calls that repeat as one CUDA graph.
            weight_budget_bytes: TensorRT only: the bytes of each plan's weights that may be on the GPU at
                once, for plans that were built with weight streaming.
            plugin: TensorRT only: the library with `RopeAttention`, for plans that were built with it.
            release_graphs: Release each graph after its last run in a request. A request then takes the memory
                of the largest graph, and the next one loads the graphs again. Backends that keep plans
                ignore it.
            kernel_cache: TensorRT for RTX only: a file for the kernels that are compiled on this machine.
            gpu_memory_limit_bytes: ort-cuda only: the bytes of GPU memory that each graph may take.

        Raises:
            RequestError: A number is out of range.
            BundleError: The bundle is missing, incomplete, altered, or of another format.
            BackendError: The backend is unknown, is not available here, cannot run the bundle, or does not
                have one of the options.
        """
        for name, number, least, advice in (
            ("num_threads", num_threads, 1, "give at least 1, or None for one a core"),
            ("device", device, 0, "give a GPU's number, 0 or more"),
            ("weight_budget_bytes", weight_budget_bytes, 0, "give 0 or more"),
            ("gpu_memory_limit_bytes", gpu_memory_limit_bytes, 1, "give 1 or more"),
        ):
            if number is not None and number < least:
                raise RequestError(f"{name} is {number}", hint=advice, code="request.option")
        possible = {
            "device": device,
            "cuda_graphs": cuda_graphs or None,
            "weight_budget_bytes": weight_budget_bytes,
            "plugin": None if plugin is None else Path(plugin),
            "kernel_cache": None if kernel_cache is None else Path(kernel_cache),
            "gpu_memory_limit_bytes": gpu_memory_limit_bytes,
        }
        options = {name: value for name, value in possible.items() if value is not None}
        loaded = load_bundle(bundle)
        selection = select_backend(backend, loaded, allow_unverified=allow_unverified, options=options)
        runner = selection.backend.open_runner(loaded, num_threads)
        return cls(loaded, runner, selection, release_graphs=release_graphs)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and devices back; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.__exit__(None, None, None)

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    @property
    def traits(self) -> RunnerTraits:
        """What the backend can do with this bundle: several requests at once, its GPU, its plans."""
        return self._traits

    @property
    def is_in_native_call(self) -> bool:
        """Whether any thread is inside a graph."""
        return self._native_calls.are_running

    def info(self) -> dict[str, Any]:
        """What is open: bundle, backend, and why the backends preferred over it were passed over."""
        spec, selection = self._bundle.spec, self._selection
        return {
            "bundle": spec.name,
            "path": os.fspath(self._bundle.root),
            "format_version": spec.format_version,
            "made": spec.made,
            "backend": None if selection is None else selection.backend.name,
            "backend_version": None if selection is None else selection.availability.version,
            "passed_over": {}
            if selection is None
            else {state.name: state.reason for state in selection.passed_over},
        }

    def __call__(
        self,
        prompt: str | EditRequest,
        *,
        negative_prompt: str | None = None,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        schedule: str | None = None,
        size: Size | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        start_s: float | None = None,
        length: str | None = None,
        callback_on_step_end: StepCallback | None = None,
        **inputs: Source,
    ) -> Result:
        """Edit or generate by an instruction that mentions its inputs by tags: "<video1> Make it snow".

        The result has the size, length and rate of the main input, which is the video (else the image) of the
        lowest number. Without inputs it is generated at the bundle's sizes.

        Args:
            prompt: The instruction, or an `EditRequest`; options and inputs that are given beside it replace its own.
            negative_prompt: What the result should not show, for bundles with this capability.
            strength: How much a source is changed, for bundles with this capability.
            num_inference_steps: Steps of the solver; None for the schedule's own number.
            guidance_scale: Strength of the guidance by text; None for the schedule's own.
            seed: Of the noise; None for 0. The same seed gives the same bytes.
            schedule: One of the bundle's schedules; None for its default.
            size: (height, width) of the result in pixels.
            num_frames: Frames of the result.
            fps: Frames a second to take from the videos; None for the main video's own rate.
            start_s: Where to begin in the videos, in seconds; None for 0.
            length: "whole" edits a video of any length window by window, "cut" what one window holds.
            callback_on_step_end: Called as f(pipeline, step, timestep, {"num_inference_steps": n}) after each
                step of the solver. The request stops if it returns False.
            **inputs: video1=, video2=, image1= ...: a path, or an array uint8 [T, H, W, 3] for a video and
                [H, W, 3] for an image.

        Raises:
            RequestError: The request contradicts itself, or the bundle cannot serve it.
            MediaError: An input cannot be read.
            BackendError: A graph fails, or the pipeline is closed.
            RequestCancelled: The callback returned False, or Ctrl-C was pressed.
        """
        options = {
            "negative_prompt": negative_prompt,
            "strength": strength,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "schedule": schedule,
            "size": size,
            "num_frames": num_frames,
            "fps": fps,
            "start_s": start_s,
            "length": length,
        }
        try:
            request = request_of_call(prompt, {**inputs, **options})
            return self.run(self.prepare(request), callback_on_step_end=callback_on_step_end)
        except KeyboardInterrupt:
            raise RequestCancelled(
                "stopped by Ctrl-C", hint="nothing was written", code="cancelled"
            ) from None

    def prepare(self, request: EditRequest) -> CheckedRequest:
        """Check a request against the bundle and look at its inputs; `run` does the rest.

        Raises RequestError, MediaError, and BackendError where the number of steps needs a graph that fails.
        """
        return check_request(
            self._bundle.spec, self._tokenizer, request, partial(stages.make_table, self.run_graph)
        )

    def run(
        self,
        checked: CheckedRequest,
        *,
        callback_on_step_end: StepCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_graph: Callable[[str], None] = lambda graph: None,
    ) -> Result:
        """Run what `prepare` gave, and put its windows together in memory.

        is_cancelled: asked before each frame of an input is read, before each call of a graph and after the last, from
        this thread. on_graph: told the name of each graph before it is called.

        Raises RequestError where the result would not fit this machine's memory, MediaError, BackendError,
        RequestCancelled.
        """
        check_fits_memory(checked)
        run = self.run_windows(
            checked,
            callback_on_step_end=callback_on_step_end,
            is_cancelled=is_cancelled,
            on_graph=on_graph,
        )
        edited = list(run)
        check_not_cancelled(is_cancelled)
        return run.join(edited)

    def run_windows(
        self,
        checked: CheckedRequest,
        *,
        callback_on_step_end: StepCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_graph: Callable[[str], None] = lambda graph: None,
        first: int = 0,
        known: Frames | None = None,
    ) -> WindowRun:
        """Run what `prepare` gave window by window, as it is iterated; most requests are one window.

        Memory does not grow with the number of windows. Between windows other requests may run. The callback gets
        "window" and "num_windows" besides; the latter is None where the video does not say how long it is.
        first: the window to begin with; those before it are read and not edited. known: the last
        `shared_frames` frames of the result before it, uint8 [T, H, W, 3]. The other options are those of `run`.
        """
        clock = stages.StageClock()
        steps, num_windows = checked.schedule.num_inference_steps, checked.inputs.expected_windows

        check = partial(check_not_cancelled, is_cancelled)

        def run(graph: str, **inputs: Any) -> Mapping[str, Array]:
            check()
            on_graph(graph)
            return self.run_graph(graph, **inputs)

        def on_step_end(window: int, step: int, timestep: float) -> None:
            facts = {"num_inference_steps": steps, "window": window, "num_windows": num_windows}
            if callback_on_step_end is None:
                return
            if callback_on_step_end(self, step, timestep, facts) is False:
                raise RequestCancelled(
                    f"stopped by its callback after step {step + 1} of {steps}",
                    hint="nothing was written",
                    code="cancelled",
                )

        windows = read_windows(checked.inputs, check)
        edited = self._edit_windows(checked, windows, run, clock, on_step_end, first, known)
        return WindowRun(windows, edited, clock.seconds)

    def _edit_windows(
        self,
        checked: CheckedRequest,
        windows: Windows,
        run: stages.Run,
        clock: stages.StageClock,
        on_step_end: Callable[[int, int, float], None],
        first: int,
        before: Frames | None,
    ) -> Iterator[EditedWindow]:
        """Read, encode, solve and decode one window after another. before: the result's last frames so far."""
        spec, family, texts = self._bundle.spec, self._family, None
        reading = iter(windows)
        while True:
            with self._turn, clock("total"):
                with clock("read"):
                    window = next(reading, None)
                if window is None:
                    return
                if window.index < first:
                    continue
                footage, known = window.footage, None
                if window.num_shared and before is not None:
                    footage, known = family.go_on(spec, checked, footage, before)
                laid_out = family.lay_out(spec, checked, footage)
                if texts is None:
                    with clock("text_encoder"):
                        texts = [stages.encode_text(run, ids) for ids in family.texts(checked)]
                    self._release("text_encoder")
                with clock("vae_encoder"):
                    clean = family.encode_clean(run, spec, checked, footage)
                with clock("noise"):
                    noise = stages.draw_noise(run, spec.geometry, laid_out)
                sample, kept = noise, None
                with clock("vae_encoder"):
                    if laid_out.start is not None:
                        source = footage.clips[laid_out.start]
                        sample = stages.begin_with(run, spec.geometry, laid_out, source, noise)
                    if known is not None:
                        patches = family.encode_known(run, spec, known)
                        kept = stages.Known.of(laid_out, patches, noise)
                self._release("vae_encoder", "condition", "noise", "add_noise")
                hold = self._open_runner().hold
                on_step = partial(self._end_step, laid_out.schedule.table, partial(on_step_end, window.index))
                patches = stages.solve(run, hold, laid_out, texts, clean, sample, kept, clock, on_step)
                self._release("transformer", "solver_step", "keep_known")
                with clock("vae_decoder"):
                    frames = stages.decode_patches(run, *stages.assemble_patches(laid_out, clean, patches))
                self._release("vae_decoder")
                before = frames[: window.num_frames][-max(1, spec.geometry.shared_frames) :]
            new = slice(window.num_shared, window.num_frames)
            sources = tuple(
                window.footage.clips[name][new if name.startswith("video") else slice(None)]
                for name in checked.inputs.names
            )
            begin = window.begin + window.num_shared
            yield EditedWindow(window.index, begin, frames[new], sources, laid_out)

    def _end_step(
        self, table: ScheduleTable, on_step_end: Callable[[int, float], None], step: int, timestep: float
    ) -> None:
        """Give an expert back before the next one is loaded, then tell of the step."""
        done = stages.done_transformer(table.experts, step)
        if done is not None:
            self._release(done)
        on_step_end(step, timestep)

    def run_graph(self, graph: str, **inputs: Any) -> Mapping[str, Array]:
        """Run one of the bundle's graphs. Raises BackendError if it fails, or the pipeline is closed."""
        runner = self._open_runner()
        with self._native_calls:
            return runner.run(graph, inputs)

    def _release(self, *prefixes: str) -> None:
        """Give the graphs whose names begin so back, where the caller asked for it and the runner can."""
        runner: object = self._runner
        if self._release_graphs and isinstance(runner, ReleasesGraphs):
            for graph in self._bundle.spec.graphs:
                if graph.startswith(prefixes):
                    runner.release(graph)

    def _open_runner(self) -> Runner:
        if self._runner is None:
            raise BackendError(
                "the pipeline is closed", hint="open it again with Pipeline.open", code="backend.closed"
            )
        return self._runner
