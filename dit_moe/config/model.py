"""The network."""

import dataclasses
import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from dit_moe.config.moe import ExpertName, MoEConfig
from dit_moe.config.packed import PackedConfig
from dit_moe.config.pairs import PairsConfig
from dit_moe.config.pregate import PregateConfig
from dit_moe.config.rules import (
    MAX_SIZE,
    RULES,
    PositiveFloat,
    PositiveInt,
    Probability,
    divisors,
    listing,
    require,
)
from dit_moe.config.sizes import MAX_SIDE, ImageSize, height_and_width, parse_size, size_text

Rounds = Annotated[PositiveInt, Field(le=64)]
"""Each stands in the program by itself."""


@dataclass(frozen=True, config=RULES)
class SegmentConfig:
    """Blocks one after another that are alike: one scan over stacked parameters."""

    depth: PositiveInt
    """Blocks."""
    moe: MoEConfig | None = None
    """The mixture in the last of each `moe.every` blocks; None: all are dense."""

    def __post_init__(self) -> None:
        require(
            self.depth % self.unit == 0,
            f"moe.every is {self.unit}; allowed: a divisor of depth {self.depth}",
        )

    @property
    def unit(self) -> int:
        """Blocks that are repeated together: dense ones up to and including one MoE block."""
        return 1 if self.moe is None else self.moe.every

    @property
    def repeats(self) -> int:
        """How often the unit is repeated."""
        return self.depth // self.unit

    @property
    def moe_blocks(self) -> int:
        """Blocks whose feed-forward is a mixture of experts."""
        return 0 if self.moe is None else self.repeats


