"""The table of graphs: what it says, and that the modules behind it keep to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editverse_rt.bundle.spec import Geometry, GraphSpec, TensorSpec
from export.families import build_graphs, family_export
from export.graphs import SolverStep, axis_size, dynamic_shapes, example_inputs
from reference.checkpoint import Checkpoint
from reference.families.editverse import CONFIGS

GRAPH_NAMES = (
    *("text_encoder", "vae_encoder_first", "vae_encoder_next", "solver_step", "noise"),
    *("vae_decoder_first", "vae_decoder_next", "transformer", "keep_known", "schedule_euler", "schedule_ab2"),
)
SIZES = {"Lt": 3, "Lc": 4, "Lg": 5, "Lk": 6, "L": 16, "N": 2, "h": 1, "w": 2, "n": 5}


def test_the_table_has_every_graph_in_order(checkpoint: Checkpoint) -> None:
    assert tuple(build_graphs(checkpoint)) == GRAPH_NAMES


@pytest.mark.parametrize("name", [name for name in GRAPH_NAMES if name != "noise"])
def test_a_module_gives_what_the_table_says(checkpoint: Checkpoint, name: str) -> None:
    graph = build_graphs(checkpoint)[name]
    assert graph.module is not None
    inputs = example_inputs(graph.spec, SIZES)
    with torch.no_grad():
        outputs = graph.module()(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(graph.spec.outputs)
    for output, tensor in zip(outputs, graph.spec.outputs, strict=True):
        assert tuple(output.shape) == tuple(axis_size(axis, SIZES) for axis in tensor.shape), tensor.name
        assert str(output.dtype) == f"torch.{tensor.dtype}", tensor.name


def test_first_and_next_agree_on_the_caches(checkpoint: Checkpoint) -> None:
    specs = {name: graph.spec for name, graph in build_graphs(checkpoint).items()}
    for half in ("vae_encoder", "vae_decoder"):
        first, following = specs[f"{half}_first"], specs[f"{half}_next"]
        given_first = [(t.name, t.shape) for t in first.outputs if t.name.startswith("next_cache_")]
        given_next = [(t.name, t.shape) for t in following.outputs if t.name.startswith("next_cache_")]
        taken = [(f"next_{t.name}", t.shape) for t in following.inputs if t.name.startswith("cache_")]
        assert given_first == given_next == taken
        assert len(taken) > 0


def test_the_geometry_comes_from_the_checkpoint(checkpoint: Checkpoint) -> None:
    geometry = family_export(checkpoint).geometry
    assert isinstance(geometry, Geometry)
    assert (geometry.temporal_ratio, geometry.spatial_ratio, geometry.patch_size, geometry.patch_dim) == (
        4,
        8,
        2,
        CONFIGS["nano"].patch_dim,
    )
    assert geometry.size_multiple == 16
    assert geometry.max_frames == checkpoint.limits["max_frames"]


def test_axes_of_one_name_share_one_dim() -> None:
    spec = GraphSpec(
        "g", "g.onnx", (TensorSpec("a", "float32", ("h", 3, "2*h")), TensorSpec("b", "int64", (2,))), ()
    )
    first, second = dynamic_shapes(spec)
    assert second is None
    assert first is not None
    assert set(first) == {0, 2}
    assert (first[0].__name__, first[2].__name__) == ("h", "2*h")
    assert first[2].root is first[0]


@pytest.mark.parametrize("axis", ["h*16", "16 * h", "-1", ""])
def test_an_axis_of_another_form_is_refused(axis: str) -> None:
    with pytest.raises(ValueError, match="expected a name or a multiple"):
        axis_size(axis, {"h": 2})


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    guidance=st.floats(0, 10),
    history_rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_solver_step_is_guidance_and_a_linear_combination(
    rows: int, columns: int, guidance: float, history_rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sample, cond, uncond = rng.normal(size=(3, rows, columns))
    history = rng.normal(size=(history_rows, rows, columns))
    matrix = rng.uniform(-2, 2, size=(history_rows + 1, history_rows + 2))
    arrays = [torch.tensor(x, dtype=torch.float32) for x in (sample, history, cond, uncond)]
    scalars = [torch.tensor(guidance), torch.tensor(matrix, dtype=torch.float32)]
    following, history_next = SolverStep(history_rows)(*arrays, *scalars)
    velocity = uncond + guidance * (cond - uncond)
    expected = np.tensordot(matrix, np.concatenate([sample[None], history, velocity[None]]), 1)
    np.testing.assert_allclose(following.numpy(), expected[0], atol=1e-3)
    np.testing.assert_allclose(history_next.numpy(), expected[1:], atol=1e-3)
