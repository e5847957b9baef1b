"""Fashion-MNIST, 28x28 grey, in ten classes: a quarter of an hour on two CPU cores.

Argument: an architecture of dit_moe/config/small_models.py, such as promoe, dit-moe or dit.

The 60,000 pictures to train on are read from data/fashion and the 10,000 held-out ones from
data/fashion-test, which are made once (docs/data.md tells where the files are to be had):

    python -m dit_moe.data.prepare --input FOLDER --output data/fashion --image_size 28 \\
        --autoencoder none --class_names NAMES
    python -m dit_moe.data.prepare --input FOLDER --split test --output data/fashion-test \\
        --image_size 28 --autoencoder none --class_names NAMES

with NAMES "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".
"""

from dit_moe.config import Config, DataConfig, GuidanceConfig, RectifiedFlowConfig, SampleConfig
from dit_moe.config.small_models import small_model, small_training


def get_config(architecture: str = "promoe") -> Config:
    return Config(
        name=f"fashion-{architecture}",
        model=small_model(
            architecture, image_size=28, channels=1, patch_size=4, num_classes=10, depth=6
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(
            source="prepared", path=("data/fashion",), validation_path=("data/fashion-test",)
        ),
        train=small_training(steps=2000, batch_size=64, warmup_steps=200),
        sample=SampleConfig(solver="heun", steps=25, guidance=GuidanceConfig(scale=1.5)),
    )
