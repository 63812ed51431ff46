"""Training on another device than the CPU: nothing in a step is left behind, and what is saved is on the CPU.

The device is "meta", whose tensors have no values, since a machine that runs tests seldom has a GPU. It cannot show
what a GPU computes, only that every operation finds its tensors in one place.
"""

import argparse
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference.families.editverse import CONFIGS
from reference.nano import train
from reference.nano.batching import collate, pack
from reference.nano.dataset import CachedSample
from reference.nano.facts import NAMES
from reference.nano.optim import Averaged
from reference.nano.train import NOT_STARTED, Nano, compute_losses, make_optimizers, save_state
from reference.nano.workers import has_fast_bfloat16, start_workers

META = torch.device("meta")
MOVES = ("aten._to_copy", "aten.copy_", "aten._copy_from")


class OneDevice(TorchDispatchMode):
    """Fails where an operation is given tensors of several devices; single numbers may be anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {
            leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim > 0
        }
        if len(devices) > 1 and not str(func).startswith(MOVES):
            raise AssertionError(f"{func} has tensors on {sorted(map(str, devices))}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def batch():
    def patches():
        return torch.randn(2, 2, 3, CONFIGS["nano"].patch_dim).half()

    facts = {"target": torch.zeros(2, 2, 3, len(NAMES)).half()}
    segments = [[5, 6], "video1", [1]]
    one = CachedSample("change_color", segments, {"video1": patches()}, patches(), "video1", facts)
    return collate([pack(one), pack(one)], np.array([False, True]))


@pytest.fixture
def without_values(monkeypatch):
    """Leave out what has no form without values: autocast, and the look of T5 at its mask (transformers' own)."""
    monkeypatch.setattr(train, "in_bfloat16", lambda device: nullcontext())

    def embed(self, batch):
        return self.text_encoder.shared(batch.ids).flatten(0, 1)

    monkeypatch.setattr(Nano, "encode_text", embed)


def test_a_step_stays_on_its_device(without_values, batch):
    model = Nano().to(META)
    optimizers = make_optimizers(model)
    average = Averaged(model, 0.9)
    moved = batch.to(META)
    with OneDevice():
        losses = compute_losses(model, moved)
        losses.total.backward()
        for optimizer in optimizers:
            optimizer.step()
        average.update(model, 1)
        model.outputs(moved, model.encode_text(moved), moved.noisy, losses.timestep)
    assert {parameter.grad.device for parameter in model.transformer.parameters()} == {META}
    assert losses.pixels.device == losses.timestep.device == losses.error_left.device == META


def test_one_tensor_left_behind_would_be_found(without_values, monkeypatch, batch):
    monkeypatch.setattr(train, "draw_timesteps", lambda count, device, noise_share: torch.rand(count))
    with OneDevice(), pytest.raises(AssertionError, match="has tensors on"):
        compute_losses(Nano().to(META), batch.to(META))


def test_a_batch_moves_whole_and_its_samples_stay(batch):
    moved = batch.to(META)
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert len(tensors) > 10
    assert {tensor.device for tensor in tensors} == {META}
    assert moved.samples is batch.samples
    assert batch.noisy.device == torch.device("cpu")


def test_a_saved_state_is_on_the_cpu(monkeypatch, tmp_path):
    seen = []

    def cpu(self):
        seen.append(tuple(self.shape))
        return self

    monkeypatch.setattr(Tensor, "cpu", cpu)
    model = Nano(replace(CONFIGS["nano"], width=32, num_blocks=1, mlp_width=24))
    optimizers, average = make_optimizers(model), Averaged(model, 0.0)
    save_state(tmp_path / "state.pt", model, optimizers, average, NOT_STARTED)
    assert len(seen) == len(model.state_dict()) + len(average.values)


def test_a_gpu_multiplies_in_bfloat16():
    assert has_fast_bfloat16(torch.device("cuda", 0))


def test_more_workers_than_gpus_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = argparse.Namespace(device="cuda", workers=2, run=tmp_path)
    with pytest.raises(ValueError, match="--workers 2; expected one for each of the 1 GPUs here at most"):
        start_workers(print, args)
