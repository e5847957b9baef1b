"""The config of a run on pairs, from that of the run that it starts from."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dit_moe.config import Config, ConfigError, EvaluateConfig, PairsConfig, RectifiedFlowConfig
from dit_moe.config.files import from_dict, to_dict

LEARN = ("*.joint.*", "second_condition")
"""What is for pairs alone (models/dit.py, nn/joint_attention.py)."""
_RANK, _GIVEN = 64, 0.5


def pairs_config(base: Config, kind: str, pair_path: Sequence[str] = ()) -> Config:
    """The base's config, with images in pairs and all but the additions frozen.

    A batch has as many pairs as the base's had images, and of half of them one image is given, as
    either is drawn of the other. Times are drawn evenly: others come too rarely near 0. What draws
    or teaches single images is off.

    Args:
      base: of the run that is started from.
      kind: of the second images, `data.pair`.
      pair_path: folders of them.

    Raises:
      ConfigError: the base is of pairs already, or cannot be.
    """
    if base.model.pairs is not None:
        raise ConfigError(
            "from is a run on pairs already (model.pairs); allowed: a model of single images"
        )
    train = dataclasses.replace(
        base.train,
        batch_size=2 * base.train.batch_size,
        learn=(),
        freeze=(),
        lora=None,
        distill=None,
        post_hoc_ema=(),
        sample_every=0,
        evaluate=EvaluateConfig(),
    )
    objective = base.objective
    if isinstance(objective, RectifiedFlowConfig):
        objective = dataclasses.replace(objective, time_distribution="uniform")
    config = dataclasses.replace(base, train=train, objective=objective)
    values: dict[str, Any] = to_dict(config)
    values["name"] = f"{base.name}-{kind}"
    values["train"]["learn"] = LEARN
    values["model"]["pairs"] = dataclasses.asdict(
        PairsConfig(min(_RANK, base.model.width), given=_GIVEN)
    )
    values["data"] |= {"pair": kind, "pair_path": pair_path}
    return from_dict(values)
