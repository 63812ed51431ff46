"""Runs the metric models: frames, texts and clips to features, in batches, on any backend of ONNX files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from editverse_rt.backends import Runner, open_onnx_runner
from editverse_rt.errors import RequestError
from editverse_rt.evaluate.bundle import RESIZE_GRAPH, ImagePreprocessing, MetricsBundle, load_metrics_bundle
from editverse_rt.evaluate.frames import (
    choose_clip_frames,
    fit_longest_side,
    place_crop,
    size_of_shorter_side,
)
from editverse_rt.evaluate.tokenizer import ClipTokenizer
from editverse_rt.media.frames import Frames

__all__ = ["BATCH_FRAMES", "Features", "MetricModels"]

Features = NDArray[np.float32]
BATCH_FRAMES = 8
"""Frames of one call. More of them bring no speed on a CPU, and take memory."""


class MetricModels:
    """Metric models, opened; a context manager. Graphs are loaded when their first features are asked for.

    runner: of the folder's graphs. backend: the name of what runs them.
    """

    def __init__(self, bundle: MetricsBundle, runner: Runner, backend: str) -> None:
        self.bundle = bundle
        self.backend = backend
        self._runner = runner
        self._tokenizers: dict[str, ClipTokenizer] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        backend: str = "auto",
        *,
        num_threads: int | None = None,
        device: int | None = None,
    ) -> MetricModels:
        """Verify a folder that `export.metrics` wrote and choose a backend for it. device: the GPU's number.

        Raises BundleError for a folder that is not whole, BackendError where nothing runs it.
        """
        bundle = load_metrics_bundle(folder)
        options = {} if device is None else {"device": device}
        name, runner = open_onnx_runner(backend, bundle, num_threads, options)
        return cls(bundle, runner, name)

    def __enter__(self) -> MetricModels:
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, traceback)

    def resize(self, frames: Frames, height_px: int, width_px: int) -> Frames:
        """frames uint8 [T, H, W, 3] -> [T, height_px, width_px, 3] by Pillow's bicubic filter."""
        if frames.shape[1:3] == (height_px, width_px):
            return frames
        size = np.array([height_px, width_px], np.int64)
        parts = [
            self._runner.run(RESIZE_GRAPH, {"frames": part, "size": size})["resized"]
            for part in _parts(frames)
        ]
        return np.concatenate([np.asarray(part) for part in parts])

    def squares(self, frames: Frames, image: ImagePreprocessing, longest_px: int | None = None) -> Frames:
        """frames uint8 [T, H, W, 3] -> a model's squares uint8 [T, S, S, 3].

        longest_px: a frame whose longer side is over it is resized to it first. Raises RequestError for
        another shape.
        """
        _check_frames(frames)
        height, width = frames.shape[1:3]
        if longest_px is not None:
            height, width = fit_longest_side(height, width, longest_px)
            frames = self.resize(frames, height, width)
        height, width = size_of_shorter_side(height, width, image.resize_px)
        frames = self.resize(frames, height, width)
        side = image.crop_px
        top, left = place_crop(height, width, side, rounds=image.crop == "round")
        return np.ascontiguousarray(frames[:, top : top + side, left : left + side])

    def image_features(
        self, model: str, frames: Frames, *, longest_px: int | None = None
    ) -> dict[str, Features]:
        """Features of every frame, float32 [T, D]: "pooled", before the projection, and "projected" where the
        model has one. Raises BundleError for a model that the folder does not have.
        """
        image = self.bundle.model(model).image
        found: dict[str, list[Features]] = {}
        _check_frames(frames)
        for part in _parts(frames):
            outputs = self._runner.run(image.graph, {"pixels": self.squares(part, image, longest_px)})
            for name, value in outputs.items():
                found.setdefault(name, []).append(np.asarray(value))
        return {name: np.concatenate(values) for name, values in found.items()}

    def clip_features(self, model: str, frames: Frames) -> Features:
        """Features of a whole clip, float32 [D], from the frames that `choose_clip_frames` takes.

        frames: uint8 [T, H, W, 3]. Raises RequestError for a model of pictures.
        """
        image = self.bundle.model(model).image
        if image.num_frames is None:
            raise RequestError(
                f'metric model "{model}" takes pictures',
                expected="a model of clips, such as viclip",
                code="request.metric",
            )
        _check_frames(frames)
        chosen = choose_clip_frames(len(frames), image.num_frames)
        squares = self.squares(frames[list(chosen)], image)
        outputs = self._runner.run(image.graph, {"pixels": squares[None]})
        features: Features = np.asarray(outputs["projected"])[0]
        return features

    def text_features(self, model: str, texts: Sequence[str]) -> Features:
        """Features of texts, float32 [N, D], N at least 1.

        Raises RequestError for a model that takes no texts, and without texts.
        """
        text = self.bundle.model(model).text
        if text is None or not texts:
            raise RequestError(
                f'found metric model "{model}" and {len(texts)} texts',
                expected="a model that takes texts, and one text or more",
                code="request.metric",
            )
        if model not in self._tokenizers:
            path = self.bundle.root / text.tokenizer
            self._tokenizers[model] = ClipTokenizer(path, text.max_tokens, text.repair)
        ids = self._tokenizers[model].encode(list(texts))
        return np.asarray(self._runner.run(text.graph, {"ids": ids})["projected"])


def _parts(frames: Frames) -> Iterator[Frames]:
    return (frames[start : start + BATCH_FRAMES] for start in range(0, len(frames), BATCH_FRAMES))


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise RequestError(
            f"found frames {frames.dtype} {list(frames.shape)}",
            expected="uint8 [T, H, W, 3] with T at least 1",
            code="request.metric",
        )
