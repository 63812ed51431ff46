"""The transformer against plain float64 arithmetic, and the facts of its configs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reference.families.editverse import (
    CONFIGS,
    EditVerseTransformer,
    TransformerConfig,
    rope_angles,
    rope_attention,
)

TINY = TransformerConfig(
    width=32, num_blocks=2, num_heads=2, head_dim=16, mlp_width=48, time_width=16, patch_dim=8, text_dim=12,
    axis_dims=(4, 4, 4, 4),
)  # fmt: skip


def make(config: TransformerConfig, seed: int = 0) -> EditVerseTransformer:
    """A model whose zero-initialised layers are random too, so that every path shows in the output."""
    torch.manual_seed(seed)
    model = EditVerseTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def count(config: TransformerConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in EditVerseTransformer(config).parameters())


def test_editverse_2b_has_two_billion_parameters():
    assert count(CONFIGS["editverse-2b"]) == 2_006_139_904


def test_nano_has_four_million_parameters():
    assert count(CONFIGS["nano"]) == 3_766_272


def test_the_paper_splits_a_head_as_it_says():
    assert CONFIGS["editverse-2b"].axis_dims == (12, 4, 56, 56)
    assert CONFIGS["editverse-2b"].head_dim == 128


def attention_in_float64(q, k, v, q_norm, k_norm, positions, heads, dims, thetas, eps):
    """Loops over heads, tokens and pairs of channels; nothing shared with the model's code."""
    length, inner = q.shape
    size = inner // heads
    angles = np.zeros((length, size // 2))
    for token in range(length):
        column = 0
        for axis, dim in enumerate(dims):
            for pair in range(dim // 2):
                angles[token, column] = positions[token, axis] * thetas[axis] ** (-2 * pair / dim)
                column += 1
    out = np.zeros((length, inner))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        turned = []
        for x, weight in ((q[:, part], q_norm), (k[:, part], k_norm)):
            x = x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight
            pairs = x[:, : size // 2] + 1j * x[:, size // 2 :]
            pairs = pairs * np.exp(1j * angles)
            turned.append(np.concatenate((pairs.real, pairs.imag), 1))
        scores = turned[0] @ turned[1].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    return out


@pytest.mark.parametrize("length", [1, 7, 33])
def test_rope_attention_equals_float64(length):
    rng = np.random.default_rng(length)
    q, k, v = (rng.standard_normal((length, 32)) for _ in range(3))
    q_norm, k_norm = rng.standard_normal(16), rng.standard_normal(16)
    positions = rng.integers(0, 300, (length, 4))
    thetas = (10000.0, 500.0, 10000.0, 7.0)
    expected = attention_in_float64(q, k, v, q_norm, k_norm, positions, 2, (4, 2, 6, 4), thetas, 1e-6)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (q, k, v, q_norm, k_norm)]
    out = rope_attention(
        *tensors, torch.tensor(positions), num_heads=2, axis_dims=(4, 2, 6, 4), axis_thetas=thetas, eps=1e-6
    )
    # float32 sines of angles up to 300 are good to about 3e-5.
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-4)


def test_attention_depends_on_differences_of_positions_only():
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 9, 32).unbind()
    ones = torch.ones(16)
    positions = torch.randint(0, 20, (9, 4))
    options = {"num_heads": 2, "axis_dims": (4, 4, 4, 4), "axis_thetas": (100.0,) * 4, "eps": 1e-6}
    here = rope_attention(q, k, v, ones, ones, positions, **options)
    there = rope_attention(q, k, v, ones, ones, positions + torch.tensor([5, 3, 2, 9]), **options)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


def test_ntk_scaling_slows_the_lowest_frequency_by_the_factor():
    plain = TINY.axis_thetas
    scaled = TransformerConfig(**{**TINY.to_dict(), "ntk_factors": (1.0, 1.0, 4.0, 1.0)}).axis_thetas
    assert [p == s for p, s in zip(plain, scaled, strict=True)] == [True, True, False, True]
    at = torch.tensor([[0, 0, 40, 0]])
    last = 2 * 2 + 1  # the last pair of the third axis
    slow = rope_angles(at, TINY.axis_dims, scaled)[0, last]
    assert float(slow) * 4 == pytest.approx(float(rope_angles(at, TINY.axis_dims, plain)[0, last]), rel=1e-5)


def test_padding_is_not_attended_to():
    torch.manual_seed(2)
    model = make(TINY)
    x, positions = torch.randn(1, 9, 32), torch.randint(0, 9, (1, 9, 4))
    is_noisy = torch.zeros(1, 9, dtype=torch.bool)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[:, 6:] = False
    with torch.no_grad():
        padded = model.run_blocks(x, positions, is_noisy, torch.tensor([0.5]), mask)[:, :6]
        short = model.run_blocks(x[:, :6], positions[:, :6], is_noisy[:, :6], torch.tensor([0.5]))
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=0)


