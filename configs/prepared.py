"""A small ProMoE for any prepared data set. Argument: its folder.

The network's input, its classes and its patches follow from the data set; with one class there is
nothing to guide to, and no label is dropped. Everything can be overridden:
--config.model.width=384 --config.train.steps=100000.
"""

import dataclasses
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
)
from dit_moe.config.presets import small_moe
from dit_moe.data.prepared import read_card


def get_config(folder: str = "data/prepared") -> Config:
    card = read_card(Path(folder))
    size, _, channels = card.shape
    most = 16 if card.autoencoder else 8
    patches = _patches(size, most)
    if patches is None:
        pixels = card.image_size // size
        good = [s for s in range(1, 2 * size) if _patches(s, most)]
        near = [max(s for s in good if s < size), min(s for s in good if s > size)]
        raise ConfigError(
            f"data set {folder!r} has examples of {size}x{size}, which no patch divides into "
            f"{most // 2 + 1} to {most} along a side; allowed: a set prepared with another "
            f"--image_size, such as {pixels * near[0]} or {pixels * near[1]}"
        )
    moe, several = small_moe("promoe"), len(card.classes) > 1
    assert moe is not None
    return Config(
        name=card.name,
        model=ModelConfig(
            image_size=size,
            channels=channels,
            patch_size=size // patches,
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


def _patches(size: int, most: int) -> int | None:
    """The largest number of patches along a side that is not above `most`, or None where it is
    half of that or less: too few for a transformer."""
    patches = max(n for n in range(1, most + 1) if size % n == 0)
    return patches if patches > most // 2 or patches == size else None
