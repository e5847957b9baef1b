"""Which networks have experts that may change places, be compared, or be taken away."""

from dit_moe.config import ConfigError, ModelConfig


def check_sparse(network: ModelConfig) -> None:
    """Checks that a network has a mixture of experts.

    Raises:
      ConfigError: it is dense.
    """
    if not network.mixtures:
        raise ConfigError("the model is dense, with no experts; allowed: a mixture of experts")


def check_interchangeable(network: ModelConfig) -> None:
    """Checks that the experts of each layer differ in nothing but their weights, and that each
    layer's router is its own.

    Raises:
      ConfigError: they differ in more, a router serves several layers, or there are no experts.
    """
    check_sparse(network)
    if network.pregate is not None:
        raise ConfigError(
            "the model's pregate is a router before the trunk, which numbers the experts of all "
            "layers alike; allowed: routers of the layers"
        )
    for moe in dict.fromkeys(network.mixtures):
        if moe.unlike:
            kinds = ", ".join(group.kind for group in moe.unlike)
            raise ConfigError(
                f"the model's moe.unlike has {kinds}; allowed: none, as experts that stand for "
                "each other must be of one kind and width"
            )
        if moe.columns is not None:
            raise ConfigError(
                "the model's router has columns for experts that are gone already (moe.columns); "
                "allowed: none, as of a model whose experts were taken with router=drop, or one "
                "step that takes all"
            )
