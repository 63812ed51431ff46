"""The C library called from Python through ctypes: what the tests of its binary interface share."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("EDITVERSE_NATIVE_BUILD", ROOT / "build" / "native"))
DEFAULT = -1
CANCELLED = -5


class Step(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("step", ctypes.c_int32),
        ("num_inference_steps", ctypes.c_int32),
        ("timestep", ctypes.c_double),
        ("window", ctypes.c_int32),
        ("num_windows", ctypes.c_int32),
    ]


class Window(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("window", ctypes.c_int32),
        ("num_windows", ctypes.c_int32),
        ("begin", ctypes.c_int64),
        ("frames", ctypes.POINTER(ctypes.c_uint8)),
        ("num_bytes", ctypes.c_size_t),
        ("num_frames", ctypes.c_int32),
        ("width_px", ctypes.c_int32),
        ("height_px", ctypes.c_int32),
    ]


STEP_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Step))
WINDOW_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Window))
OnStep = Callable[[int, int, int], bool]
"""(step, window, num_windows) -> whether to go on."""
OnWindow = Callable[[int, int, int, NDArray[np.uint8]], bool]
"""(window, num_windows, begin, frames) -> whether to go on."""


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("bundle", ctypes.c_char_p),
        ("backend", ctypes.c_char_p),
        ("onnxruntime", ctypes.c_char_p),
        ("num_threads", ctypes.c_int32),
        ("allow_unverified", ctypes.c_int32),
        ("tensorrt", ctypes.c_char_p),
        ("release_graphs", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("cuda_graphs", ctypes.c_int32),
        ("weight_budget_bytes", ctypes.c_int64),
        ("plugin", ctypes.c_char_p),
    ]


class Input(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("path", ctypes.c_char_p),
        ("frames", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
        ("num_frames", ctypes.c_int32),
        ("width_px", ctypes.c_int32),
        ("height_px", ctypes.c_int32),
        ("row_stride_bytes", ctypes.c_size_t),
        ("frame_stride_bytes", ctypes.c_size_t),
    ]


class Request(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("prompt", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(Input)),
        ("num_inputs", ctypes.c_size_t),
        ("schedule", ctypes.c_char_p),
        ("num_inference_steps", ctypes.c_int32),
        ("guidance_scale", ctypes.c_double),
        ("seed", ctypes.c_int64),
        ("width_px", ctypes.c_int32),
        ("height_px", ctypes.c_int32),
        ("num_frames", ctypes.c_int32),
        ("fps", ctypes.c_double),
        ("start_s", ctypes.c_double),
        ("callback", STEP_CALLBACK),
        ("user_data", ctypes.c_void_p),
        ("negative_prompt", ctypes.c_char_p),
        ("strength", ctypes.c_double),
        ("length", ctypes.c_char_p),
        ("window_callback", WINDOW_CALLBACK),
    ]


class ClipSize(ctypes.Structure):
    _fields_ = [("num_frames", ctypes.c_int32), ("width_px", ctypes.c_int32), ("height_px", ctypes.c_int32)]


class RequestInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("result", ClipSize),
        ("fps", ctypes.c_double),
        ("num_inference_steps", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
        ("sequence_length", ctypes.c_int64),
        ("num_windows", ctypes.c_int32),
    ]


class FramesInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.POINTER(ctypes.c_uint8)),
        ("num_bytes", ctypes.c_size_t),
        ("size", ClipSize),
        ("fps", ctypes.c_double),
        ("times_s", ctypes.POINTER(ctypes.c_double)),
    ]


class LibraryError(Exception):
    """What a call returned: its code, ev_last_error's text, and the same as data."""

    def __init__(self, code: int, name: str, text: str, facts: Mapping[str, str]) -> None:
        super().__init__(f"{name}: {text}")
        self.code, self.name, self.text, self.facts = code, name, text, facts


def load_library() -> Any:
    library = ctypes.CDLL(os.fspath(BUILD / "libeditverse_rt.so"))
    for name in (
        "ev_version",
        "ev_last_error",
        "ev_last_error_json",
        "ev_error_name",
        "ev_info",
        "ev_result_notice",
    ):
        getattr(library, name).restype = ctypes.c_char_p
    library.ev_result_notice.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


