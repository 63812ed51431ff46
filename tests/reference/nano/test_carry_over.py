"""A trained VAE taken over into another shape, as a start of training."""

import pytest
import torch

from reference.nano.carry_over import carry_over
from reference.nano.train_vae import make_vae


def test_a_vae_with_more_latent_channels_shows_what_it_did():
    torch.manual_seed(0)
    old, new = make_vae({"z_dim": 6}).eval(), make_vae({"z_dim": 9}).eval()
    with torch.no_grad():  # as levelling leaves them
        for layer, gain in (
            (old.encoder.conv_out, 30),
            (old.quant_conv, 1 / 300),
            (old.post_quant_conv, 300),
        ):
            layer.weight.mul_(gain)
            layer.bias.mul_(gain)
    carry_over(old.state_dict(), new)
    video = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    with torch.no_grad():
        before, after = old.encode(video).latent_dist, new.encode(video).latent_dist
        shown = old.post_quant_conv(before.mean)
        torch.testing.assert_close(new.post_quant_conv(after.mean)[:, :6], shown, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(after.logvar[:, :6], before.logvar)
        loudness = after.mean.std((0, 2, 3, 4))
        assert (loudness[6:] > 0.1 * loudness[:6].mean()).all()
        read = new.post_quant_conv(after.mean).std((0, 2, 3, 4))
        assert (read[6:] > 0.05 * read[:6].mean()).all()
        torch.testing.assert_close(
            new.decode(after.mean).sample, old.decode(before.mean).sample, atol=1e-4, rtol=1e-3
        )
    assert float(new.quant_conv.weight[:9].flatten(1).norm(dim=1).mean()) == pytest.approx(1, rel=0.2)
    assert 0.1 < new.post_quant_conv.weight.flatten(1).norm(dim=1).mean() < 10
    new.decode(after.mean.detach()).sample.square().mean().backward()
    assert (new.decoder.conv_in.weight.grad[:, 6:].abs().amax((0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("widths", [{"base_dim": 6, "dim_mult": [1, 3, 5]}, {"base_dim": 10}])
def test_a_vae_of_other_widths_takes_over_what_fits(widths):
    """The first channels are the old one's; new ones are as loud, are not read by them yet, and are learnt."""
    torch.manual_seed(0)
    small = {"base_dim": 8, "dim_mult": [1, 2, 3], "z_dim": 6}
    old, new = make_vae(small), make_vae({**small, **widths, "z_dim": 7})
    carry_over(old.state_dict(), new)
    weights = new.state_dict()
    for name, value in old.state_dict().items():
        if name.startswith(("quant_conv", "post_quant_conv", "encoder.conv_out")):
            continue  # the test above is of these
        # Rows of queries, keys and values, and of both frames of an upsampling, are parts of their own.
        parts = 3 if ".to_qkv." in name else 2 if ".upsamplers.0.time_conv." in name else 1
        for took, had in zip(weights[name].chunk(parts), value.chunk(parts), strict=True):
            rows = min(len(took), len(had))
            if had.ndim == 1:
                torch.testing.assert_close(took[:rows], had[:rows])
                continue
            columns = min(took.shape[1], had.shape[1])
            torch.testing.assert_close(took[:rows, :columns], had[:rows, :columns])
            assert not took[:rows, columns:].any(), name
            if len(took) > rows and columns > 1:
                loudness = [rows_of.flatten(1).norm(dim=1) for rows_of in (took[rows:], had)]
                assert (loudness[0] > 0.1 * loudness[1].mean()).all(), name
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    new.decode(new.encode(clip).latent_dist.mean).sample.square().mean().backward()
    for name, parameter in new.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"z_dim": 4}, "6 latent channels; expected 4 at most"),
        ({}, {"num_res_blocks": 2}, "expected the same layers"),
        ({"num_res_blocks": 2}, {}, "expected the same layers"),
    ],
)
def test_other_layers_and_fewer_latents_are_refused(before, after, message):
    old, new = (make_vae({"base_dim": 4, "z_dim": 6, **more}) for more in (before, after))
    with pytest.raises(ValueError, match=message):
        carry_over(old.state_dict(), new)
