"""Models from and to other forms: peers' checkpoints, open folders, sparse from dense."""

from typing import Literal, get_args

Family = Literal[
    "dit", "sit", "dit-moe", "promoe", "promoe-ec", "tc-dit", "ec-dit", "diffmoe", "ds-moe"
]
"""Whose names and layout the tensors have."""
FAMILIES: tuple[Family, ...] = get_args(Family)
