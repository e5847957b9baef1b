"""Two images in one network: what joins them."""

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import RULES, PositiveInt, Probability


@dataclass(frozen=True, config=RULES)
class PairsConfig:
    """Each image attends to the other one of its pair, beside itself (UniCon, Li et al. 2024).

    The attention between the two has the weights of the block's own, with additions of low rank
    apart for the first images and the second ones.
    """

    rank: PositiveInt = 64
    """Of the additions."""
    aligned: bool = True
    """A pixel of one image shows the same place as that of the other (edges, depth): the results of
    both go through one projection together. False: each goes through the same one by itself."""
    adapt_second: bool = True
    """The second images have additions to the attention to themselves too, and a condition of their
    own: they are no natural images, such as the network knows."""
    given: Probability = 0.0
    """Share of a training batch's pairs of which one image, in turn the first and the second, is
    given without noise while the other learns. Of the rest both learn, each at a time of its own,
    which is all that UniCon does."""

    @property
    def members(self) -> "tuple[tuple[PairsConfig, float], ...]":
        """What joins each second image to the first one, and the factor of what the first one
        finds in it."""
        return ((self, 1.0),)


@dataclass(frozen=True, config=RULES)
class CombinedPairsConfig(PairsConfig):
    """Several models of pairs in one, which has a second image for each: made to draw with, never
    trained, and in no file. `adapt_second`: some model does so; `rank` is the largest."""

    models: tuple[PairsConfig, ...] = ()
    weights: tuple[float, ...] = ()
    """A number for each of `models`."""

    @property
    def members(self) -> tuple[tuple[PairsConfig, float], ...]:
        """See `PairsConfig`."""
        return tuple(zip(self.models, self.weights, strict=True))
