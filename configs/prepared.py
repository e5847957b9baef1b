"""A small ProMoE for any prepared data set. Argument: its folder.

The network's input, its classes and its patches follow from the data set. Everything can be
overridden: --config.model.width=384 --config.train.steps=100000.
"""

from pathlib import Path

from dit_moe.config import (
    Config,
    DataConfig,
    ModelConfig,
    RectifiedFlowConfig,
    SampleConfig,
    TrainConfig,
)
from dit_moe.data.prepared import read_card
from dit_moe.presets import small_moe


def get_config(folder: str = "data/prepared") -> Config:
    card = read_card(Path(folder))
    size, _, channels = card.shape
    side = 16 if card.autoencoder else 8  # patches along a side, at most
    return Config(
        name=card.name,
        model=ModelConfig(
            image_size=size,
            channels=channels,
            patch_size=next(p for p in range(1, size + 1) if size % p == 0 and size // p <= side),
            num_classes=len(card.classes),
            width=128,
            depth=6,
            heads=4,
            moe=small_moe("promoe"),
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="prepared", path=(folder,), flip=True),
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
        sample=SampleConfig(solver="heun", steps=25, guidance_scale=1.5),
    )
