"""The published network's full shape on random weights, against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.autoencoder.config import AutoencoderConfig
from dit_moe.autoencoder.loading import load
from dit_moe.autoencoder.tiling import decode_tiled
from tests.autoencoder import autoencoder_fixture

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def peer():
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def loaded(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(folder)
    return load(str(folder))


def relative_error(ours, theirs):
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    return np.abs(ours - expected).max() / np.abs(expected).max()


def test_shape_is_the_default(loaded):
    assert loaded.config == AutoencoderConfig()


def test_encode(peer, loaded):
    import torch

    x = torch.rand(2, 3, 64, 128, generator=torch.manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = peer.encode(x).latent_dist
    encode = jax.jit(lambda model, x: model.encode(x))
    moments = encode(loaded.model, x.numpy().transpose(0, 2, 3, 1))
    assert relative_error(moments.mean, expected.mean) < 1e-5
    assert relative_error(moments.log_variance, expected.logvar) < 1e-5


def test_decode(peer, loaded):
    import torch

    latent = torch.randn(2, 4, 8, 16, generator=torch.manual_seed(2)) * 5
    with torch.inference_mode():
        expected = peer.decode(latent).sample
    decode = jax.jit(lambda model, z: model.decode(z))
    image = decode(loaded.model, latent.numpy().transpose(0, 2, 3, 1))
    assert relative_error(image, expected) < 1e-5


def test_newer_shape_without_quantisation_and_attention(tmp_path):
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    peer = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=6,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
    peer.save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    latent = torch.randn(1, 6, 4, 4)
    with torch.inference_mode():
        expected = peer.decode(latent).sample
    assert relative_error(model.decode(latent.numpy().transpose(0, 2, 3, 1)), expected) < 1e-5


def test_tiles_are_as_close_to_the_whole_as_the_peers(tmp_path):
    import torch
    from diffusers import AutoencoderKL

    folder = autoencoder_fixture.write_folder(tmp_path / "autoencoder")
    peer, model = AutoencoderKL.from_pretrained(folder).eval(), load(str(folder)).model
    latent = torch.randn(1, 4, 40, 40, generator=torch.manual_seed(3)) * 5
    with torch.inference_mode():
        whole = peer.decode(latent).sample.numpy().transpose(0, 2, 3, 1)
        peer.enable_tiling()
        peer.tile_latent_min_size, peer.tile_sample_min_size = 16, 64
        theirs = peer.decode(latent).sample.numpy().transpose(0, 2, 3, 1)
    # The peer's tiles share a quarter.
    ours = decode_tiled(
        model, jnp.asarray(latent.numpy().transpose(0, 2, 3, 1)), tile=16, overlap=4
    )
    assert np.abs(ours - whole).mean() <= 1.05 * np.abs(theirs - whole).mean()
    assert np.abs(ours - whole).max() <= 1.05 * np.abs(theirs - whole).max()
