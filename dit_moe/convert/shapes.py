"""What the shapes of a peer's tensors tell of its network."""

import math
from collections.abc import Mapping

from dit_moe.config import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of all tensors, by name."""


def depth_of(shapes: Shapes) -> int:
    """How many blocks there are, which must be numbered from 0 on."""
    found = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    if not found or found != set(map(str, range(len(found)))):
        raise ConfigError(
            f"the tensors' blocks are {', '.join(sorted(found)[:12]) or 'none'}; allowed: blocks.0 "
            "and so on, with none left out"
        )
    return len(found)


def blocks_with(shapes: Shapes, tensor: str) -> list[int]:
    """The numbers of the blocks that have a tensor."""
    names = (key.split(".") for key in shapes if key.endswith(f".{tensor}"))
    return sorted(int(number) for blocks, number, *_ in names if blocks == "blocks")


def shape_of(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes."""
    if key not in shapes:
        raise ConfigError(f"the checkpoint has no {key}, which tells the network's size")
    if len(shapes[key]) != axes:
        raise ConfigError(f"{key} has {len(shapes[key])} axes {shapes[key]}; expected {axes}")
    return shapes[key]


def mlp_ratio(shapes: Shapes, width: int) -> float:
    """Hidden width over width of the dense blocks; 4 where there are none."""
    hidden = [shape[0] for key, shape in shapes.items() if key.endswith(".mlp.fc1.weight")]
    return ratio(hidden[0], width) if hidden else 4.0


def ratio(hidden: int, width: int) -> float:
    """hidden / width, or the float beside it that gives `hidden` again when multiplied."""
    quotient = hidden / width
    for near in (quotient, math.nextafter(quotient, math.inf), math.nextafter(quotient, 0)):
        if near * width == hidden:
            return near
    raise ConfigError(
        f"{hidden} hidden units at width {width} cannot be kept: the config holds their ratio, and "
        f"no floating-point number times {width} is {hidden}"
    )
