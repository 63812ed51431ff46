"""Optimization profiles: in order, wide enough for what the bundle takes, and the caller's own shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.bundle.manifest import Bundle, load_spec
from editverse_rt.errors import RequestError
from editverse_rt.planning.targets import load_target, target_names
from editverse_rt.request.layout import Grid, lay_out
from export.orders import built_graphs
from export.profiles import cover_sizes, parse_shapes, profiles_of
from export.sequences import most_tokens

NANO = load_spec("nano")
LARGE = replace(
    NANO,
    geometry=replace(
        NANO.geometry,
        max_frames=81,
        min_area_px=256 * 256,
        max_area_px=512 * 512,
        max_side_px=1024,
        default_height_px=320,
        default_width_px=576,
    ),
)


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("spec", [NANO, LARGE], ids=["nano", "large"])
def test_every_profile_is_in_order(target: str, spec: object) -> None:
    assert isinstance(spec, type(NANO))
    for name in built_graphs(Bundle(Path(), spec)):
        profiles = profiles_of(spec, spec.graphs[name], load_target(target), None, {})
        assert len({repr(p.shapes) for p in profiles}) == len(profiles) >= 1
        dynamic = {t.name for t in spec.graphs[name].inputs if any(isinstance(a, str) for a in t.shape)}
        for profile in profiles:
            assert set(profile.shapes) == dynamic
            for low, opt, high in profile.shapes.values():
                assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
    ends = [
        p.shapes["layout"][2][0]
        for p in profiles_of(spec, spec.graphs["transformer"], load_target(target), None, {})
    ]
    assert ends == sorted(ends)
    assert ends[-1] == min(most_tokens(spec), load_target(target).profiles[-1].max_tokens)


@settings(deadline=None, max_examples=80)
@given(
    num_text=st.integers(1, NANO.tokenizer.max_tokens),
    clips=st.lists(st.tuples(st.integers(1, 5), st.integers(3, 5), st.integers(3, 4)), max_size=3),
)
def test_the_longest_profile_holds_what_the_bundle_takes(
    num_text: int, clips: list[tuple[int, int, int]]
) -> None:
    target = Grid(5, 4, 5)
    layout = lay_out([num_text, *(Grid(*clip) for clip in clips)], target)
    P = NANO.geometry.patch_dim
    text_dim = NANO.graphs["transformer"].inputs[0].shape[1]
    assert isinstance(text_dim, int)
    profile = profiles_of(NANO, NANO.graphs["transformer"], load_target("rtx4090"), None, {})[-1]
    shapes = {
        "text": (num_text, text_dim),
        "clean": (layout.num_clean, P),
        "noisy": (layout.num_noisy, P),
        "layout": layout.layout.shape,
        "positions": layout.positions.shape,
    }
    assert not profile.find_misfits(shapes)
    assert not profile.find_misfits({**shapes, "text": (0, text_dim)}), "the unconditional branch"


@settings(deadline=None, max_examples=80)
@given(rows=st.integers(1, 64), columns=st.integers(1, 64))
def test_a_vae_profile_holds_every_size_that_the_bundle_takes(rows: int, columns: int) -> None:
    geometry = LARGE.geometry
    side = geometry.size_multiple
    if not geometry.min_area_px <= rows * columns * side**2 <= geometry.max_area_px:
        return
    if max(rows, columns) * side > geometry.max_side_px:
        return
    profiles = profiles_of(LARGE, LARGE.graphs["vae_encoder_first"], load_target("h100"), None, {})
    assert any(not p.find_misfits({"frames": (1, rows * side, columns * side, 3)}) for p in profiles)


@settings(deadline=None, max_examples=60)
@given(area=st.integers(1, 400), longest=st.integers(1, 90), data=st.data())
def test_boxes_cover_all_sizes_and_little_else(area: int, longest: int, data: st.DataObject) -> None:
    boxes = cover_sizes(area, longest)
    rows = data.draw(st.integers(1, min(longest, area)))
    columns = data.draw(st.integers(1, min(longest, area // rows)))
    assert any(rows <= height and columns <= width for height, width in boxes)
    for height, width in boxes:
        assert max(height, width) <= longest
        assert height * width <= max(area, area * 4 // 3), "a builder provides for the corner"
    # No box is inside another one.
    assert sorted({height for height, _ in boxes}) == [height for height, _ in boxes]
    assert sorted({width for _, width in boxes}, reverse=True) == [width for _, width in boxes]


def test_the_boxes_of_known_models() -> None:
    """Wan 2.1 to 832x480 and to 1280x720, in patches of 16 pixels; Wan 2.2 5B to 1280x704, of 32."""
    assert cover_sizes(1560, 80) == [(25, 80), (33, 60), (45, 45), (61, 33), (80, 25)]
    assert cover_sizes(3600, 80) == [(60, 80), (80, 59)]
    assert cover_sizes(880, 40) == [(29, 40), (40, 29)]
    assert cover_sizes(256, 16) == [(16, 16)], "no side is too long for the area"


def test_a_vae_profile_is_tuned_for_the_default_size() -> None:
    profiles = profiles_of(LARGE, LARGE.graphs["vae_encoder_first"], load_target("rtx4090"), None, {})
    tuned = {p.name: p.shapes["frames"][1][1:3] for p in profiles}
    # 576x320 lying or standing where a box holds it, else the largest size of the box's own form.
    assert tuned == {
        "1024x320": (320, 576),
        "768x432": (320, 576),
        "576x576": (320, 576),
        "432x768": (576, 320),
        "320x1024": (576, 320),
    }


def test_tokens_can_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    graph, target = LARGE.graphs["transformer"], load_target("h100")
    (only,) = profiles_of(LARGE, graph, target, 4000, {})
    assert only.shapes["layout"][2] == (4000,)
    with pytest.raises(RequestError, match="max_tokens is 2; expected 3 or more"):
        profiles_of(LARGE, graph, target, 2, {})


def test_shapes_of_ones_own() -> None:
    graph, target = NANO.graphs["transformer"], load_target("rtx4090")
    P = NANO.geometry.patch_dim
    given = {"opt": parse_shapes(f"noisy:50x{P}"), "max": parse_shapes(f"transformer/noisy:60x{P},layout:99")}
    (profile,) = profiles_of(NANO, graph, target, None, given)
    assert profile.shapes["noisy"] == ((1, P), (50, P), (60, P))
    assert profile.shapes["layout"][2] == (99,)
    assert profile.shapes["layout"][1][0] <= 99
    # The axis that both have is one: a builder takes no profile in which they differ.
    assert profile.shapes["positions"] == tuple((*rows, 4) for rows in profile.shapes["layout"])
    # Shapes of another graph's input change nothing here.
    other = {"max": parse_shapes("vae_encoder_first/frames:1x64x64x3")}
    assert profiles_of(NANO, graph, target, None, other) == profiles_of(NANO, graph, target, None, {})


@pytest.mark.parametrize("text", ["noisy", "noisy:", "noisy:1x", "noisy:1x-1", ":1", "noisy:1,", "a b:1"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="expected name:1x2x3"):
        parse_shapes(text)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ("noisy:5", "expected"),
        ("positions:99x3", "expected"),
        ("timestep:3", "no dynamic axis"),
        ("layout:2", "is above"),
        ("layout:99,positions:98x4", "axis L is 98 here and 99 in another input"),
    ],
)
def test_shapes_that_do_not_fit(shapes: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        profiles_of(NANO, NANO.graphs["transformer"], load_target("l4"), None, {"max": parse_shapes(shapes)})