@dataclass(frozen=True, config=RULES)
class ModelConfig:
    """The network: a diffusion transformer, dense or with mixtures of experts."""

    # The bounds are far beyond any network; near them, memory alone says no.
    width: Annotated[PositiveInt, Field(le=2**20)]
    depth: Annotated[PositiveInt, Field(le=2**16)]
    heads: PositiveInt
    image_size: ImageSize = 32
    """Side of a square input, or height and width (48x64): the latent's for latent diffusion, in
    its own pixels."""
    channels: PositiveInt = 4
    patch_size: PositiveInt = 2
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of a dense block's feed-forward over the model's width."""
    mlp_activation: ExpertName = "gelu"
    """Kind of the dense blocks' feed-forward: GELU (tanh) in DiT, SiLU in DSMoE."""
    num_classes: PositiveInt = 1000
    """Real classes are 0 to num_classes - 1; the null label is num_classes."""
    label_dropout: Probability = 0.1
    learn_sigma: bool = False
    """Doubles the output channels; the second half parameterises the variance under DDPM."""
    qk_norm: bool = False
    """Queries and keys are normalised, each head's by itself."""
    qk_norm_epsilon: PositiveFloat = 1e-5
    """Added to the variance there: timm's, as in ProMoE. DiT-MoE's flash attention has 1e-6."""
    position: Literal["sincos", "rope"] = "sincos"
    """`sincos`: sines and cosines of column and row, added to the patches (DiT). `rope`: each block
    turns queries and keys by row and column (DSMoE)."""
    moe: MoEConfig | None = None
    """The mixture of all layers. None: a dense DiT, or what `segments` say."""
    segments: tuple[SegmentConfig, ...] = ()
    """Mixtures that differ by depth, such as pyramids: parts of the trunk from the first block on,
    whose depths add up to `depth`. Empty: one part, with the mixture `moe`."""
    pairs: PairsConfig | None = None
    """Images come in pairs, of which each attends to the other (docs/pairs.md). None: one by
    one."""
    packed: tuple[PackedConfig, ...] = ()
    """Matrices that are kept as integers of few bits, and made whole where a product needs them: of
    a network that was quantised, which can be run but not trained."""
    pregate: PregateConfig | None = None
    """One router for all MoE layers, before the first block. None: each has its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of activations and matrix products. Parameters, routing, softmax and loss stay
    float32."""
    remat: Annotated[
        Literal["none", "dots", "full"],
        # On the command line the word stands for None.
        BeforeValidator(lambda value: "none" if value is None else value),
    ] = "dots"
    """What the backward pass recomputes instead of storing. `dots`: all but matrix products, and of
    these the scores of attention, which is the fastest on CPU too (less to write and read). `full`:
    whole blocks. `none`: nothing."""
    forward_rounds: Rounds = 1
    """In how many parts tokens travel to their experts where a mesh has the axis "expert" and the
    load is even, so that links and arithmetic may overlap (`dit_moe.plan` tells how many pay)."""
    backward_rounds: Rounds = 1
    """The same of the backward pass."""
    exchange_within: PositiveInt | None = 1
    """Devices of a host along a mesh's axis "expert" that goes beyond it: tokens then travel in two
    steps, inside of hosts and between them, with fewer messages (docs/scale.md). 1: directly.
    None: in training, as many as the mesh has there."""

    def __post_init__(self) -> None:
        require(
            self.width % self.heads == 0,
            f"heads is {self.heads}; allowed: a divisor of width {self.width} "
            f"({listing(divisors(self.width))})",
        )
        require(
            self.width % 4 == 0,
            f"width is {self.width}; allowed: a multiple of 4 (two axes of sine and cosine)",
        )
        sides, p = height_and_width(self.image_size), self.patch_size
        near = parse_size([min(max(1, round(side / p)) * p, MAX_SIDE) for side in sides])
        require(
            all(side % p == 0 for side in sides),
            f"patch_size is {p}; allowed: a divisor of image_size {size_text(self.image_size)} "
            f"({listing(divisors(math.gcd(*sides)))}), or an image_size that it divides, such as "
            f"{size_text(near)}",
        )
        require(
            self.position != "rope" or self.width // self.heads % 4 == 0,
            f"heads is {self.heads} with position 'rope' and width {self.width}; allowed: a number "
            "that makes width / heads a multiple of 4 (pairs of two axes)",
        )
        if self.pairs is not None:
            self._check_pairs(self.pairs)
        if self.segments:
            require(
                self.moe is None,
                "moe is a mixture with segments; allowed: the mixtures of the segments, and moe "
                "none",
            )
            total = sum(segment.depth for segment in self.segments)
            require(
                total == self.depth,
                f"segments have {total} blocks together; allowed: depth {self.depth}",
            )
            for number, segment in enumerate(self.segments):
                self._check_mixture(segment.moe, f"segments.{number}.moe")
        elif self.moe is not None:
            require(
                self.depth % self.moe.every == 0,
                f"moe.every is {self.moe.every}; allowed: a divisor of depth {self.depth}",
            )
            self._check_mixture(self.moe, "moe")
        self._check_hidden("mlp_ratio", self.mlp_ratio)
        if self.pregate is not None:
            self._check_pregate(self.pregate)

    def _check_pregate(self, pregate: PregateConfig) -> None:
        require(
            bool(self.mixtures) and len(set(self.mixtures)) == 1,
            f"pregate has a router for {len(set(self.mixtures))} kinds of mixtures; allowed: "
            "none, or one and the same mixture in all MoE layers",
        )
        moe = self.mixtures[0]
        require(
            moe.tokens_choose,
            f"pregate has router {moe.router.name!r}; allowed: one by which tokens choose their "
            "experts, such as 'top_k'",
        )
        width = pregate.heads * self.width // self.heads
        require(
            width % 4 == 0,
            f"pregate.heads is {pregate.heads} with heads {self.width // self.heads} wide; "
            "allowed: a number that makes them a multiple of 4 wide together",
        )
        require(
            float(pregate.mlp_ratio * width).is_integer() and pregate.mlp_ratio * width <= MAX_SIZE,
            f"pregate.mlp_ratio is {pregate.mlp_ratio}; allowed: a ratio that gives a whole number "
            f"of hidden units at width {width}, up to {MAX_SIZE}",
        )

    def _check_pairs(self, pairs: PairsConfig) -> None:
        require(
            pairs.rank <= self.width,
            f"pairs.rank is {pairs.rank}; allowed: 1 to the width {self.width}",
        )
        require(
            self.label_dropout <= 1 / 3 or self.label_dropout == 1,
            f"label_dropout is {self.label_dropout} with pairs, which lose both labels, the first "
            "or the second, each so often; allowed: 0 to 1/3, or 1",
        )

    def _check_mixture(self, moe: MoEConfig | None, where: str) -> None:
        if moe is None:
            return
        require(
            moe.router.name != "expert_choice" or self.num_tokens * moe.top_k >= moe.num_experts,
            f"{where}.num_experts is {moe.num_experts} with router 'expert_choice', top_k "
            f"{moe.top_k} and {self.num_tokens} tokens an image; allowed: 1 to "
            f"{self.num_tokens * moe.top_k} (each expert takes a token of every image)",
        )
        self._check_hidden(f"{where}.hidden_ratio", moe.hidden_ratio)
        self._check_hidden(f"{where}.shared_hidden_ratio", moe.shared_hidden_ratio)
        for number, group in enumerate(moe.unlike):
            self._check_hidden(f"{where}.unlike.{number}.hidden_ratio", group.hidden_ratio)

    def _check_hidden(self, field: str, ratio: float) -> None:
        require(
            float(ratio * self.width).is_integer() and ratio * self.width <= MAX_SIZE,
            f"{field} is {ratio}; allowed: a ratio that gives a whole number of hidden units "
            f"at width {self.width}, up to {MAX_SIZE}",
        )

    @property
    def trunk(self) -> tuple[SegmentConfig, ...]:
        """The parts of the trunk in order, however the config says them."""
        return self.segments or (SegmentConfig(self.depth, self.moe),)

    @property
    def units(self) -> int:
        """How many units the segments have together."""
        return sum(segment.repeats for segment in self.trunk)

    @property
    def mixtures(self) -> tuple[MoEConfig, ...]:
        """The mixture of every MoE layer, in order."""
        return tuple(s.moe for s in self.trunk if s.moe for _ in range(s.moe_blocks))

    @property
    def before(self) -> "ModelConfig | None":
        """The block of `pregate`, as a network of its own; None without."""
        if self.pregate is None:
            return None
        heads = self.pregate.heads
        return dataclasses.replace(
            self,
            width=heads * self.width // self.heads,
            depth=1,
            heads=heads,
            mlp_ratio=self.pregate.mlp_ratio,
            moe=None,
            segments=(),
            pairs=None,
            pregate=None,
        )

    def with_only(self, segment: SegmentConfig) -> "ModelConfig":
        """The network with this segment alone in its trunk; a dense one has no router before it."""
        return dataclasses.replace(
            self,
            depth=segment.depth,
            moe=None,
            segments=(segment,),
            pregate=None if segment.moe is None else self.pregate,
        )

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def rows(self) -> int:
        """Images of a batch that belong together, one after another: the two of a pair, or the
        first one and all second ones where models of pairs are combined."""
        return 1 if self.pairs is None else 1 + len(self.pairs.members)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = height_and_width(self.image_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens (patches) per image."""
        return math.prod(self.grid)

    @property
    def patch_features(self) -> int:
        """Numbers of a patch: those that a token stands for."""
        return self.patch_size**2 * self.channels

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.channels * (2 if self.learn_sigma else 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image, or of its latents."""
        return *height_and_width(self.image_size), self.channels
