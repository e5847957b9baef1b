"""A small ProMoE for any prepared data set. Argument: its folder.

The network's input, its classes and its patches follow from the data set; with one class there is
nothing to guide to, and no label is dropped. Everything can be overridden:
--config.model.width=384 --config.train.steps=100000.
"""

import dataclasses
import math
from pathlib import Path

from dit_moe.config import (
    Config,
    ConfigError,
    DataConfig,
    GuidanceConfig,
    ModelConfig,
    RectifiedFlowConfig,
    SampleConfig,
    TrainConfig,
    divisors,
)
from dit_moe.config.sizes import height_and_width, parse_size, size_text
from dit_moe.config.small_models import small_moe
from dit_moe.data.prepared import read_card


def get_config(folder: str = "data/prepared") -> Config:
    card = read_card(Path(folder))
    height, width, channels = card.shape
    most = 16 if card.autoencoder else 8
    patch = _patch(height, width, most)
    if patch is None:
        pixels = height_and_width(card.image_size)[0] // height
        near = " or ".join(_near(height, width, most, pixels))
        raise ConfigError(
            f"data set {folder!r} has examples of {height}x{width}, which no patch divides into "
            f"{most // 2 + 1} to {most} along {'a' if height == width else 'the longer'} side; "
            f"allowed: a set prepared with another --image_size, such as {near}"
        )
    moe, several = small_moe("promoe"), len(card.classes) > 1
    assert moe is not None
    return Config(
        name=card.name,
        model=ModelConfig(
            image_size=(height, width),
            channels=channels,
            patch_size=patch,
            num_classes=len(card.classes),
            width=128,
            depth=6,
            heads=4,
            # The unconditional expert serves dropped labels.
            moe=moe if several else dataclasses.replace(moe, unconditional_expert=False),
            label_dropout=0.1 if several else 0.0,
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="prepared", path=(folder,), flip=card.mirrored),
        train=TrainConfig(
            steps=10_000,
            batch_size=64,
            learning_rate=5e-4,
            warmup_steps=500,
            gradient_clip=1.0,
            ema_decay=0.999,
            log_every=50,
            checkpoint_every=1000,
            sample_every=1000,
        ),
        sample=SampleConfig(
            solver="heun", steps=25, guidance=GuidanceConfig(scale=1.5 if several else 1.0)
        ),
    )


def _patch(height: int, width: int, most: int) -> int | None:
    """The smallest patch that divides the longer side into `most` or less, or None where these are
    half of that or less: too few for a transformer."""
    longer = max(height, width)
    patch = min(p for p in [*divisors(math.gcd(height, width)), longer] if longer <= p * most)
    return patch if patch == 1 or longer > patch * (most // 2) else None


def _near(height: int, width: int, most: int, pixels: int) -> list[str]:
    """Sizes in pixels that have a patch: squares the next below and above, else what is nearest."""
    if height == width:
        good = [s for s in range(1, 2 * height) if _patch(s, s, most)]
        near = [max(s for s in good if s < height), min(s for s in good if s > height)]
        return [size_text(pixels * side) for side in near]
    longer = max(height, width)
    around = [
        [max(1, round(side / p)) * p for side in (height, width)]
        for p in range(max(1, longer // most), longer // (most // 2) + 2)
    ]
    good = [sides for sides in around if _patch(*sides, most)]
    nearest = min(good, key=lambda sides: abs(sides[0] - height) + abs(sides[1] - width))
    return [size_text(parse_size([pixels * side for side in nearest]))]
