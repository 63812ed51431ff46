"""The metrics of EditVerseBench, TGVE and TGVE+: from features to numbers, and from clips to features.

Protocols, models and preprocessing are described in docs/evaluation.md. Each metric is a row of `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.frames import PICK_LONGEST_PX
from editverse_rt.media.frames import Frames

__all__ = [
    "METRICS",
    "ClipToScore",
    "Measured",
    "Metric",
    "adjacent_consistency",
    "clip_direction",
    "cosines",
    "pairwise_consistency",
    "score_clip",
    "text_alignment",
]

Rows = NDArray[Any]


@dataclass(frozen=True)
class ClipToScore:
    """A result and what it is compared with: frames uint8 [T, H, W, 3] and captions."""

    result: Frames
    target_prompt: str | None = None
    source: Frames | None = None
    source_prompt: str | None = None


@dataclass(frozen=True)
class Measured:
    """One metric of one clip. value: None where it is not defined, note then says why."""

    value: float | None
    note: str | None = None


@dataclass(frozen=True)
class Metric:
    """One metric: the model that it needs, what it needs of a clip, and how it is computed.

    needs: fields of `ClipToScore` besides the result.
    """

    name: str
    model: str
    needs: tuple[str, ...]
    measure: Callable[[_Scored], Measured]


def score_clip(models: MetricModels, clip: ClipToScore, names: Sequence[str]) -> dict[str, Measured]:
    """Measure a clip by the named metrics; each model sees the clip once.

    Raises RequestError for an unknown name or where the clip lacks what a metric needs, BundleError for a
    model that the folder does not have.
    """
    for name in names:
        if name not in METRICS:
            raise RequestError(
                f'found metric "{name}"', expected=f"one of {', '.join(METRICS)}", code="request.metric"
            )
        lacking = [field for field in METRICS[name].needs if getattr(clip, field) is None]
        if lacking:
            raise RequestError(
                f"metric {name} lacks {' and '.join(lacking)} of the clip",
                hint="give it, or leave the metric out",
                code="request.metric",
            )
    scored = _Scored(models, clip)
    return {name: METRICS[name].measure(scored) for name in names}


# --- from features to numbers ---


def cosines(left: Rows, right: Rows) -> NDArray[np.float64]:
    """Cosine of each pair of rows, float64 [N]; 0 where a row is all zeros."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    products = np.sum(left * right, axis=-1)
    found: NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return found


def adjacent_consistency(features: Rows) -> float | None:
    """Mean of max(0, cosine) of adjacent frames; None for fewer than two frames (EditVerseBench)."""
    if len(features) < 2:
        return None
    return float(np.maximum(cosines(features[1:], features[:-1]), 0).mean())


def pairwise_consistency(features: Rows) -> float | None:
    """Mean cosine of all pairs of different frames; None for fewer than two frames (TGVE's CLIPFrame)."""
    count = len(features)
    if count < 2:
        return None
    units = features.astype(np.float64)
    units = units / np.linalg.norm(units, axis=-1, keepdims=True)
    return float(((units @ units.T).sum() - count) / (count * (count - 1)))


def text_alignment(features: Rows, text: Rows, scale: float) -> float:
    """Mean of scale times the cosine of each frame with one text [D]."""
    return float(scale * cosines(features, np.broadcast_to(text, features.shape)).mean())


def clip_direction(result: Rows, source: Rows, target_text: Rows, source_text: Rows) -> float | None:
    """Cosine of the change of the clip with the change of the captions, all features [D] made units before.

    None where the clip or the captions did not change: there is no direction then (TGVE+, ViCLIP_dir).
    """
    change, wanted = _unit(result) - _unit(source), _unit(target_text) - _unit(source_text)
    if not change.any() or not wanted.any():
        return None
    return float(cosines(change, wanted))


def _unit(features: Rows) -> NDArray[np.float64]:
    features = features.astype(np.float64)
    norm = np.linalg.norm(features)
    return features / norm if norm > 0 else features


# --- from clips to features ---


