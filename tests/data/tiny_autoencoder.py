"""An autoencoder of random weights on disk, small enough to encode in a test."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from dit_moe.autoencoder.config import AutoencoderConfig
from dit_moe.autoencoder.names import published_names
from dit_moe.autoencoder.network import Autoencoder

CONFIG = AutoencoderConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
)


def write(folder: Path, seed: int = 0, gain: float = 1.0) -> Path:
    """Writes it in diffusers' layout; `gain` multiplies the weights of its first layer."""
    folder.mkdir(parents=True)
    model = Autoencoder(CONFIG, jnp.dtype("float32"), nnx.Rngs(seed))
    flat = nnx.to_flat_state(nnx.state(model))
    values = {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}
    values["encoder.conv_in.kernel"] = values["encoder.conv_in.kernel"] * np.float32(gain)
    names = published_names(values, [], len(CONFIG.block_out_channels))
    order = {2: (1, 0), 4: (3, 2, 0, 1)}
    tensors = {
        names[path]: np.ascontiguousarray(value.transpose(order.get(value.ndim, (0,))))
        for path, value in values.items()
    }
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    fields = {"_class_name": "AutoencoderKL", **dataclasses.asdict(CONFIG)}
    blocks = len(CONFIG.block_out_channels)
    fields["down_block_types"] = ["DownEncoderBlock2D"] * blocks
    fields["up_block_types"] = ["UpDecoderBlock2D"] * blocks
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
