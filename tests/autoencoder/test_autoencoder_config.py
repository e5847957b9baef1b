import json

import pytest

from dit_moe.autoencoder.config import AutoencoderConfig, read_config
from dit_moe.config import ConfigError

# The fields of stabilityai/sd-vae-ft-mse.
PUBLISHED = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(PUBLISHED | changes))
        return read_config(path)

    return read


def test_published_config_is_the_default(read):
    assert read() == AutoencoderConfig()
    assert read().downsampling == 8
    assert read().scaling_factor == 0.18215


def test_newer_fields(read):
    config = read(
        scaling_factor=0.3611,
        shift_factor=0.1159,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        latents_mean=None,
        force_upcast=True,
    )
    assert (config.scaling_factor, config.shift_factor) == (0.3611, 0.1159)
    assert config.latent_channels == 16
    assert not config.use_quant_conv
    assert not config.use_post_quant_conv
    assert not config.mid_block_add_attention


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "VQModel"}, "_class_name is 'VQModel'; allowed: 'AutoencoderKL'"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types is .*Attn.*allowed"),
        ({"up_block_types": "UpDecoderBlock2D"}, "up_block_types is 'UpDecoderBlock2D'; allowed"),
        ({"latents_mean": [0.1]}, r"latents_mean is \[0.1\]; allowed: null"),
        ({"norm_num_groups": 48}, "norm_num_groups is 48; allowed: a divisor"),
        ({"block_out_channels": []}, "block_out_channels is"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
    ],
)
def test_unsupported_fields_are_named(read, changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


def test_broken_files(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(path)
    for text, message in [
        ("{", "not valid JSON"),
        ("[1]", "holds no object"),
        ('{"layers_per_block": 2}', "block_out_channels is missing"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(path)
