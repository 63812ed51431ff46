"""The many-valued test: its distance by an independent square root, its sampler, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from export.schedules import ScheduleSettings
from export.variety import Variety, frechet_distance, keeps_variety, measure_variety, sample_latents
from reference.checkpoint import load_checkpoint, make_random_checkpoint
from reference.noise import draw_noise
from reference.sequence import interleave

TINY = {"width": 32, "num_blocks": 1, "num_heads": 1, "head_dim": 64, "mlp_width": 32, "time_width": 16}
GRID = (2, 2, 3)


def rows(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    mixing = rng.standard_normal((width, width))
    return rng.standard_normal((count, width)) @ mixing + rng.standard_normal(width)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_the_distance_is_scipys(width: int):
    rng = np.random.default_rng(width)
    first, second = rows(rng, 200, width), rows(rng, 300, width)
    covariances = [np.atleast_2d(np.cov(values.T)) for values in (first, second)]
    gap = first.mean(0) - second.mean(0)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)


def test_known_gaussians_have_their_known_distance():
    """Apart by 3 in one place; deviations 1 and 2 there, 1 and 1 elsewhere: 9 + (2 - 1)^2."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((200_000, 2))
    second = rng.standard_normal((200_000, 2)) * [2.0, 1.0] + [3.0, 0.0]
    assert frechet_distance(first, second) == pytest.approx(10.0, rel=0.01)


def test_equal_samples_have_no_distance_and_a_mean_has_all_of_it():
    values = rows(np.random.default_rng(1), 50, 6)
    assert frechet_distance(values, values) == pytest.approx(0.0, abs=1e-8)
    flat = np.tile(values.mean(0), (50, 1))
    assert frechet_distance(values, flat) == pytest.approx(np.trace(np.cov(values.T)), rel=1e-6)


def test_fewer_rows_than_columns_are_taken():
    values = rows(np.random.default_rng(2), 5, 20)
    assert 0 < frechet_distance(values, values + 1) == pytest.approx(20.0, rel=1e-6)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="1 rows; a covariance needs at least 2"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))


def test_a_schedule_that_gives_the_mean_is_found_out():
    """The mean over noises is the best guess by squared error, and no picture."""
    rng = torch.Generator().manual_seed(0)
    real, many = (torch.randn((64, 6, 4), generator=rng) for _ in range(2))
    mean = many.mean(0, keepdim=True).expand_as(many)
    standard = {"images": measure_variety(many, real, many)}
    grey = {"images": measure_variety(mean, real, many)}
    shuffled = {"images": measure_variety(many[torch.randperm(64)], real, many)}
    assert standard["images"].rmse == 0
    assert grey["images"].rmse < shuffled["images"].rmse
    assert grey["images"].variance == pytest.approx(0, abs=1e-12)
    assert not keeps_variety(grey, standard)
    assert keeps_variety(shuffled, standard)


def test_every_kind_of_sample_has_to_keep_both():
    standard = {"images": Variety(1.0, 0.1, 0.0), "clips": Variety(1.0, 0.1, 0.0)}
    good = Variety(1.2, 0.081, 0.3)
    assert keeps_variety({"images": good, "clips": good}, standard)
    for bad in (Variety(1.3, 0.1, 0.0), Variety(0.9, 0.079, 0.0)):
        assert not keeps_variety({"images": good, "clips": bad}, standard)
        assert not keeps_variety({"images": bad, "clips": good}, standard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(
        "nano", tmp_path_factory.mktemp("tiny") / "checkpoint", transformer_overrides=TINY,
        vae_overrides={"base_dim": 4, "dim_mult": [1, 1, 1]},
    )  # fmt: skip


@torch.no_grad()
def test_samples_are_those_of_the_network_alone(folder: Path):
    """Euler by hand, one sample at a time, through the network's own forward."""
    checkpoint = load_checkpoint(folder)
    net = checkpoint.transformer
    found = sample_latents(checkpoint, GRID, 3, ScheduleSettings("euler", 2), first_seed=5)
    sequence = interleave([], GRID)
    nothing = torch.zeros(0, net.config.patch_dim)
    no_text = torch.zeros(0, net.config.text_dim)
    for index in range(3):
        x = draw_noise(5 + index, 12, net.config.patch_dim)
        for t in (0.0, 0.5):
            x = x + 0.5 * net(no_text, nothing, x, sequence.layout, sequence.positions, torch.tensor(t))
        torch.testing.assert_close(found[index], x, atol=1e-4, rtol=1e-4)


def test_a_distilled_checkpoint_is_sampled_at_its_own_steps(folder: Path):
    checkpoint = load_checkpoint(folder)
    checkpoint.scheduler.update({"num_inference_steps": 2, "guidance_scale": 1.0, "is_fixed": True})
    assert len(sample_latents(checkpoint, GRID, 1, ScheduleSettings("euler", 2))) == 1
    with pytest.raises(ValueError, match="50 steps; this checkpoint was distilled for 2"):
        sample_latents(checkpoint, GRID, 1, ScheduleSettings("euler", 50))
