"""A run that goes on with another VAE, whose latents a linear map gives, computes what it did."""

from dataclasses import replace

import pytest
import torch

from reference.families.editverse import CONFIGS
from reference.nano import change_vae
from reference.nano.carry_over import carry_over
from reference.nano.change_vae import fit_latents, fit_rows
from reference.nano.optim import Averaged
from reference.nano.train import NOT_STARTED, Nano, make_nano, make_optimizers, save_state
from reference.nano.train_vae import make_vae

Z = 6


@pytest.fixture
def old(monkeypatch):
    monkeypatch.setattr(change_vae, "FITTED", ((1, 4), (5, 1)))
    monkeypatch.setattr(change_vae, "RIDGE", 1e-12)  # an exact relation is to be found exactly
    torch.manual_seed(0)
    return make_vae({"z_dim": Z, "latents_mean": [0.1] * Z, "latents_std": [0.5] * Z}).eval()


@pytest.fixture
def turned(old):
    """The same VAE with its latents turned and stretched, and other statistics."""
    new = make_vae({"z_dim": Z, "latents_mean": [0.1] * Z, "latents_std": [0.25] * Z}).eval()
    weights = old.state_dict()
    mix = torch.eye(Z) + 0.2 * torch.randn(Z, Z)
    for part in ("weight", "bias"):
        value = weights[f"quant_conv.{part}"].clone()
        value[:Z] = (mix @ value[:Z].view(Z, -1)).view_as(value[:Z])
        weights[f"quant_conv.{part}"] = value
    new.load_state_dict(weights)
    new.register_to_config(latents_mean=(mix @ torch.full((Z,), 0.1)).tolist())
    return new


def lay_out(run, vae):
    """A run of a small network; the network."""
    config = replace(CONFIGS["nano"], width=32, num_blocks=1, mlp_width=24, patch_dim=4 * Z)
    nano = Nano(config)
    for parameter in nano.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae.save_pretrained(run / "vae")
    save_state(run / "state.pt", nano, make_optimizers(nano), Averaged(nano, 0.0), NOT_STARTED | {"step": 7})
    return nano.transformer


def rows_through(net, clean, noisy):
    text = torch.linspace(-1, 1, 2 * net.config.text_dim).view(2, -1)
    count = len(text) + len(clean) + len(noisy)
    layout = torch.tensor(
        [0, 1, count, *range(2, 2 + len(clean)), *range(count - len(noisy), count), count + 1]
    )
    positions = torch.arange(len(layout)).unsqueeze(1).expand(-1, 4)
    with torch.no_grad():
        return net(text, clean, noisy, layout, positions, torch.tensor(0.5))


def test_the_network_says_the_same_in_the_new_latents(tmp_path, old, turned):
    before = lay_out(tmp_path, old)
    to_old, to_new = fit_latents(old, turned)
    torch.testing.assert_close(to_old @ to_new, torch.eye(Z), atol=1e-4, rtol=0)
    turned.save_pretrained(tmp_path / "new")
    change_vae.change_vae(tmp_path, tmp_path / "new")

    state = torch.load(tmp_path / "state.pt")
    assert state["progress"] == NOT_STARTED
    after = make_nano(state)
    after.load_state_dict(state["model"])
    clean, noisy = torch.randn(3, 4 * Z), torch.randn(2, 4 * Z)

    def carried(rows):  # patches hold their channels slowest
        return torch.einsum("ncp,cd->ndp", rows.view(len(rows), Z, 4), to_new).flatten(1)

    found = rows_through(after.transformer, carried(clean), carried(noisy))
    torch.testing.assert_close(found, carried(rows_through(before, clean, noisy)), atol=1e-3, rtol=1e-3)


def test_directions_that_hold_nothing_are_not_stretched():
    """Undamped, the map would reach 2,900 there: it would fit what by chance goes along with next to nothing."""
    rng = torch.Generator().manual_seed(0)
    wanted = 0.3 * torch.randn(2000, 3, generator=rng, dtype=torch.float64)
    given = wanted + 0.05 * torch.randn(2000, 3, generator=rng, dtype=torch.float64)
    faint = 1e-6 * torch.randn(2000, 1, generator=rng, dtype=torch.float64)
    found = fit_rows(torch.cat((given, faint), 1), wanted)
    assert float(torch.linalg.matrix_norm(found, 2)) < 1.1
    left = (torch.cat((given, faint), 1) @ found.double() - wanted).square().mean() / wanted.square().mean()
    assert left < 0.04  # of noise alone, 0.027


def test_more_channels_are_read_and_written(tmp_path, old):
    lay_out(tmp_path, old)
    wide = make_vae({"z_dim": Z + 2, "latents_mean": [0.1] * (Z + 2), "latents_std": [0.5] * (Z + 2)}).eval()
    carry_over(old.state_dict(), wide)
    wide.save_pretrained(tmp_path / "new")
    change_vae.change_vae(tmp_path, tmp_path / "new")
    state = torch.load(tmp_path / "state.pt")
    nano = make_nano(state)
    nano.load_state_dict(state["model"])
    assert nano.transformer.config.patch_dim == 4 * (Z + 2)
    for name, value in nano.named_parameters():
        torch.testing.assert_close(state["average"][name], value.detach())


def test_a_run_with_data_of_the_old_vae_is_refused(tmp_path, old, turned):
    lay_out(tmp_path, old)
    (tmp_path / "data").mkdir()
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(FileExistsError, match="holds data, made by the VAE"):
        change_vae.change_vae(tmp_path, tmp_path / "vae")
    assert (tmp_path / "state.pt").read_bytes() == before
