"""The names of the network's parameters in published weight files."""

import re
from collections.abc import Iterable, Mapping

Rules = tuple[tuple[str, str], ...]

# Applied to our dotted paths, in this order.
_DIFFUSERS: Rules = (
    (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"^encoder\.levels\.(\d+)\.blocks\.", r"encoder.down_blocks.\1.resnets."),
    (r"^decoder\.levels\.(\d+)\.blocks\.", r"decoder.up_blocks.\1.resnets."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.middle\.block1\.", ".mid_block.resnets.0."),
    (r"\.middle\.block2\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle\.attention\.out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.middle\.attention\.", ".mid_block.attentions.0.to_"),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.(kernel|scale)$", ".weight"),
)
# CompVis/latent-diffusion; the decoder's levels are counted from the image.
_ORIGINAL: Rules = (
    (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up.\1.upsample."),
    (r"^encoder\.levels\.(\d+)\.blocks\.", r"encoder.down.\1.block."),
    (r"^decoder\.levels\.(\d+)\.blocks\.", r"decoder.up.\1.block."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.middle\.block", ".mid.block_"),
    (r"\.middle\.attention\.out\.", ".mid.attn_1.proj_out."),
    (r"\.middle\.attention\.", ".mid.attn_1."),
    (r"\.(kernel|scale)$", ".weight"),
)
# Of diffusers before 0.18, still found in published files.
_OLD_ATTENTION: Rules = (
    (r"(\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
)
_STABLE_DIFFUSION = "first_stage_model."
_TRAINING = ("loss.", "model_ema.")
"""What checkpoints of the autoencoder's own training hold besides it."""


def published_names(paths: Iterable[str], names: Iterable[str], num_levels: int) -> dict[str, str]:
    """The name that each of our parameters has among a file's tensors.

    Args:
      paths: our parameters, dotted.
      names: the tensors of the file, as `strip` gives them.
      num_levels: of the network.
    """
    if any(name.startswith("encoder.down.") for name in names):
        return {path: _apply(_ORIGINAL, _from_image(path, num_levels)) for path in paths}
    return {path: _apply(_DIFFUSERS, path) for path in paths}


def strip(names: Iterable[str]) -> Mapping[str, str]:
    """The names of an autoencoder's tensors in a file, by those that `published_names` speaks of.

    Leaves out what is not the autoencoder: the rest of a Stable Diffusion checkpoint, the state of
    training.
    """
    names = list(names)
    prefix = _STABLE_DIFFUSION if any(n.startswith(_STABLE_DIFFUSION) for n in names) else ""
    short = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {
        _apply(_OLD_ATTENTION, name): whole
        for name, whole in short.items()
        if not name.startswith(_TRAINING)
    }


def _apply(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _from_image(path: str, num_levels: int) -> str:
    def reverse(match: re.Match[str]) -> str:
        return f"{match[1]}{num_levels - 1 - int(match[2])}"

    return re.sub(r"^(decoder\.levels\.)(\d+)", reverse, path)