def request(model, lt=3, lc=4, lg=5):
    torch.manual_seed(3)
    start = lt + lc + lg
    layout = [start, *range(lt, lt + lc), start + 1, *range(lt), start, *range(lt + lc, start), start + 1]
    return (
        torch.randn(lt, 12), torch.randn(lc, 8), torch.randn(lg, 8), torch.tensor(layout),
        torch.randint(0, 9, (len(layout), 4)),
    )  # fmt: skip


@torch.no_grad()
def test_only_noisy_tokens_see_the_timestep_directly():
    """With attention cut off, a clean token's rows must not change with t, and a noisy one's must."""
    model = make(TINY)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.to_out.weight)
    x, positions = torch.randn(6, 32), torch.zeros(6, 4, dtype=torch.long)
    is_noisy = torch.tensor([False, False, False, True, True, True])
    early, late = (model.run_blocks(x, positions, is_noisy, torch.tensor(t)) for t in (0.1, 0.9))
    torch.testing.assert_close(early[:3], late[:3])
    assert (early[3:] - late[3:]).abs().min() > 1e-6


@torch.no_grad()
def test_order_of_text_rows_is_told_by_positions_not_by_storage():
    """The layout only gathers: shuffling rows of the sequence with their positions changes nothing else."""
    model = make(TINY)
    text, clean, noisy, layout, positions = request(model)
    v = model(text, clean, noisy, layout, positions, torch.tensor(0.3))
    order = torch.cat((torch.randperm(9), torch.arange(9, len(layout))))
    shuffled = model(text, clean, noisy, layout[order], positions[order], torch.tensor(0.3))
    torch.testing.assert_close(v, shuffled, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 0.5, 0.98])
def test_the_clean_segment_parametrisation_gives_the_same_kind_of_velocity(t):
    sample_config = TransformerConfig(**{**TINY.to_dict(), "prediction": "sample"})
    velocity_model, sample_model = make(TINY), make(sample_config)
    text, clean, noisy, layout, positions = request(velocity_model)
    output = velocity_model(text, clean, noisy, layout, positions, torch.tensor(t))
    velocity = sample_model(text, clean, noisy, layout, positions, torch.tensor(t))
    torch.testing.assert_close(velocity, (output - noisy) / (1 - t), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("lt", "lc"), [(0, 4), (3, 0), (0, 0)])
def test_text_and_context_may_be_absent(lt, lc):
    model = make(TINY)
    text, clean, noisy = torch.randn(lt, 12), torch.randn(lc, 8), torch.randn(5, 8)
    start = lt + lc + 5
    layout = torch.tensor([*range(lt + lc), start, *range(lt + lc, start), start + 1])
    v = model(text, clean, noisy, layout, torch.zeros(len(layout), 4, dtype=torch.long), torch.tensor(0.5))
    assert v.shape == (5, 8)
    assert torch.isfinite(v).all()


def test_a_config_that_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match="axis_dims"):
        TransformerConfig(**{**TINY.to_dict(), "axis_dims": (4, 4, 4, 6)})


def test_a_config_survives_json():
    assert TransformerConfig.from_dict({**CONFIGS["nano"].to_dict(), "_class_name": "x"}) == CONFIGS["nano"]
