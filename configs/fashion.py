"""Fashion-MNIST, 28x28 grey, in ten classes: a quarter of an hour on two CPU cores.

Argument: promoe, promoe-ec, tc-dit, tc-sigmoid, tc-bias, tc-capacity, tc-noisy, x-moe, ec-dit,
diffmoe, expert-race, soft-moe, dit-moe, adamoe, moe-plus-plus, hecto, unlike, pyramid, pyramid-mix,
pre-gated, ds-moe or dit.
The 60,000 pictures to train on are read from data/fashion and the 10,000 held-out ones from
data/fashion-test, which are made once (docs/data.md tells where the files are to be had):

    python -m dit_moe.data.prepare --input FOLDER --output data/fashion --image_size 28 \\
        --autoencoder none --class_names NAMES
    python -m dit_moe.data.prepare --input FOLDER --split test --output data/fashion-test \\
        --image_size 28 --autoencoder none --class_names NAMES

with NAMES "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".
"""

from dit_moe.config import (
    Config,
    DataConfig,
    GuidanceConfig,
    ModelConfig,
    RectifiedFlowConfig,
    SampleConfig,
    TrainConfig,
)
from dit_moe.config.small_models import small_model


def get_config(architecture: str = "promoe") -> Config:
    return Config(
        name=f"fashion-{architecture}",
        model=small_model(
            architecture,
            ModelConfig(
                image_size=28,
                channels=1,
                patch_size=4,
                num_classes=10,
                width=128,
                depth=6,
                heads=4,
            ),
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(
            source="prepared", path=("data/fashion",), validation_path=("data/fashion-test",)
        ),
        train=TrainConfig(
            steps=2000,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=200,
            schedule="cosine",
            gradient_clip=1.0,
            ema_decay=0.995,
            ema_warmup=False,  # as in the configs beside it
            log_every=50,
            checkpoint_every=500,
            sample_every=500,
        ),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.5)),
    )
