"""Which frames a score reads, and how they become a model's squares; integers only.

The rules are those of the published scores, with their rounding; see docs/evaluation.md.
"""

from __future__ import annotations

from editverse_rt.errors import RequestError

__all__ = [
    "PICK_LONGEST_PX",
    "choose_clip_frames",
    "choose_judged_frames",
    "fit_longest_side",
    "place_crop",
    "size_of_shorter_side",
]

PICK_LONGEST_PX = 672
"""A frame whose longer side is over this is resized to it before PickScore's own preprocessing."""


def choose_clip_frames(num_frames: int, num_taken: int = 8) -> tuple[int, ...]:
    """The frames that a model of clips sees: int(i n / num_taken); repeated where a clip is shorter.

    Raises RequestError for a clip without frames.
    """
    _check_frames(num_frames)
    return tuple(i * num_frames // num_taken for i in range(num_taken))


def choose_judged_frames(num_frames: int, *, as_published: bool) -> tuple[int, ...]:
    """The frames that a judge sees.

    as_published: range(0, n, n // 3), which is 3 frames, or 4 where n is no multiple of 3, or 5 for n = 5;
    one and two frames, for which the published script fails, are taken whole. Else exactly 3 frames, at
    floor((i + 0.5) n / 3). Raises RequestError for a clip without frames.
    """
    _check_frames(num_frames)
    if as_published:
        return tuple(range(0, num_frames, max(1, num_frames // 3)))
    return tuple((2 * i + 1) * num_frames // 6 for i in range(3))


def size_of_shorter_side(height_px: int, width_px: int, side_px: int) -> tuple[int, int]:
    """Height and width after the shorter side was brought to side_px; the longer one is rounded down."""
    if width_px <= height_px:
        return side_px * height_px // width_px, side_px
    return side_px, side_px * width_px // height_px


def fit_longest_side(height_px: int, width_px: int, longest_px: int = PICK_LONGEST_PX) -> tuple[int, int]:
    """Height and width that PickScore begins with: int(scale * side) in floating point, as published.

    The product may fall just short of a whole number, so the longer side may be a pixel short of it.
    """
    longest = max(height_px, width_px)
    if longest <= longest_px:
        return height_px, width_px
    scale = longest_px / longest
    return max(1, int(scale * height_px)), max(1, int(scale * width_px))


def place_crop(height_px: int, width_px: int, side_px: int, *, rounds: bool) -> tuple[int, int]:
    """Top and left of the square of side_px in the middle.

    rounds: halves go to the even neighbour, as torchvision's CenterCrop; else down, as in transformers. The
    picture is at least as large as the square.
    """
    top, left = height_px - side_px, width_px - side_px
    return (round(top / 2), round(left / 2)) if rounds else (top // 2, left // 2)


def _check_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise RequestError(
            f"found a clip of {num_frames} frames", expected="at least one", code="request.metric"
        )
