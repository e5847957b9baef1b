"""What a source of examples is."""

from typing import Protocol

import numpy as np

from dit_moe.autoencoder.latent_space import LatentSpace

Record = dict[str, np.ndarray]


class Source(Protocol):
    """Records by number, and how an example is drawn from one."""

    shape: tuple[int, ...]
    """[H, W, C] of an example."""
    label: np.ndarray
    """[N] int32, of all records."""
    classes: tuple[str, ...]
    """Their names."""
    latent_space: LatentSpace | None
    """None: examples are pictures in [-1, 1]."""
    digest: str
    """The same for the same records, wherever they lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def draw(self, record: Record, mirrored: bool, rng: np.random.Generator) -> np.ndarray:
        """An example, float32 [H, W, C]; or a pair of them, [2, H, W, C] (`data.pair`)."""
        ...