class NativePipeline:
    """A pipeline of the C library; a context manager."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        num_threads: int = 1,
        backend: str = "ort-cpu",
        *,
        release_graphs: bool = False,
    ) -> None:
        self.library = load_library()
        self._handle = ctypes.c_void_p()
        self.times_s: list[float] | None = None  # of the last result
        self.num_frames = 0  # of the last result
        options = Options()
        self.library.ev_options_init(ctypes.byref(options), ctypes.c_size_t(ctypes.sizeof(options)))
        options.bundle, options.num_threads = os.fsencode(bundle), num_threads
        options.backend, options.release_graphs = backend.encode(), release_graphs
        self._check(self.library.ev_open(ctypes.byref(self._handle), ctypes.byref(options)))

    def __enter__(self) -> NativePipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.library.ev_close(ctypes.byref(self._handle))

    def _check(self, code: int) -> None:
        if code != 0:
            name = self.library.ev_error_name(code).decode()
            facts = json.loads(self.library.ev_last_error_json())
            raise LibraryError(code, name, self.library.ev_last_error().decode(), facts)

    def describe(self, prompt: str, **settings: Any) -> tuple[RequestInfo, list[ClipSize]]:
        request, keep = self._request(prompt, settings)
        info = RequestInfo()
        self.library.ev_request_info_init(ctypes.byref(info), ctypes.c_size_t(ctypes.sizeof(info)))
        sizes = (ClipSize * max(1, request.num_inputs))()
        self._check(
            self.library.ev_describe_request(self._handle, ctypes.byref(request), ctypes.byref(info), sizes)
        )
        del keep
        return info, list(sizes[: request.num_inputs])

    def run(
        self, prompt: str, *, save: Sequence[os.PathLike[str]] = (), **settings: Any
    ) -> tuple[NDArray[np.uint8], float, list[str]]:
        """Frames uint8 [T, H, W, 3], their rate, and the notices. settings: as of Pipeline.__call__, and on_step,
        on_window.

        save: files that the result is written to. T is 0 where on_window took the frames.
        """
        request, keep = self._request(prompt, settings)
        result, frames = ctypes.c_void_p(), FramesInfo()
        self._check(self.library.ev_run(self._handle, ctypes.byref(request), ctypes.byref(result)))
        del keep
        self.library.ev_frames_init(ctypes.byref(frames), ctypes.c_size_t(ctypes.sizeof(frames)))
        self._check(self.library.ev_result_frames(result, ctypes.byref(frames)))
        shape = (frames.size.num_frames, frames.size.height_px, frames.size.width_px, 3)
        if frames.data:
            array = np.ctypeslib.as_array(frames.data, shape=shape).copy()
        else:
            assert frames.num_bytes == 0
            array = np.zeros((0, *shape[1:]), np.uint8)
        self.num_frames = frames.size.num_frames
        self.times_s = frames.times_s[: frames.size.num_frames + 1] if frames.times_s else None
        notices: list[str] = []
        while (line := self.library.ev_result_notice(result, len(notices))) is not None:
            notices.append(line.decode())
        try:
            for path in save:
                self._check(self.library.ev_result_save(result, ctypes.c_char_p(os.fsencode(path))))
        finally:
            self.library.ev_result_free(ctypes.byref(result))
        return array, frames.fps, notices

    def _request(self, prompt: str, settings: Mapping[str, Any]) -> tuple[Request, list[object]]:
        """The struct, and what has to live as long as it."""
        request = Request()
        self.library.ev_request_init(ctypes.byref(request), ctypes.c_size_t(ctypes.sizeof(request)))
        request.prompt = prompt.encode()
        given = dict(settings)
        height, width = given.pop("size", None) or (DEFAULT, DEFAULT)
        request.height_px, request.width_px = height, width
        on_step: OnStep | None = given.pop("on_step", None)
        on_window: OnWindow | None = given.pop("on_window", None)
        keep: list[object] = []
        if on_step is not None:
            request.callback = STEP_CALLBACK(lambda _, step: 0 if on_step(*_facts_of(step[0])) else 1)
        if on_window is not None:
            request.window_callback = WINDOW_CALLBACK(
                lambda _, window: 0 if on_window(*_window_of(window[0])) else 1
            )
        for name in ("schedule", "negative_prompt", "length"):
            if name in given:
                setattr(request, name, given.pop(name).encode())
        for name in (
            "num_inference_steps",
            "guidance_scale",
            "strength",
            "seed",
            "num_frames",
            "fps",
            "start_s",
        ):
            if name in given:
                setattr(request, name, given.pop(name))
        inputs = (Input * max(1, len(given)))()
        for item, (name, source) in zip(inputs, given.items(), strict=False):
            self.library.ev_input_init(ctypes.byref(item), ctypes.c_size_t(ctypes.sizeof(item)))
            item.name = name.encode()
            if isinstance(source, np.ndarray):
                frames = source[None] if source.ndim == 3 else source
                assert frames.dtype == np.uint8
                assert frames.strides[2:] == (3, 1), "pixels must be adjacent; rows and frames need not"
                item.frames = frames.ctypes.data
                item.num_frames, item.height_px, item.width_px = frames.shape[:3]
                item.frame_stride_bytes, item.row_stride_bytes = frames.strides[:2]
                item.num_bytes = (
                    frames.strides[0] * (frames.shape[0] - 1)
                    + frames.strides[1] * (frames.shape[1] - 1)
                    + frames.shape[2] * 3
                )
                keep.append(frames)
            else:
                item.path = os.fsencode(source)
        request.inputs, request.num_inputs = inputs, len(given)
        return request, [inputs, *keep]


def _facts_of(step: Step) -> tuple[int, int, int]:
    assert step.struct_size == ctypes.sizeof(Step)
    return step.step, step.window, step.num_windows


def _window_of(window: Window) -> tuple[int, int, int, NDArray[np.uint8]]:
    assert window.struct_size == ctypes.sizeof(Window)
    shape = (window.num_frames, window.height_px, window.width_px, 3)
    assert window.num_bytes == np.prod(shape)
    return (
        window.window,
        window.num_windows,
        window.begin,
        np.ctypeslib.as_array(window.frames, shape=shape).copy(),
    )
