"""The judge by rules: the right answer gets 9, doing nothing and destroying everything do not."""

from __future__ import annotations

import numpy as np
import pytest

from editverse_rt.errors import RequestError
from editverse_rt.evaluate.judging import EditToJudge
from editverse_rt.evaluate.offline_judge import OfflineJudge
from editverse_rt.media.frames import Frames


def clips() -> tuple[Frames, Frames]:
    """A grey clip with a square that has to become bright."""
    source = np.full((5, 24, 24, 3), 90, np.uint8)
    answer = source.copy()
    answer[:, 8:16, 8:16] = 220
    return source, answer


def score(result: Frames) -> tuple[float | None, tuple[int, int, int]]:
    source, answer = clips()
    found = OfflineJudge().judge(EditToJudge("Make it bright", source, result, answer))
    assert len(found.frames) == 3
    assert found.frames[0].answer is not None
    return found.score, found.frames[0].answer.scores


def test_the_right_answer_is_perfect() -> None:
    assert score(clips()[1]) == (9, (3, 3, 3))


def test_doing_nothing_keeps_the_background_and_nothing_else() -> None:
    assert score(clips()[0]) == (3, (0, 0, 3))


def test_an_edit_that_spoils_the_background_loses_that_score_alone() -> None:
    result = clips()[1].copy()
    result[:, :8] = 0
    assert score(result)[1] == (3, 3, 0)


def test_half_of_the_way_is_between() -> None:
    result = clips()[1].copy()
    result[:, 8:16, 8:16] = 160
    following, quality, background = score(result)[1]
    assert (following, background) == (2, 3)
    assert quality == 0


def test_an_edit_without_a_right_answer_of_its_shape_is_refused() -> None:
    source, answer = clips()
    for wrong in (None, answer[:2]):
        with pytest.raises(RequestError, match="right answer"):
            OfflineJudge().judge(EditToJudge("x", source, answer, wrong))
