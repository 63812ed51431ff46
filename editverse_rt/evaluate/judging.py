"""What every judge of edits shares: what is judged, by which protocol, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.frames import choose_judged_frames
from editverse_rt.evaluate.prompts import Answer
from editverse_rt.media.frames import Frames

__all__ = [
    "PROFILES",
    "ClipVerdict",
    "EditToJudge",
    "FrameVerdict",
    "Judge",
    "Profile",
    "clip_verdict",
    "frame_pairs",
]


@dataclass(frozen=True, eq=False)
class EditToJudge:
    """One edit: the raw instruction, and clips uint8 [T, H, W, 3].

    answer: the right answer, of the result's shape, where one is known; only the offline judge looks at it.
    """

    instruction: str
    source: Frames
    result: Frames
    answer: Frames | None = None


@dataclass(frozen=True)
class Profile:
    """One protocol of judging.

    exchanges_channels: pictures are shown with red and blue exchanged, as the published script shows them.
    published_frames: range(0, n, n // 3), else exactly three frames. paper_prompt: the paper's, else our own.
    takes_stated_total: the score of a frame is the total that the judge states, else the sum of its scores.
    """

    name: str
    exchanges_channels: bool
    published_frames: bool
    paper_prompt: bool
    takes_stated_total: bool


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("published", True, True, True, True),
        Profile("corrected", False, False, True, False),
        Profile("own", False, False, False, False),
    )
}


@dataclass(frozen=True)
class FrameVerdict:
    """What a judge said of one frame. answer: None where none was had; missing then says why.

    tries: questions that were sent, 0 where the cache knew the answer.
    """

    frame: int
    answer: Answer | None
    missing: str | None = None
    tries: int = 0


@dataclass(frozen=True)
class ClipVerdict:
    """What a judge said of a clip.

    score: mean of its frames' totals, from 0 to 9; None if any frame is missing.
    """

    score: float | None
    frames: tuple[FrameVerdict, ...]

    @property
    def num_differing_sums(self) -> int:
        """Frames whose stated total is not the sum of their scores."""
        return sum(frame.answer is not None and frame.answer.sum_differs for frame in self.frames)

    @property
    def missing(self) -> str | None:
        """Why there is no score, None if there is one."""
        return next((frame.missing for frame in self.frames if frame.answer is None), None)


class Judge(Protocol):
    """Judges one edit after another; it says who it is, since a score means nothing without it."""

    @property
    def identity(self) -> str:
        """The judge's name with its version, and the protocol: printed beside every score."""
        ...

    @property
    def facts(self) -> dict[str, str]:
        """What a score depends on, as data: "model", "profile", "prompt_sha256" and what else there is."""
        ...

    def judge(self, edit: EditToJudge) -> ClipVerdict:
        """Judge one edit. Raises RequestError for an edit that this judge cannot judge."""


def frame_pairs(edit: EditToJudge, profile: Profile) -> list[tuple[int, Frames, Frames]]:
    """The frames that are judged: index in the result, picture of the source, picture of the result.

    Published: the source's frame of the same index, or its last. Else each clip is sampled by its own length.
    Raises RequestError for a clip without frames.
    """
    num_source, num_result = len(edit.source), len(edit.result)
    if num_source < 1:
        raise RequestError("found a source of 0 frames", expected="at least one", code="request.judge")
    chosen = choose_judged_frames(num_result, as_published=profile.published_frames)
    if profile.published_frames:
        sources: Sequence[int] = [min(index, num_source - 1) for index in chosen]
    else:
        sources = choose_judged_frames(num_source, as_published=False)
    return [
        (index, edit.source[before], edit.result[index])
        for index, before in zip(chosen, sources, strict=True)
    ]


def clip_verdict(frames: Sequence[FrameVerdict], profile: Profile) -> ClipVerdict:
    """The mean over frames, or none if one is missing: a mean over what is left would be another score."""
    totals = [_total(frame.answer, profile) for frame in frames if frame.answer is not None]
    is_whole = len(totals) == len(frames) and bool(totals)
    return ClipVerdict(sum(totals) / len(totals) if is_whole else None, tuple(frames))


def _total(answer: Answer, profile: Profile) -> int:
    if profile.takes_stated_total and answer.stated_total is not None:
        return answer.stated_total
    return sum(answer.scores)
