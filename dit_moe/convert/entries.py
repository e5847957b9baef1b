"""Which peer's tensor is which piece of this network's parameters, one entry each."""

from collections.abc import Iterator
from typing import NamedTuple


class Entry(NamedTuple):
    """One peer tensor and its place in this network."""

    key: str
    """The peer's name."""
    path: str
    """Ours, dotted."""
    leading: tuple[int, ...] = ()
    """Leading indices into our array: unit, expert."""
    part: tuple[int, int] = (0, 1)
    """(i, n): the i-th of n equal parts of our last axis."""
    transpose: bool = False
    """PyTorch stores linear layers as [out, in]."""


def linear(theirs: str, ours: str, *index: int) -> Iterator[Entry]:
    """A linear layer with a bias."""
    yield Entry(f"{theirs}.weight", f"{ours}.kernel", index, transpose=True)
    yield Entry(f"{theirs}.bias", f"{ours}.bias", index)


def gelu(
    theirs: str, ours: str, index: tuple[int, ...], names: tuple[str, str] = ("fc1", "fc2")
) -> Iterator[Entry]:
    """A feed-forward of two linear layers, called by `names`."""
    for name, side in zip(names, ("in", "out"), strict=True):
        yield Entry(f"{theirs}.{name}.weight", f"{ours}.w_{side}", index, transpose=True)
        yield Entry(f"{theirs}.{name}.bias", f"{ours}.b_{side}", index)


def swiglu(theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Entry]:
    """A feed-forward of three matrices, of which one gates."""
    yield Entry(f"{theirs}.gate_proj.weight", f"{ours}.w_in", index, (0, 2), transpose=True)
    yield Entry(f"{theirs}.up_proj.weight", f"{ours}.w_in", index, (1, 2), transpose=True)
    yield Entry(f"{theirs}.down_proj.weight", f"{ours}.w_out", index, transpose=True)
