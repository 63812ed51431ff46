"""A VAE's plan of several boxes, really built: less workspace than one box takes, and a profile for every size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from editverse_rt.bundle.manifest import Bundle, load_bundle
from editverse_rt.engines.choice import choose_profile
from editverse_rt.engines.manifest import PlanSpec, ShapeProfile
from editverse_rt.errors import BackendError
from editverse_rt.planning.targets import load_target
from export.builder import Builder, Built, Options
from export.precision import save_typed
from export.profiles import profiles_of
from export.standard import load_standard

GRAPH = "vae_encoder_first"
TARGET = load_target("rtx4090")
WORKSPACE_BYTES = 600_000_000
"""A box of 45 x 45 patches takes between 0.4 and 0.6 GB of nano's encoder, one of 39 x 80 more than 0.6."""


@pytest.fixture(scope="module")
def sized() -> Bundle:
    """nano with the sizes of Wan 2.1: 832x480, and sides to 1280."""
    nano = load_bundle("nano")
    sides = {"max_area_px": 832 * 480, "max_side_px": 1280, "default_height_px": 480, "default_width_px": 832}
    return replace(nano, spec=replace(nano.spec, geometry=replace(nano.spec.geometry, **sides)))


@pytest.fixture(scope="module")
def typed(sized: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typed") / f"{GRAPH}.onnx"
    save_typed(load_standard(sized, GRAPH), path)
    return path


def build(typed: Path, profiles: tuple[ShapeProfile, ...]) -> Built:
    options = Options((TARGET.compute_capability,), WORKSPACE_BYTES)
    return Builder("tensorrt-rtx").build(typed, profiles, options, lambda phase, step, total: True)


def test_boxes_are_built_where_one_box_is_not(sized: Bundle, typed: Path) -> None:
    boxes = profiles_of(sized.spec, sized.spec.graphs[GRAPH], TARGET, None, {})
    assert [box.name for box in boxes] == ["1280x400", "960x528", "720x720", "528x976", "400x1280"]
    assert build(typed, boxes).plan.nbytes > 0
    # What lies within both sides of 832x480 and of 480x832 and of the longest side is one box of twice the area.
    one = ShapeProfile("one", {"frames": ((1, 16, 16, 3), (1, 480, 832, 3), (1, 39 * 16, 80 * 16, 3))})
    with pytest.raises(BackendError, match="OutOfMemory"):
        build(typed, (one,))


@pytest.mark.parametrize(
    ("height_px", "width_px", "name"),
    [
        (480, 832, "960x528"),
        (832, 480, "528x976"),
        (624, 624, "720x720"),
        (304, 1280, "1280x400"),
        (1280, 304, "400x1280"),
        (16, 16, "960x528"),  # the smallest corner of all
    ],
)
def test_the_runtime_takes_the_smallest_box_that_holds_a_size(
    sized: Bundle, height_px: int, width_px: int, name: str
) -> None:
    boxes = profiles_of(sized.spec, sized.spec.graphs[GRAPH], TARGET, None, {})
    plan = PlanSpec(GRAPH, "fp32", "x.plan", 1, "", "", "", boxes)
    assert boxes[choose_profile(plan, {"frames": (1, height_px, width_px, 3)})].name == name
