"""Rows of a transformer by family: Wan's sequences by hand; EditVerse's are held by test_profiles.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.bundle.manifest import load_spec
from editverse_rt.bundle.spec import BundleSpec
from editverse_rt.planning.targets import load_target
from export.profiles import profiles_of
from export.sequences import most_noisy_rows, most_tokens, row_range, sample_rows

NANO = load_spec("nano")
CONDITIONINGS = ("none", "rows", "channels", "control")


def wan(conditioning: str) -> BundleSpec:
    """The sizes of Wan2.1-T2V-1.3B: 81 frames of 832x480 are 21 x 30 x 52 patches."""
    geometry = replace(
        NANO.geometry, temporal_ratio=4, spatial_ratio=8, patch_size=2, max_frames=81, max_area_px=832 * 480
    )
    tokenizer = replace(NANO.tokenizer, max_tokens=512)
    return replace(NANO, family="wan", conditioning=conditioning, geometry=geometry, tokenizer=tokenizer)


def test_the_longest_sequence_is_the_clip_itself() -> None:
    assert most_tokens(wan("none")) == most_tokens(wan("rows")) == most_tokens(wan("channels")) == 32_760
    # Three reference pictures stand before VACE's clip.
    assert most_tokens(wan("control")) == 24 * 30 * 52
    assert most_noisy_rows(wan("control")) == 24 * 30 * 52


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("target", ["t4", "rtx4090", "h100"])
def test_the_last_profile_reaches_the_longest_sequence(target: str, conditioning: str) -> None:
    spec = wan(conditioning)
    profiles = profiles_of(spec, spec.graphs["transformer"], load_target(target), None, {})
    reach = min(most_tokens(spec), load_target(target).profiles[-1].max_tokens)
    assert profiles[-1].shapes["layout"][2] == profiles[-1].shapes["noisy"][2][:1] == (reach,)
    assert all(profile.shapes["text"][0][0] == 1 for profile in profiles)
    # Both experts take the same sequences.
    second = replace(spec.graphs["transformer"], name="transformer_2")
    assert profiles_of(spec, second, load_target(target), None, {}) == profiles


@settings(deadline=None, max_examples=60)
@given(
    conditioning=st.sampled_from(CONDITIONINGS),
    frames=st.integers(1, 21),
    rows=st.integers(1, 30),
    columns=st.integers(1, 52),
    references=st.integers(0, 3),
    has_first=st.booleans(),
)
def test_a_profile_holds_every_request(
    conditioning: str, frames: int, rows: int, columns: int, references: int, has_first: bool
) -> None:
    spec = wan(conditioning)
    noisy, clean, kept = frames * rows * columns, 0, 0
    if conditioning == "control":
        noisy += references * rows * columns
    if conditioning in ("channels", "control"):
        clean = noisy
    if conditioning == "rows" and has_first and frames > 1:
        clean = kept = rows * columns
        noisy -= kept
    P, text_dim = NANO.geometry.patch_dim, NANO.graphs["transformer"].inputs[0].shape[1]
    assert isinstance(text_dim, int)
    shapes = {
        "text": (77, text_dim),
        "clean": (clean, P),
        "noisy": (noisy, P),
        "layout": (noisy + kept,),
        "positions": (noisy + kept, 4),
    }
    profiles = profiles_of(spec, spec.graphs["transformer"], load_target("h100"), None, {})
    assert any(not profile.find_misfits(shapes) for profile in profiles)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_sizes_of_a_profile_agree_with_each_other(conditioning: str) -> None:
    """TensorRT checks each bound of a profile on its own: a concatenation of unequal rows is refused."""
    spec = wan(conditioning)
    found = row_range(spec, load_target("rtx4090").profiles[0])
    for sizes in (found.low, found.opt, found.high):
        if conditioning in ("channels", "control"):
            assert sizes["Lc"] == sizes["Lg"] == sizes["L"]
        assert sizes["L"] <= sizes["Lg"] + sizes["Lc"]
    assert all(found.low[axis] <= found.opt[axis] <= found.high[axis] for axis in found.low)


def test_a_sample_is_what_a_request_lays_out() -> None:
    first = sample_rows(wan("rows"))
    # Three latent frames of 4 x 5, of which the first is clean: its rows come after the noisy ones' numbers.
    np.testing.assert_array_equal(first.layout, [*range(40, 60), *range(40)])
    assert (first.num_noisy, first.num_clean) == (40, 20)
    np.testing.assert_array_equal(
        first.positions[[0, 1, 20, 59]], [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 2, 3, 4]]
    )
    assert sample_rows(wan("none")).num_clean == 0
    assert sample_rows(wan("control")).num_clean == 40
