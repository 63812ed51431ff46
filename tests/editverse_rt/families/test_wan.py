"""Wan's rules: which rows are clean, where they stand, what begins the solver, and which inputs have a use.

That the whole equals diffusers' pipelines is tested beside the exporter; here graphs are played by numpy.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editverse_rt.bundle.manifest import load_bundle
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.errors import RequestError
from editverse_rt.families import family_of
from editverse_rt.request.checked import CheckedRequest, check_request
from editverse_rt.request.edit_request import EditRequest
from editverse_rt.request.inputs import Footage, read_inputs
from editverse_rt.request.laid_out import LaidOutRequest
from editverse_rt.request.layout import Grid
from editverse_rt.request.tokenizer import Tokenizer
from editverse_rt.request.windows import read_windows
from editverse_rt.stages import assemble_patches

ROWS, COLUMNS = 3, 4  # of 48 x 64 px
WAN = family_of("wan")


@pytest.fixture
def wan_spec(fake_bundle: Any) -> Any:
    """wan_spec(conditioning): the fake bundle as one of the Wan family."""
    spec = load_bundle(fake_bundle.root).spec

    def make(conditioning: str) -> BundleSpec:
        can = replace(spec.capabilities, negative_prompt=True, strength=conditioning == "none")
        clean_dim = 160 if conditioning == "control" else spec.geometry.clean_dim
        return replace(
            spec,
            family="wan",
            conditioning=conditioning,
            unconditional="prompt",
            default_negative_prompt="A yellow ring",
            capabilities=can,
            geometry=replace(spec.geometry, clean_dim=clean_dim),
        )

    return make


@pytest.fixture
def check(fake_bundle: Any) -> Any:
    """check(spec, prompt, inputs, **options): a checked request and its footage."""

    def make(
        spec: BundleSpec, prompt: str, inputs: dict[str, Any], **options: Any
    ) -> tuple[CheckedRequest, Footage]:
        facts = spec.tokenizer
        tokenizer = Tokenizer(fake_bundle.root / facts.file, facts.eos_id, facts.max_tokens)
        tables: list[tuple[int, int]] = []

        def make_table(schedule: Any, steps: int, first: int) -> Any:
            tables.append((steps, first))
            return schedule.table

        request = EditRequest(prompt, inputs, **options)
        checked = check_request(spec, tokenizer, request, make_table)
        make.tables = tables  # type: ignore[attr-defined]
        return checked, read_inputs(checked.inputs)

    return make


def lay_out(spec: BundleSpec, pair: tuple[CheckedRequest, Footage]) -> LaidOutRequest:
    return WAN.lay_out(spec, *pair)


def test_generation_has_one_grid_and_two_texts(wan_spec: Any, check: Any) -> None:
    spec = wan_spec("none")
    checked, footage = check(spec, "Turn the circle green", {}, size=(48, 64), num_frames=9)
    laid_out = WAN.lay_out(spec, checked, footage)
    assert (laid_out.target.frames, laid_out.target.rows, laid_out.target.columns) == (3, ROWS, COLUMNS)
    layout = laid_out.cond.layout
    assert layout.layout.tolist() == list(range(3 * ROWS * COLUMNS))
    frame, row, column = 1, 2, 3
    index = (frame * ROWS + row) * COLUMNS + column
    assert layout.positions[index].tolist() == [0, frame, row, column], "nothing turns by the order of rows"
    assert laid_out.uncond.layout is layout
    assert (laid_out.cond.text, laid_out.uncond.text) == (0, 1)
    prompt, negative = WAN.texts(checked)
    assert prompt[-1] == negative[-1] == spec.tokenizer.eos_id
    assert prompt != negative


def test_tags_are_not_asked_for_and_are_no_text(wan_spec: Any, check: Any, blocky_clip: Any) -> None:
    spec, clip = wan_spec("channels"), blocky_clip(5)
    plain, _ = check(spec, "Make it grayscale", {"video1": clip})
    tagged, _ = check(spec, "<video1> Make it grayscale", {"video1": clip})
    assert WAN.texts(plain) == WAN.texts(tagged)


def test_a_negative_prompt_replaces_the_bundles_own(wan_spec: Any, check: Any) -> None:
    spec = wan_spec("none")
    own, _ = check(spec, "Make it grayscale", {}, size=(48, 64))
    other, _ = check(spec, "Make it grayscale", {}, size=(48, 64), negative_prompt="the small red square")
    none, _ = check(spec, "Make it grayscale", {}, size=(48, 64), negative_prompt="")
    assert len({WAN.texts(checked)[1] for checked in (own, other, none)}) == 3
    assert WAN.texts(none)[1] == (spec.tokenizer.eos_id,)


def test_a_noised_source_begins_in_the_middle_of_the_schedule(
    wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec = wan_spec("none")
    pair = check(spec, "Make it grayscale", {"video1": blocky_clip(9)}, num_inference_steps=10, strength=0.35)
    assert check.tables == [(10, 7)], "diffusers runs int(10 * 0.35) steps, the last ones"
    assert lay_out(spec, pair).start == "video1"
    check(spec, "Make it grayscale", {"video1": blocky_clip(9)})
    assert check.tables == [(4, 1)], "0.8 of four steps are three"
    with pytest.raises(RequestError, match=r"strength 0.1 leaves none of 4 steps") as caught:
        check(spec, "Make it grayscale", {"video1": blocky_clip(9)}, strength=0.1)
    assert caught.value.field == "strength"


def test_a_first_frame_stands_clean_before_the_noisy_ones(
    wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec = wan_spec("rows")
    pair = check(spec, "Make it grayscale", {"image1": blocky_clip(1)[0]}, num_frames=9)
    laid_out, a_frame = lay_out(spec, pair), ROWS * COLUMNS
    assert (laid_out.num_frames, laid_out.target.frames, laid_out.num_kept) == (9, 2, 1)
    layout = laid_out.cond.layout
    assert (layout.num_clean, layout.num_noisy) == (a_frame, 2 * a_frame)
    noisy = 2 * a_frame
    assert layout.layout.tolist() == [*range(noisy, noisy + a_frame), *range(noisy)]
    assert layout.positions[:, 1].tolist() == sorted([0, 1, 2] * a_frame)
    clean, solved = np.zeros((a_frame, 64), np.float32), np.ones((noisy, 64), np.float32)
    grid, patches = assemble_patches(laid_out, clean, solved)
    assert grid.frames == 3
    assert patches[:, 0].tolist() == [0.0] * a_frame + [1.0] * noisy


def test_a_picture_does_not_say_how_long_a_generated_clip_is(
    wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec = wan_spec("rows")
    _, footage = check(spec, "Make it grayscale", {"image1": blocky_clip(1)[0]})
    assert footage.num_frames == spec.geometry.default_frames


class Graphs:
    """The masked encoder and the condition of a control bundle, in numpy."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    def __call__(self, graph: str, **inputs: Any) -> dict[str, Any]:
        if graph == "condition":
            columns = inputs["mask"].reshape(ROWS, 16, COLUMNS, 16).mean((1, 3))
            extra = np.repeat(columns[None, ..., None], 32, -1)
            both = np.concatenate([inputs["inactive"], inputs["reactive"], extra], -1)
            return {"clean": both.astype(np.float32)}
        self.kept.append(inputs["keep"])
        seen = inputs["frames"][-1].astype(np.float32) * inputs["keep"][-1][..., None]
        patches = np.zeros((1, ROWS, COLUMNS, 64), np.float32)
        patches[..., :3] = seen.reshape(ROWS, 16, COLUMNS, 16, 3).mean((1, 3))
        return {"patches": patches, "next_cache_0": np.zeros(1, np.float32)}


