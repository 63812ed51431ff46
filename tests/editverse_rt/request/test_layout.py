"""Layouts, sizes and prompts against oracles that are plain loops, written from the paper's rules."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.bundle.spec import Geometry
from editverse_rt.errors import RequestError
from editverse_rt.request.layout import Grid, lay_out
from editverse_rt.request.prompt import TextSegment, VisionSegment, parse_prompt, with_tags
from editverse_rt.request.sizes import choose_num_frames, choose_size, choose_sizes

GEOMETRY = Geometry(
    temporal_ratio=4,
    spatial_ratio=8,
    patch_size=2,
    patch_dim=64,
    clean_dim=64,
    min_area_px=64 * 64,
    max_area_px=96 * 96,
    max_side_px=144,
    max_frames=17,
    default_height_px=64,
    default_width_px=80,
    default_frames=9,
    default_fps=8.0,
)
FULL = replace(
    GEOMETRY,
    min_area_px=256 * 256,
    max_area_px=512 * 512,
    max_side_px=1024,
    max_frames=81,
    default_height_px=384,
    default_width_px=384,
    default_frames=81,
    default_fps=16.0,
)

# --- parse_prompt


def text(words: str) -> TextSegment:
    return TextSegment(words)


def vision(name: str) -> VisionSegment:
    return VisionSegment(name)


@pytest.mark.parametrize(
    ("prompt", "names", "segments"),
    [
        ("A red circle", [], [text("A red circle")]),
        ("<video1> Turn it green", ["video1"], [vision("video1"), text("Turn it green")]),
        ("Turn  it green <video1>", ["video1"], [text("Turn  it green"), vision("video1")]),
        (
            "<video1> Insert a boat <image1> in the water.",
            ["image1", "video1"],
            [vision("video1"), text("Insert a boat"), vision("image1"), text("in the water.")],
        ),
        ("<video2><video1>Go", ["video1", "video2"], [vision("video2"), vision("video1"), text("Go")]),
        ("<image12>\n\tGo ", ["image12"], [vision("image12"), text("Go")]),
        ("Is 1 < 2 > 0? <b>", [], [text("Is 1 < 2 > 0? <b>")]),
        ("the video shows an image", [], [text("the video shows an image")]),
    ],
)
def test_prompts_split_at_their_tags(prompt: str, names: list[str], segments: list[object]) -> None:
    assert list(parse_prompt(prompt, names)) == segments


@pytest.mark.parametrize(
    ("prompt", "names", "line"),
    [
        ("", [], "instruction is empty"),
        (" \n", [], "instruction is empty"),
        ("<video1>", ["video1"], "instruction is empty"),
        ("<video1> Go", [], "mentions <video1>, but no video1 is given"),
        ("<video2> Go", ["video1"], "mentions <video2>, but no video2 is given"),
        ("Go", ["video1"], "video1 is given, but the instruction does not mention <video1>"),
        ("<video1> and <video1>", ["video1"], "mentions <video1> twice"),
        ("<video1> Go", ["video1", "steps"], 'an input is called "steps"'),
        ("<video1> Go", ["video1", "image01"], 'an input is called "image01"'),
        ("<video1> Go", ["video1", "image0"], 'an input is called "image0"'),
        ("<video> Go", ["video1"], 'has "<video>", which is not a tag'),
        ("<Video1> Go", ["video1"], 'has "<Video1>", which is not a tag'),
        ("<video 1> Go", ["video1"], 'has "<video 1>", which is not a tag'),
        ("<video01> Go", ["video1"], 'has "<video01>", which is not a tag'),
        ("<video0> Go", ["video1"], 'has "<video0>", which is not a tag'),
        ("<video1 Go", ["video1"], 'has "<video1 ", which is not a tag'),
        ("</video1> Go", ["video1"], 'has "</video1>", which is not a tag'),
        ("<video1/> Go", ["video1"], 'has "<video1/>", which is not a tag'),
        ("<IMAGE_1> Go", ["image1"], 'has "<IMAGE_1>", which is not a tag'),
        ("<videos1> Go", ["video1"], 'has "<videos1>", which is not a tag'),
    ],
)
def test_prompts_that_contradict_their_inputs(prompt: str, names: list[str], line: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_prompt(prompt, names)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<video1> Go", True),
        ("Put <image2> in", True),
        ("<Video1> Go", True),
        ("< image 1 > Go", True),
        ("Go", False),
        ("the video shows image1", False),
        ("Is 1 < 2 > 0? <b>", False),
    ],
)
def test_tags_are_told_from_words(prompt: str, expected: bool) -> None:
    assert with_tags(prompt, ["video1", "image1"]) == (prompt if expected else f"<video1> <image1> {prompt}")
    assert with_tags(prompt, []) == prompt


def test_a_prompt_that_is_no_string() -> None:
    with pytest.raises(RequestError, match="the instruction is bytes; give a string"):
        parse_prompt(b"Go", [])  # type: ignore[arg-type]


NAMES = st.builds(
    lambda kind, number: f"{kind}{number}", st.sampled_from(["video", "image"]), st.integers(1, 30)
)
WORDS = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, NAMES), unique_by=lambda pair: pair[1], max_size=5), WORDS)
def test_segments_joined_are_the_prompt(pairs: list[tuple[str, str]], tail: str) -> None:
    prompt = "".join(f"{words}<{name}>" for words, name in pairs) + tail
    expected: list[object] = []
    for words, name in [*pairs, (tail, "")]:
        if words.strip():
            expected.append(text(words.strip()))
        if name:
            expected.append(vision(name))
    names = [name for _, name in pairs]
    if not any(isinstance(segment, TextSegment) for segment in expected):
        with pytest.raises(RequestError, match="instruction is empty"):
            parse_prompt(prompt, names)
    else:
        assert list(parse_prompt(prompt, names)) == expected


# --- sizes


def naive_size(source: tuple[int, int], geometry: Geometry) -> tuple[int, int]:
    """The area rule by trying every size, in fractions."""
    height, width = source
    multiple = geometry.spatial_ratio * geometry.patch_size
    tried = []
    for h in range(multiple, geometry.max_side_px + 1, multiple):
        for w in range(multiple, geometry.max_side_px + 1, multiple):
            if h * w < geometry.min_area_px or h * w > geometry.max_area_px:
                continue
            stretch = Fraction(h * width, w * height)
            tried.append((max(stretch, 1 / stretch), h, w))
    best = min(tried)[0]
    within = max(best, Fraction(101, 100))
    near = [(abs(h * w - height * width), stretch, h, w) for stretch, h, w in tried if stretch <= within]
    return min(near)[2:]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), st.integers(400, 2500), st.sampled_from([GEOMETRY, FULL]))
def test_sizes_follow_the_area_rule(height: int, per_mille: int, geometry: Geometry) -> None:
    source = (height, max(1, height * per_mille // 1000))
    height_px, width_px = choose_size("video1", source, geometry)
    assert (height_px, width_px) == naive_size(source, geometry)
    assert height_px % 16 == width_px % 16 == 0
    assert geometry.min_area_px <= height_px * width_px <= geometry.max_area_px
    assert max(height_px, width_px) <= geometry.max_side_px


@pytest.mark.parametrize(
    ("geometry", "source", "size"),
    [
        (GEOMETRY, (64, 64), (64, 64)),
        (GEOMETRY, (96, 96), (96, 96)),
        (GEOMETRY, (1, 1), (64, 64)),
        (GEOMETRY, (2000, 2000), (96, 96)),
        (GEOMETRY, (720, 1280), (64, 112)),
        (GEOMETRY, (1280, 720), (112, 64)),
        (FULL, (1080, 1920), (368, 656)),
        (FULL, (288, 512), (288, 512)),
        (FULL, (480, 640), (432, 576)),
    ],
)
def test_known_sizes(geometry: Geometry, source: tuple[int, int], size: tuple[int, int]) -> None:
    assert choose_size("video1", source, geometry) == size


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9))
def test_a_size_that_the_bundle_takes_is_kept(rows: int, columns: int) -> None:
    if 16 <= rows * columns <= 36:
        assert choose_size("video1", (16 * rows, 16 * columns), GEOMETRY) == (16 * rows, 16 * columns)


def test_what_is_too_long_and_narrow() -> None:
    with pytest.raises(RequestError, match=r"image1 is 10000x10 px \(width x height\); .* 144x32; crop it"):
        choose_size("image1", (10, 10000), GEOMETRY)


def test_a_source_without_pixels() -> None:
    with pytest.raises(RequestError, match="video1 is 0x5 px"):
        choose_size("video1", (5, 0), GEOMETRY)


def test_the_result_follows_main_and_a_mask_of_its_shape_takes_its_size() -> None:
    target, sizes = choose_sizes(
        {"video1": (720, 1280), "video2": (270, 480), "image1": (500, 500)}, "video1", GEOMETRY
    )
    assert target == (64, 112)
    assert sizes == {"video1": (64, 112), "video2": (64, 112), "image1": (96, 96)}


def test_a_size_that_is_asked_for() -> None:
    target, sizes = choose_sizes({"video1": (720, 1280), "image1": (64, 64)}, "video1", GEOMETRY, (48, 96))
    assert target == (48, 96)
    assert sizes == {"video1": (48, 96), "image1": (64, 64)}


def test_without_inputs_the_size_is_the_bundles() -> None:
    assert choose_sizes({}, None, GEOMETRY) == ((64, 80), {})
    assert choose_sizes({}, None, GEOMETRY, (80, 64)) == ((80, 64), {})


@pytest.mark.parametrize(
    "size", [(0, 0), (-16, -256), (64, 65), (32, 32), (160, 32), (112, 112), (10**9, 16)]
)
def test_a_size_that_the_bundle_does_not_take(size: tuple[int, int]) -> None:
    with pytest.raises(
        RequestError, match=rf"size is {size[1]}x{size[0]} .*multiples of 16 up to 144 .* nearest is"
    ):
        choose_sizes({}, None, GEOMETRY, size)


@pytest.mark.parametrize("size", [(64,), (64, 64, 3), 64, ("64", "64"), (64.0, 64.0)])
def test_a_size_that_is_no_pair_of_whole_numbers(size: Any) -> None:
    with pytest.raises(RequestError, match=r"give \(height, width\) in whole pixels"):
        choose_sizes({}, None, GEOMETRY, size)


# --- lengths


def test_lengths_follow_the_inputs() -> None:
    assert choose_num_frames(None, True, True, GEOMETRY) == 17
    assert choose_num_frames(None, False, True, GEOMETRY) == 1
    assert choose_num_frames(None, False, False, GEOMETRY) == 9
    assert choose_num_frames(12, True, False, GEOMETRY) == 9
    assert choose_num_frames(1, True, False, GEOMETRY) == 1
    assert choose_num_frames(17, False, True, GEOMETRY) == 17


@pytest.mark.parametrize("num_frames", [0, -4, 18, 5.0])
def test_lengths_out_of_range(num_frames: Any) -> None:
    with pytest.raises(RequestError, match=f"num_frames is {num_frames}; this bundle takes 1 to 17"):
        choose_num_frames(num_frames, True, False, GEOMETRY)


# --- layout

GRIDS = st.builds(Grid, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def naive_layout(
    segments: list[int | Grid], target: Grid, with_text: bool
) -> tuple[list[int], list[tuple[int, int, int, int]]]:
    """Token by token: text rows, then clean rows, then noisy rows, then the two marks."""
    texts = sum(s for s in segments if isinstance(s, int)) if with_text else 0
    cleans = sum(s.frames * s.rows * s.columns for s in segments if isinstance(s, Grid))
    noisies = target.frames * target.rows * target.columns
    start, end = texts + cleans + noisies, texts + cleans + noisies + 1
    layout: list[int] = []
    positions: list[tuple[int, int, int, int]] = []
    sequential = text_row = 0
    vision_row = texts
    for segment in [*segments, target]:
        if isinstance(segment, int):
            for _ in range(segment if with_text else 0):
                layout.append(text_row)
                positions.append((sequential, 0, 0, 0))
                text_row += 1
                sequential += 1
            continue
        layout.append(start)
        positions.append((sequential, 0, 0, 0))
        sequential += 1
        for frame in range(segment.frames):
            for row in range(segment.rows):
                for column in range(segment.columns):
                    layout.append(vision_row)
                    positions.append((sequential, frame, row, column))
                    vision_row += 1
            sequential += 1
        layout.append(end)
        positions.append((sequential, 0, 0, 0))
        sequential += 1
    return layout, positions


@settings(deadline=None)
@given(st.lists(st.integers(0, 5) | GRIDS, max_size=6), GRIDS, st.booleans())
def test_layouts_equal_the_naive_ones(segments: list[int | Grid], target: Grid, with_text: bool) -> None:
    made = lay_out(segments, target, with_text=with_text)
    layout, positions = naive_layout(segments, target, with_text)
    assert made.layout.tolist() == layout
    assert [tuple(row) for row in made.positions.tolist()] == positions
    assert made.layout.dtype == made.positions.dtype == np.int64
    assert made.positions.shape == (len(layout), 4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5) | GRIDS, max_size=6), GRIDS, st.booleans())
def test_every_row_has_one_place_and_the_target_stands_last(
    segments: list[int | Grid], target: Grid, with_text: bool
) -> None:
    made = lay_out(segments, target, with_text=with_text)
    num_rows = made.num_text + made.num_clean + made.num_noisy
    assert sorted(made.layout[made.layout < num_rows].tolist()) == list(range(num_rows))
    num_marks = 1 + sum(isinstance(segment, Grid) for segment in segments)
    assert (made.layout == num_rows).sum() == (made.layout == num_rows + 1).sum() == num_marks
    last = list(range(num_rows - made.num_noisy, num_rows))
    assert made.layout[-1 - made.num_noisy : -1].tolist() == last
    assert made.layout[-1] == num_rows + 1


def test_a_video_between_words_by_hand() -> None:
    # "Go <clip of 2 latent frames of 1x2> now" + end of sequence, and an image of 1x1 to be made.
    made = lay_out([1, Grid(2, 1, 2), 1, 1], Grid(1, 1, 1))
    assert made.layout.tolist() == [0, 8, 3, 4, 5, 6, 9, 1, 2, 8, 7, 9]
    assert made.positions[:, 0].tolist() == [0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert made.positions[:, 1].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert made.positions[:, 3].tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]


def test_the_unconditional_branch_counts_without_the_text() -> None:
    made = lay_out([1, Grid(2, 1, 2), 1, 1], Grid(1, 1, 1), with_text=False)
    assert made.num_text == 0
    assert made.layout.tolist() == [5, 0, 1, 2, 3, 6, 5, 4, 6]
    assert made.positions[:, 0].tolist() == [0, 1, 1, 2, 2, 3, 4, 5, 6]
