"""A judge that needs no server: rules that compare a result with the right answer, where one is known.

It serves tests, demonstrations and the procedural world, whose edits have one right answer each. Its scores
have the scale of a server's judge and are not comparable with them.
"""

from __future__ import annotations

import numpy as np

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.judging import (
    PROFILES,
    ClipVerdict,
    EditToJudge,
    FrameVerdict,
    clip_verdict,
    frame_pairs,
)
from editverse_rt.evaluate.prompts import Answer
from editverse_rt.media.frames import Frames
from editverse_rt.quality.heldout import measure_psnr_db

__all__ = ["OfflineJudge"]

CHANGED_LEVELS = 16
"""A pixel had to change when the right answer differs from the source by more in a channel."""
ERROR_LEFT = (0.1, 0.3, 1.0)
"""Of the change that was asked for, the share of squared error below which a frame gets 3, 2 or 1."""
EDITED_DB = (30.0, 24.0, 18.0)
"""PSNR to the right answer where it had to change, for 3, 2 or 1."""
PRESERVED_DB = (34.0, 28.0, 22.0)
"""PSNR to the right answer elsewhere, for 3, 2 or 1."""


class OfflineJudge:
    """A `Judge` by rules: the share of the change that is left, the PSNR inside it, and the PSNR outside."""

    _profile = PROFILES["own"]

    @property
    def identity(self) -> str:
        """Who judges, in one line."""
        return "rules beside the right answer, no model"

    @property
    def facts(self) -> dict[str, str]:
        """What the report says of the judge."""
        return {"model": "rules", "profile": self._profile.name, "prompt_sha256": "none"}

    def judge(self, edit: EditToJudge) -> ClipVerdict:
        """Judge one edit. Raises RequestError where no right answer of the clips' shape is known."""
        answer = edit.answer
        if answer is None or answer.shape != edit.result.shape or answer.shape != edit.source.shape:
            raise RequestError(
                f"found a right answer of shape {None if answer is None else list(answer.shape)}",
                expected=f"that of source and result, {list(edit.result.shape)}",
                hint="use a judge behind a server for edits without one",
                code="request.judge",
            )
        verdicts = [
            FrameVerdict(index, _judge_frame(source, result, answer[index]))
            for index, source, result in frame_pairs(edit, self._profile)
        ]
        return clip_verdict(verdicts, self._profile)


def _judge_frame(source: Frames, result: Frames, answer: Frames) -> Answer:
    changed = np.abs(source.astype(np.int16) - answer).max(-1) > CHANGED_LEVELS
    following = quality = background = 3
    if changed.any():
        wanted = _squared_error(source[changed], answer[changed])
        left = _squared_error(result[changed], answer[changed]) / wanted
        following = sum(left < limit for limit in ERROR_LEFT)
        quality = _steps(measure_psnr_db(result, answer, changed), EDITED_DB)
    if not changed.all():
        background = _steps(measure_psnr_db(result, answer, ~changed), PRESERVED_DB)
    return Answer((following, quality, background), following + quality + background)


def _squared_error(found: Frames, expected: Frames) -> float:
    return float(((found.astype(np.float64) - expected) ** 2).mean())


def _steps(value_db: float, limits: tuple[float, ...]) -> int:
    return sum(value_db >= limit for limit in limits)