def test_control_rows_are_references_backwards_and_then_the_masked_video(
    wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec, video = wan_spec("control"), blocky_clip(9)
    mask = np.zeros_like(video)
    mask[:, :, 32:] = 255
    pictures = {f"image{i}": blocky_clip(1, seed=i)[0] for i in (1, 2)}
    inputs = {"video1": video, "video2": mask, **pictures}
    checked, footage = check(spec, "Make it grayscale", inputs)
    laid_out, graphs = WAN.lay_out(spec, checked, footage), Graphs()
    assert (laid_out.target.frames, laid_out.num_dropped, laid_out.num_frames) == (5, 2, 9)
    clean = WAN.encode_clean(graphs, spec, checked, footage).reshape(5, ROWS, COLUMNS, 160)
    for place, name in enumerate(("image2", "image1")):
        corners = pictures[name][::16, ::16].astype(np.float32)
        np.testing.assert_allclose(clean[place, ..., :3], corners, atol=0.01)
        assert not clean[place, ..., 64:].any(), "a reference has nothing to make anew, and no mask"
    # Columns 2 and 3 are made anew: the kept side is black there, the other one elsewhere.
    corners = video[8, ::16, ::16].astype(np.float32)
    np.testing.assert_allclose(clean[4, :, :2, :3], corners[:, :2], atol=0.01)
    assert not clean[4, :, 2:, :3].any()
    np.testing.assert_allclose(clean[4, :, 2:, 64:67], corners[:, 2:], atol=0.01)
    assert clean[4, :, :, 128:].mean() == pytest.approx(0.5)
    grid, patches = assemble_patches(laid_out, np.zeros((60, 1)), np.arange(60.0)[:, None])
    assert grid.frames == 3
    assert patches[0, 0] == 24, "the references' rows are dropped"


def test_a_control_video_without_a_mask_is_made_anew_whole(
    wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec, graphs = wan_spec("control"), Graphs()
    checked, footage = check(spec, "Make it grayscale", {"video1": blocky_clip(5)})
    WAN.encode_clean(graphs, spec, checked, footage)
    assert [int(keep.max()) for keep in graphs.kept] == [0, 0, 1, 1], "first what is kept: nothing"


def test_a_reference_of_another_shape_stands_on_white(wan_spec: Any, check: Any, blocky_clip: Any) -> None:
    spec, graphs = wan_spec("control"), Graphs()
    inputs = {"video1": blocky_clip(5), "image1": np.zeros((48, 48, 3), np.uint8)}
    checked, footage = check(spec, "Make it grayscale", inputs)
    assert footage.clips["image1"].shape == (1, 48, 48, 3)
    clean = WAN.encode_clean(graphs, spec, checked, footage).reshape(3, ROWS, COLUMNS, 160)
    assert clean[0, 0, :, 0].tolist() == [127.5, 0, 0, 127.5], "8 px of white on either side"


@pytest.mark.parametrize(
    ("conditioning", "names", "message"),
    [
        ("none", ["video1", "video2"], "at most 1 video,"),
        ("none", ["image1"], "at most 0 images"),
        ("rows", ["video1"], "at most 0 videos"),
        ("channels", ["video1", "image1"], "at most 0 images"),
        ("channels", [], "no video is given"),
        ("control", ["video1", "video2", "video3"], "at most 2 videos"),
    ],
)
def test_an_input_without_a_use_is_refused_by_name(
    conditioning: str, names: list[str], message: str, wan_spec: Any, check: Any, blocky_clip: Any
) -> None:
    spec = wan_spec(conditioning)
    inputs = {name: blocky_clip(5) if name.startswith("video") else blocky_clip(1)[0] for name in names}
    with pytest.raises(RequestError, match=message) as caught:
        lay_out(spec, check(spec, "Make it grayscale", inputs))
    assert caught.value.code == "request.unsupported"


def test_a_mask_of_another_length_is_refused(wan_spec: Any, check: Any, blocky_clip: Any) -> None:
    spec = wan_spec("control")
    pair = check(spec, "Make it grayscale", {"video1": blocky_clip(9), "video2": blocky_clip(5)})
    with pytest.raises(RequestError, match="video2, the mask, has 5 frames and video1 has 9"):
        lay_out(spec, pair)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_that_is_too_long_is_refused(field: str, wan_spec: Any, check: Any) -> None:
    """diffusers cuts it without a word."""
    spec, long = wan_spec("none"), "Turn the circle green. " * 200
    texts = {"prompt": "Make it grayscale", field: long}
    with pytest.raises(RequestError, match=rf"this bundle takes up to {spec.tokenizer.max_tokens}") as caught:
        check(spec, texts.pop("prompt"), {}, size=(48, 64), **texts)
    assert caught.value.code == "request.prompt_length"
    assert "\n" not in str(caught.value)


def test_1280x720_is_refused_with_the_nearest_size(wan_spec: Any, check: Any) -> None:
    """Wan 2.2's VAE and patches take multiples of 32; 720 is none."""
    spec = wan_spec("rows")
    geometry = replace(
        spec.geometry, spatial_ratio=16, patch_size=2, min_area_px=256 * 256, max_area_px=1280 * 704,
        max_side_px=1280, default_height_px=704, default_width_px=1280,
    )  # fmt: skip
    with pytest.raises(RequestError, match=r"1280x720.*multiples of 32.*nearest is 1280x704"):
        check(replace(spec, geometry=geometry), "Make it grayscale", {}, size=(720, 1280))


def test_references_are_left_out_where_clean_rows_are_longer_than_noisy_ones() -> None:
    laid_out: Any = SimpleNamespace(target=Grid(3, 1, 1), num_kept=0, num_dropped=1)
    patches = np.arange(6, dtype=np.float32).reshape(3, 2)
    grid, rows = assemble_patches(laid_out, np.zeros((3, 5), np.float32), patches)
    assert grid == Grid(2, 1, 1)
    assert np.array_equal(rows, patches[1:])


@pytest.mark.parametrize(
    ("video", "mask", "options", "is_refused"),
    [
        (25, 25, {}, False),
        (25, 24, {}, True),
        (25, 26, {}, True),
        (25, 5, {"num_frames": 30}, True),
        (30, 25, {"num_frames": 21}, False),
    ],
)
def test_a_mask_of_a_long_video_is_held_to_its_whole_length(
    wan_spec: Any, check: Any, slow_clip: Any, video: int, mask: int, options: Any, is_refused: bool
) -> None:
    """Before the first window, not in the one in which the mask ends."""
    spec = wan_spec("control")
    spec = replace(spec, geometry=replace(spec.geometry, max_frames=9, shared_frames=1))
    inputs = {"video1": slow_clip(video, 48, 64), "video2": slow_clip(mask, 48, 64)}
    checked, _ = check(spec, "Make it night", inputs, **options)
    window = next(iter(read_windows(checked.inputs)))
    if not is_refused:
        assert WAN.lay_out(spec, checked, window.footage).num_frames == 9
        return
    with pytest.raises(RequestError, match=f"the mask, has {mask} frames and video1 has {video}") as caught:
        WAN.lay_out(spec, checked, window.footage)
    assert caught.value.field == "inputs.video2"