class _Scored:
    """One clip on its way through the models; features are computed once."""

    def __init__(self, models: MetricModels, clip: ClipToScore) -> None:
        self.models = models
        self.clip = clip

    @cached_property
    def clip_images(self) -> Mapping[str, Rows]:
        return self.models.image_features("clip", self.clip.result)

    @cached_property
    def video(self) -> Rows:
        return self.models.clip_features("viclip", self.clip.result)

    def text(self, model: str) -> Rows:
        features: Rows = self.models.text_features(model, [self.clip.target_prompt or ""])[0]
        return features

    def scale(self, model: str) -> float:
        scale = self.models.bundle.model(model).logit_scale
        if scale is None:
            raise RequestError(
                f'metric model "{model}" has no logit_scale',
                hint="export it again from a CLIP model",
                code="request.metric",
            )
        return scale


_ONE_FRAME = "one frame: nothing to compare it with"
_NO_CHANGE = "no direction, counted as 0: the clip or its captions are copies of the source's"


def _percent(value: float | None) -> Measured:
    return Measured(None, _ONE_FRAME) if value is None else Measured(100 * value)


def _clip_temporal(scored: _Scored) -> Measured:
    return _percent(adjacent_consistency(scored.clip_images["pooled"]))


def _dino_temporal(scored: _Scored) -> Measured:
    features = scored.models.image_features("dino", scored.clip.result)
    return _percent(adjacent_consistency(features["pooled"]))


def _frame_text(scored: _Scored) -> Measured:
    features = scored.clip_images["projected"]
    return Measured(text_alignment(features, scored.text("clip"), scored.scale("clip")))


def _pick(scored: _Scored, longest_px: int | None) -> Measured:
    features = scored.models.image_features("pickscore", scored.clip.result, longest_px=longest_px)
    text = scored.text("pickscore")
    return Measured(text_alignment(features["projected"], text, scored.scale("pickscore")))


def _video_text(scored: _Scored) -> Measured:
    return Measured(100 * float(cosines(scored.video, scored.text("viclip"))))


def _clip_frame(scored: _Scored) -> Measured:
    value = pairwise_consistency(scored.clip_images["projected"])
    return Measured(None, _ONE_FRAME) if value is None else Measured(value)


def _viclip_out(scored: _Scored) -> Measured:
    return Measured(float(cosines(scored.video, scored.text("viclip"))))


def _viclip_dir(scored: _Scored) -> Measured:
    clip = scored.clip
    if clip.source is None or clip.source_prompt is None:
        raise RequestError(
            "viclip_dir lacks the source or its caption", hint="give both", code="request.metric"
        )
    source = scored.models.clip_features("viclip", clip.source)
    source_text = scored.models.text_features("viclip", [clip.source_prompt])[0]
    value = clip_direction(scored.video, source, scored.text("viclip"), source_text)
    return Measured(0.0, _NO_CHANGE) if value is None else Measured(value)


_TARGET = ("target_prompt",)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        # EditVerseBench
        Metric("clip_temporal", "clip", (), _clip_temporal),
        Metric("dino_temporal", "dino", (), _dino_temporal),
        Metric("frame_text", "clip", _TARGET, _frame_text),
        Metric("pick", "pickscore", _TARGET, lambda scored: _pick(scored, PICK_LONGEST_PX)),
        Metric("video_text", "viclip", _TARGET, _video_text),
        # TGVE
        Metric("tgve_clip_frame", "clip", (), _clip_frame),
        Metric("tgve_clip_score", "clip", _TARGET, _frame_text),
        Metric("tgve_pick", "pickscore", _TARGET, lambda scored: _pick(scored, None)),
        # TGVE+
        Metric("viclip_out", "viclip", _TARGET, _viclip_out),
        Metric("viclip_dir", "viclip", (*_TARGET, "source", "source_prompt"), _viclip_dir),
    )
}
"""By name. EditVerseBench's are published times 100, CLIPScore and PickScore by their models' scale, the
others as cosines."""
