"""Which parameters a run learns, and which it keeps as they are (`train.freeze`, `train.learn`,
`train.lora`)."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from dit_moe.config import ConfigError, TrainConfig
from dit_moe.models.low_rank import split_additions
from dit_moe.models.patterns import check_patterns, matches

T = TypeVar("T")


def split_learning(
    parameters: Mapping[str, T], train: TrainConfig
) -> tuple[dict[str, T], dict[str, T]]:
    """Parameters that learn, and those that do not; pure.

    Args:
      parameters: all that a run keeps by dotted path, of whatever kind.
      train: of the run.

    Raises:
      ConfigError: a pattern of `train.freeze` or `train.learn` matches no path, or all paths are
        frozen.
    """
    if train.lora is not None:
        return split_additions(parameters, train.lora)
    if train.learn:
        check_patterns("config.train.learn", train.learn, list(parameters), "parameter")
        learning = {path: p for path, p in parameters.items() if matches(path, train.learn)}
        return learning, {path: p for path, p in parameters.items() if path not in learning}
    return split_frozen(parameters, train.freeze)


def split_frozen(
    parameters: Mapping[str, T], freeze: Sequence[str]
) -> tuple[dict[str, T], dict[str, T]]:
    """Parameters that none of the patterns matches, and those that one does; see
    `split_learning`."""
    check_patterns("config.train.freeze", freeze, list(parameters), "parameter")
    frozen = {path: p for path, p in parameters.items() if matches(path, freeze)}
    if frozen and len(frozen) == len(parameters):
        raise ConfigError(
            f"config.train.freeze is {', '.join(freeze)!r}, which matches every parameter; "
            "allowed: patterns that leave some to learn"
        )
    return {path: p for path, p in parameters.items() if path not in frozen}, frozen
