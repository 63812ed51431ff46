"""The reference's layout on a case small enough to be written down."""

from __future__ import annotations

from reference.sequence import interleave


def test_a_request_written_out_by_hand():
    """Two words, a clip of 2 x 1 x 2, one word; the target is an image of 1 x 2."""
    made = interleave([2, (2, 1, 2), 1], (1, 1, 2))
    # rows: text 0-2, clean 3-6, noisy 7-8, start of vision 9, end of vision 10
    assert made.layout.tolist() == [0, 1, 9, 3, 4, 5, 6, 10, 2, 9, 7, 8, 10]
    assert made.positions.tolist() == [
        [0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0],
        [3, 0, 0, 0], [3, 0, 0, 1], [4, 1, 0, 0], [4, 1, 0, 1],
        [5, 0, 0, 0], [6, 0, 0, 0], [7, 0, 0, 0],
        [8, 0, 0, 0], [8, 0, 0, 1], [9, 0, 0, 0],
    ]  # fmt: skip


def test_generation_from_words_alone():
    made = interleave([3], (1, 2, 1))
    assert made.layout.tolist() == [0, 1, 2, 5, 3, 4, 6]
    assert made.positions[:, 0].tolist() == [0, 1, 2, 3, 4, 4, 5]


def test_the_unconditional_branch_counts_anew():
    made = interleave([(1, 1, 1)], (1, 1, 1))
    assert made.layout.tolist() == [2, 0, 3, 2, 1, 3]
    assert made.positions[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
