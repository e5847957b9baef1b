"""What the constructors of the peers' classes take to make a network of this package."""

from dit_moe.config import ConfigError, ModelConfig, ObjectiveConfig
from dit_moe.config.sizes import size_text
from dit_moe.convert import Family
from dit_moe.convert.formats import PEERS
from dit_moe.convert.peer import Arguments
from dit_moe.convert.requirements import Requirements


def constructor_arguments(
    family: Family, model: ModelConfig, objective: ObjectiveConfig
) -> Arguments:
    """What the peer's constructor needs to make this network, ready for JSON.

    A family that was trained by more than one objective has its name too, which the constructor
    does not take.

    Raises:
      ConfigError: the family has no such network.
    """
    peer, require = PEERS[family], Requirements()
    require(model.pregate is None, "model.pregate", "a router before the trunk", "none")
    require(not model.segments, "model.segments", len(model.segments), "none")
    square = isinstance(model.image_size, int)
    require(square, "model.image_size", size_text(model.image_size), "a square")
    if peer.dit_blocks:
        require.one_of("model.position", model.position, "sincos")
        require.one_of("model.mlp_activation", model.mlp_activation, "gelu")
    if model.qk_norm:
        epsilon = model.qk_norm_epsilon
        require.one_of("model.qk_norm_epsilon", epsilon, peer.qk_norm_epsilon)
    if peer.other_clock:
        fits = objective.flow_time_scale == 1
        require(fits, "objective", objective, "rectified_flow with time_scale 1")
    arguments = {
        "input_size": model.image_size,
        "patch_size": model.patch_size,
        "in_channels": model.channels,
        "hidden_size": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        # With 0 its table would have no row for the null label.
        "class_dropout_prob": model.label_dropout or 0.1,
        "num_classes": model.num_classes,
        "learn_sigma": model.learn_sigma,
        **peer.arguments(model, require),
    }
    if peer.may_be_ddpm:
        arguments["objective"] = objective.name
    if require.problems:
        listed = "; ".join(require.problems)
        raise ConfigError(f"format {family!r} has no such network: {listed}")
    return arguments
