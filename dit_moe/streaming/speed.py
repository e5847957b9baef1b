"""How long a pass of a network takes whose experts are read: the slower of disk and computing.

Fed by measurements of this machine (measuring.py); everything here is arithmetic.
"""

import dataclasses
import math
from collections.abc import Sequence

from dit_moe.streaming.layout import Layer
from dit_moe.streaming.ring import LEAST_LAYERS, pinned_layers

_MOST = 4096


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was measured of a machine for a model."""

    disk: float
    """Bytes a second that one thread reads and checks."""
    reading: float
    """Seconds of a processor that a byte of these takes."""
    fixed: float
    """Seconds that a pass of the network takes without any image, its experts in memory."""
    each: float
    """Seconds more for every image."""
    held: float
    """Bytes that the process holds without experts and without any image."""
    held_each: float
    """Bytes more for every image."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of the network."""

    images: int
    """In it; with guidance by class every sample is two."""
    pinned: int
    """Layers of experts that stay in memory."""
    layers: int
    """All of them."""
    read: int
    """Bytes."""
    loading: float
    """Seconds that reading takes."""
    computing: float
    """Seconds that computing takes beside it."""
    seconds: float
    """Of the whole pass."""

    @property
    def regime(self) -> str:
        """What it waits for."""
        return "disk-bound" if self.loading > self.computing else "compute-bound"


def predict(layers: Sequence[Layer], machine: Machine, memory: float, images: int) -> Pass | None:
    """Predicts a pass, after the first.

    Reading takes its processor time from computing, all of it: the network's threads wait for the
    one that is held up. What cannot be read while something is computed is small where pinned
    layers are spread over the depth.

    Args:
      layers: of experts, as stored.
      machine: measured.
      memory: bytes that the process may hold.
      images: in the pass.

    Returns:
      None where memory does not suffice.
    """
    sizes = [layer.bytes for layer in layers]
    budget = math.floor(memory - machine.held - images * machine.held_each)
    if budget < min(sum(sizes), LEAST_LAYERS * max(sizes)):
        return None
    pinned = pinned_layers(sizes, budget)
    read = sum(size for size, stays in zip(sizes, pinned, strict=True) if not stays)
    computing = machine.fixed + images * machine.each
    computing += read * machine.reading
    loading = read / machine.disk
    return Pass(
        images=images,
        pinned=sum(pinned),
        layers=len(sizes),
        read=read,
        loading=loading,
        computing=computing,
        seconds=max(loading, computing),
    )


def best_images(layers: Sequence[Layer], machine: Machine, memory: float) -> int | None:
    """How many images a pass should have: the fewest that keep the processors busy, for which an
    image takes least, or as many as fit into memory. None where not even one does.

    More images leave less memory to layers, so that there is more to read for all of them.
    """
    best, found = None, math.inf
    images = 1
    while (one := predict(layers, machine, memory, images)) is not None and images <= _MOST:
        # Within 2% fewer images are better.
        if one.seconds / images < 0.98 * found:
            best, found = images, one.seconds / images
        images += max(1, images // 8)
    return best


def told(layers: Sequence[Layer], machine: Machine, memory: float) -> str:
    """All of it in sentences."""
    best = best_images(layers, machine, memory)
    if best is None:
        least = machine.held + machine.held_each + LEAST_LAYERS * max(x.bytes for x in layers)
        return f"does not fit into {memory / 1e9:.3g} GB; {least / 1e9:.3g} GB are needed"
    lines = [
        f"disk {machine.disk / 1e9:.3g} GB/s; with all experts in memory a pass takes "
        f"{machine.fixed:.3g} s and {machine.each:.3g} s an image (with guidance by class every "
        "sample is two)"
    ]
    for images in sorted({1, best}):
        one = predict(layers, machine, memory, images)
        assert one is not None
        lines.append(
            f"{images} images in a pass: {one.pinned} of {one.layers} layers stay in memory, "
            f"{one.read / 1e9:.3g} GB are read; predicted {one.seconds:.3g} s "
            f"({one.loading:.3g} reading, {one.computing:.3g} computing), {one.regime}"
        )
    return "\n".join([*lines, f"best batch: {best} images in a pass"])
