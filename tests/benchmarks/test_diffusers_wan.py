"""Wan's work: the rows that are drawn, and diffusers' own class behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.contenders import TorchRunner
from benchmarks.diffusers_wan import DiffusersTransformer
from benchmarks.work import draw_transformer_inputs
from editverse_rt.bundle.manifest import Bundle, load_spec
from export.families import family_export
from reference.checkpoint import load_any_checkpoint
from reference.families.wan_random import make_random_wan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_wan("wan-t2v-tiny", tmp_path_factory.mktemp("wan") / "checkpoint", blocks=2)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    """What a bundle of it says of its graphs."""
    graphs = {name: graph.spec for name, graph in family_export(load_any_checkpoint(folder)).graphs().items()}
    return Bundle(folder, replace(load_spec("nano"), family="wan", conditioning="none", graphs=graphs))


@pytest.mark.parametrize("tokens", [64, 300, 1530, 8190])
def test_rows_are_a_grid_that_is_nearly_as_long_as_asked_for(bundle: Bundle, tokens: int) -> None:
    inputs = draw_transformer_inputs(bundle, tokens)
    frames, rows, columns = inputs["positions"][-1, 1:] + 1
    assert frames * rows * columns == len(inputs["noisy"]) == len(inputs["layout"])
    assert 0.9 * tokens <= len(inputs["noisy"]) <= tokens
    assert len(np.unique(inputs["positions"], axis=0)) == len(inputs["positions"])
    assert inputs["clean"].shape == (0, 64)


def test_the_class_of_diffusers_gives_what_the_reference_gives(folder: Path, bundle: Bundle) -> None:
    inputs = draw_transformer_inputs(bundle, 120)
    found = TorchRunner(folder, bundle, 1, compiled=False).run("transformer", inputs)["velocity"]
    model = load_any_checkpoint(folder).transformer
    with torch.no_grad():
        expected = model(*(torch.from_numpy(inputs[name]) for name in inputs)).numpy()
    # Largest difference over the largest value: other kernels in another order; 1e-6 was measured.
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(found - expected).max() > 0, "two programs, not one twice"


def test_another_class_is_refused(tmp_path: Path) -> None:
    made = make_random_wan("wan-vace-tiny", tmp_path / "vace", blocks=1)
    with pytest.raises(
        ValueError, match="holds a WanVACETransformer3DModel; expected a WanTransformer3DModel"
    ):
        DiffusersTransformer(made / "transformer")
