"""Scores one item after another; each has a file of its own, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from editverse_rt.errors import EditVerseError, MediaError, RequestError
from editverse_rt.evaluate.benchmarks import Benchmark, BenchmarkItem
from editverse_rt.evaluate.clips import clip_exists, hash_clip, read_clip_shown, read_clip_stored
from editverse_rt.evaluate.features import MetricModels
from editverse_rt.evaluate.fidelity import measure_psnr_db, measure_ssim
from editverse_rt.evaluate.judging import EditToJudge, Judge
from editverse_rt.evaluate.metrics import METRICS, ClipToScore, score_clip
from editverse_rt.evaluate.offline_judge import OfflineJudge
from editverse_rt.files import write_json
from editverse_rt.media.frames import Frames, contact_sheet
from editverse_rt.media.plain import jpeg_from_picture
from editverse_rt.quality.heldout import HeldoutEdit, Rule, is_right

__all__ = ["EXACT", "ItemScore", "Scorer", "edit_to_judge", "score_path", "strip_path"]

EXACT = ("psnr_db", "ssim", "success")
"""Measures beside the right answer."""
_STRIP_FRAMES, _STRIP_PX = 4, 120


@dataclass(frozen=True)
class ItemScore:
    """The scores of one item. values: None where one is missing; notes then say why, by metric or "clip".

    judged: what the judge said of each frame. seconds: what scoring took.
    """

    key: str
    fingerprint: str
    values: Mapping[str, float | None]
    notes: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, Any] | None = None
    seconds: float = 0.0


def score_path(folder: Path, key: str) -> Path:
    """The file of an item's scores; a key with slashes is one name."""
    return folder / "scores" / f"{quote(key, safe=' ')}.json"


def strip_path(folder: Path, key: str, what: str) -> Path:
    """The picture of some frames of an item's "source" or "result"."""
    return folder / "strips" / f"{quote(key, safe=' ')}-{what}.jpg"


