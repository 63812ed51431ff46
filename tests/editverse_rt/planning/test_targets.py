"""Recipes: those that ship, those that a user writes, and what no backend can build."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.errors import RequestError
from editverse_rt.planning.targets import (
    BACKENDS,
    PARTS,
    check_build,
    default_precisions,
    load_recipe,
    load_target,
    target_names,
)

RECIPE = """
gpu = "A GPU"
compute_capability = "8.9"
memory_gb = 12
bandwidth_gb_s = 504.2
backend = "tensorrt-rtx"
workspace_gb = 1
source = "its data sheet"
[peak_tflops]
fp32 = 29.1
fp16 = 58.3
bf16 = 58.3
[precision]
transformer = "bf16"
text_encoder = "bf16"
vae = "fp32"
[[profiles]]
name = "short edit"
opt_tokens = 4096
max_tokens = 8192
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_gpus_that_people_have_are_there() -> None:
    wanted = "rtx3090 rtx4090 rtx5090 rtx6000-ada rtx-pro-6000 l4 l40s a10 a100 t4 h100 h200 b200"
    assert set(re.findall(r"\S+", wanted)) <= set(target_names())


@pytest.mark.parametrize("name", target_names())
def test_every_recipe_can_be_built_as_it_says(name: str) -> None:
    target = load_target(name)
    check_build(target, target.backend, target.precision)
    assert set(target.precision) == set(PARTS)
    # A figure in the wrong unit would be off by a thousand.
    assert 10e9 <= target.memory_bytes <= 400e9
    assert 200e9 <= target.bandwidth_bytes_per_s <= 10e12
    assert 5e12 <= min(target.peak_flops.values()) <= max(target.peak_flops.values()) <= 5e15
    assert target.peak_flops["fp16"] > target.peak_flops["fp32"]


def test_an_architecture_takes_the_recipe_of_its_smallest_gpu() -> None:
    for name in ("sm_89", "8.9", "SM89"):
        target = load_target(name)
        assert (target.name, target.memory_bytes) == ("sm_89", 24 * 10**9)
    assert load_target("sm_120").memory_bytes == load_target("rtx5090").memory_bytes


@pytest.mark.parametrize(("name", "hint"), [("rtx490", "mean rtx4090"), ("sm_61", "rtx3090"), ("", "h100")])
def test_an_unknown_target_names_those_there_are(name: str, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        load_target(name)


@pytest.mark.parametrize(
    ("name", "backend", "precision", "advice"),
    [
        ("h100", "tensorrt-rtx", "bf16", "the backend tensorrt"),
        ("b200", "tensorrt-rtx", "bf16", "the backend tensorrt"),
        ("t4", "tensorrt-rtx", "bf16", "the precision fp16"),
        ("t4", "tensorrt", "bf16", "the precision fp16"),
        ("t4", "tensorrt-rtx", "fp32", "the precision fp16"),
        ("h100", "cuda", "bf16", "tensorrt-rtx or tensorrt"),
    ],
)
def test_what_a_backend_cannot_build_is_refused_with_what_to_use(
    name: str, backend: str, precision: str, advice: str
) -> None:
    target = load_target(name)
    with pytest.raises(RequestError, match=advice):
        check_build(target, backend, default_precisions(target, precision))


def test_the_text_encoder_and_the_vae_keep_the_precision_that_they_need() -> None:
    target = load_target("rtx4090")
    assert default_precisions(target, "fp16") == {
        "transformer": "fp16",
        "text_encoder": "fp32",
        "vae": "fp32",
    }
    assert default_precisions(target, "bf16") == {
        "transformer": "bf16",
        "text_encoder": "bf16",
        "vae": "fp32",
    }
    with pytest.raises(RequestError, match="fp8"):
        default_precisions(target, "fp8")


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    target = load_recipe(write(tmp_path, RECIPE))
    assert (target.name, target.sm, target.memory_bytes) == ("mine", "sm_89", 12 * 10**9)
    assert target.backend in BACKENDS


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("memory_gb = 12", "", "memory_gb"),
        ("memory_gb = 12", 'memory_gb = "12"', "memory_gb"),
        ("memory_gb = 12", "memory_gb = 12\nmemory = 3", "memory"),
        ('"8.9"', '"sm89"', "compute_capability"),
        ('backend = "tensorrt-rtx"', 'backend = "cuda"', "backend"),
        ('transformer = "bf16"', 'transformer = "fp8"', "transformer"),
        ("bf16 = 58.3", "", "peak_tflops.bf16"),
        ("opt_tokens = 4096", "opt_tokens = 9000", "opt_tokens"),
        ("[[profiles]]", "[profiles]", "profiles"),
        ("[precision]", "[precision", "TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_its_field(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    with pytest.raises(RequestError, match=named.replace(".", r"\.")) as error:
        load_recipe(write(tmp_path, RECIPE.replace(old, new)))
    assert "\n" not in str(error.value).strip()
    assert "correct the recipe" in str(error.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=60))
def test_no_text_is_anything_but_a_recipe_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "any.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(RequestError):
        load_recipe(path)


def test_a_plan_may_take_most_of_the_memory_for_its_activations() -> None:
    """TensorRT for RTX counts them as workspace; with 1 GB no long sequence of a large model was built."""
    for target in map(load_target, target_names()):
        assert 0.6 * target.memory_bytes <= target.workspace_bytes <= 0.7 * target.memory_bytes, target.name
