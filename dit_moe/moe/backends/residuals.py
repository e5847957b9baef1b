"""What rematerialisation should store of dispatch."""

from typing import TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

DISPATCH_RESIDUAL = "dispatch"
"""The name under which it is found."""

Tree = TypeVar("Tree")


def keep(tree: Tree) -> Tree:
    """Marks arrays as worth storing: they are the outcome of matrix products."""
    return jax.tree.map(lambda array: checkpoint_name(array, DISPATCH_RESIDUAL), tree)