class Scorer:
    """Measures results of one benchmark.

    folder: where scores are kept. models, judge: None to leave their scores out. rule: when a result is right.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        results: Path,
        folder: Path,
        *,
        models: MetricModels | None = None,
        judge: Judge | None = None,
        rule: Rule | None = None,
    ) -> None:
        self._benchmark, self._results, self._folder = benchmark, results, folder
        self._models, self._judge, self._rule = models, judge, rule
        known = () if models is None else tuple(models.bundle.spec.models)
        self.metrics = tuple(name for name in benchmark.metrics if METRICS[name].model in known)
        self.left_out = tuple(name for name in benchmark.metrics if name not in self.metrics)
        facts = {
            "benchmark": benchmark.name,
            "metrics": self.metrics,
            "models": {} if models is None else {f.path: f.sha256 for f in models.bundle.spec.files},
            "judge": None if judge is None else judge.facts,
            "rule": None if rule is None else asdict(rule),
        }
        self._protocol = json.dumps(facts, sort_keys=True)

    def score_all(
        self, items: Sequence[BenchmarkItem], say: Callable[[str], None] = lambda line: None
    ) -> Iterator[ItemScore]:
        """The scores of all items that have a result, kept ones as they are.

        A result that cannot be read has no values, and a note. Raises BackendError where the judge refuses
        the requests as such, or a graph fails.
        """
        for number, item in enumerate(items, start=1):
            path = self._benchmark.result(self._results, item)
            if not clip_exists(path):
                continue
            fingerprint = self._fingerprint(item, path)
            kept = self._kept(item.key, fingerprint)
            if kept is not None:
                yield kept
                continue
            begin = time.perf_counter()
            score = self._score(item, path, fingerprint)
            score = ItemScore(
                score.key, fingerprint, score.values, score.notes, score.judged, time.perf_counter() - begin
            )
            if self._judge is None or score.values.get("judge") is not None or "clip" in score.notes:
                self._keep(score)
            say(f"scored {item.key} ({number} of {len(items)}, {score.seconds:.1f} s)")
            yield score

    def _score(self, item: BenchmarkItem, path: Path, fingerprint: str) -> ItemScore:
        names = [*self.metrics, *(() if self._judge is None else ("judge",)), *self._exact_names(item)]
        values: dict[str, float | None] = dict.fromkeys(names)
        notes: dict[str, str] = {}
        try:
            result = read_clip_stored(path)
            source = read_clip_stored(_source_path(path, item))
        except EditVerseError as error:
            return ItemScore(item.key, fingerprint, values, {"clip": str(error)})
        result = self._fitted(result, notes)
        if len(result) < len(source):
            notes["clip"] = f"the result has {len(result)} frames, its source {len(source)}"
        self._write_strips(item.key, source, result)
        if self._models is not None:
            clip = ClipToScore(result, item.target_prompt, self._fitted(source), item.source_prompt)
            wanted = [
                name
                for name in self.metrics
                if all(getattr(clip, part) is not None for part in METRICS[name].needs)
            ]
            notes |= {name: "the item has no caption for it" for name in self.metrics if name not in wanted}
            for name, measured in score_clip(self._models, clip, wanted).items():
                values[name] = measured.value
                if measured.note is not None:
                    notes[name] = measured.note
        self._measure_exactly(item, path, values, notes)
        judged = self._judge_item(item, path, source, result, values, notes)
        return ItemScore(item.key, fingerprint, values, notes, judged)

    def _exact_names(self, item: BenchmarkItem) -> tuple[str, ...]:
        return () if item.answer is None else EXACT[:2] if self._rule is None else EXACT

    def _measure_exactly(
        self, item: BenchmarkItem, path: Path, values: dict[str, float | None], notes: dict[str, str]
    ) -> None:
        if item.answer is None:
            return
        try:
            result, answer = read_clip_shown(path), read_clip_shown(item.answer)
            source = read_clip_shown(item.inputs[item.source])
        except EditVerseError as error:
            notes["psnr_db"] = str(error)
            return
        if result.shape != answer.shape:
            notes["psnr_db"] = f"the result is {_shape(result)}, the right answer {_shape(answer)}"
            return
        values["psnr_db"] = measure_psnr_db(result, answer)
        values["ssim"] = measure_ssim(result, answer)
        if self._rule is not None and source.shape == answer.shape:
            edit = HeldoutEdit(item.category, item.instruction, {item.source: source}, item.source, answer)
            values["success"] = float(is_right(edit, result, self._rule))

    def _judge_item(
        self,
        item: BenchmarkItem,
        path: Path,
        source: Frames,
        result: Frames,
        values: dict[str, float | None],
        notes: dict[str, str],
    ) -> dict[str, Any] | None:
        if self._judge is None:
            return None
        try:
            edit = edit_to_judge(self._judge, item, path, source, result)
            verdict = self._judge.judge(edit)
        except (RequestError, MediaError) as error:
            notes["judge"] = str(error)
            return None
        values["judge"] = verdict.score
        if verdict.missing is not None:
            notes["judge"] = verdict.missing
        return {
            "num_differing_sums": verdict.num_differing_sums,
            "frames": [
                {
                    "frame": frame.frame,
                    "scores": None if frame.answer is None else list(frame.answer.scores),
                    "stated_total": None if frame.answer is None else frame.answer.stated_total,
                    "tries": frame.tries,
                }
                for frame in verdict.frames
            ],
        }

    def _fitted(self, frames: Frames, notes: dict[str, str] | None = None) -> Frames:
        """Frames of the size that the benchmark's scores are of."""
        size = self._benchmark.size
        if size is None or frames.shape[1:3] == size or self._models is None:
            return frames
        if notes is not None:
            notes["size"] = f"resized from {frames.shape[2]}x{frames.shape[1]} to {size[1]}x{size[0]}"
        return self._models.resize(frames, *size)

    def _fingerprint(self, item: BenchmarkItem, path: Path) -> str:
        """Of everything that the scores depend on."""
        digest = hashlib.sha256(self._protocol.encode())
        texts = [item.instruction, item.source_prompt, item.target_prompt]
        digest.update(json.dumps(texts).encode())
        for file in (path, _source_path(path, item), item.answer):
            digest.update((hash_clip(file) if file is not None and clip_exists(file) else "none").encode())
        return digest.hexdigest()

    def _kept(self, key: str, fingerprint: str) -> ItemScore | None:
        """Scores of an earlier run, None where there are none, or damaged ones, or of something else."""
        try:
            found = json.loads(score_path(self._folder, key).read_text(encoding="utf-8"))
            score = ItemScore(**found)
        except (OSError, ValueError, TypeError):
            return None
        return score if score.fingerprint == fingerprint and score.key == key else None

    def _keep(self, score: ItemScore) -> None:
        path = score_path(self._folder, score.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(score))

    def _write_strips(self, key: str, source: Frames, result: Frames) -> None:
        for what, frames in (("source", source), ("result", result)):
            path = strip_path(self._folder, key, what)
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet([frames], num_columns=_STRIP_FRAMES, frame_px=_STRIP_PX)
            path.write_bytes(jpeg_from_picture(np.ascontiguousarray(sheet)))


def edit_to_judge(
    judge: Judge, item: BenchmarkItem, path: Path, source: Frames, result: Frames
) -> EditToJudge:
    """What a judge is shown: stored frames, as published; the offline judge compares colours as shown."""
    if isinstance(judge, OfflineJudge):
        answer = None if item.answer is None else read_clip_shown(item.answer)
        return EditToJudge(
            item.instruction, read_clip_shown(item.inputs[item.source]), read_clip_shown(path), answer
        )
    return EditToJudge(item.instruction, source, result)


def _source_path(result: Path, item: BenchmarkItem) -> Path:
    """The source beside the result, as published results have it, else the benchmark's."""
    beside = result.with_name("video1.mp4")
    return beside if result.suffix and clip_exists(beside) else item.inputs[item.source]


def _shape(frames: Frames) -> str:
    return f"{frames.shape[2]}x{frames.shape[1]} with {len(frames)} frames"
