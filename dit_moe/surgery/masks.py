"""Which hidden units of a dense feed-forward which expert has (Read-ME, Cai et al. 2024).

The mask of a group of inputs are the units that are most active there. What all masks have in
common is permanent: the shared expert; the rest of each is an expert. The sum of the two is the
network that has the mask's units alone.
"""

from typing import NamedTuple

import numpy as np

from dit_moe.config import ExpertKind


class Units(NamedTuple):
    """Hidden units of one layer by their numbers, in ascending order."""

    permanent: np.ndarray
    """[P] those of the shared expert."""
    own: np.ndarray
    """[E, H] those of each routed expert; none of them is permanent."""


def choose_units(activity_ExF: np.ndarray, permanent: int, hidden: int) -> Units:
    """Units by how active they are in each of E groups of inputs.

    Permanent are those whose lowest place in the groups is highest: where the masks of so many
    units as an expert has with the permanent ones have just as many in common, these. An expert's
    are the most active of the others. Of equal ones the first are taken.

    Args:
      activity_ExF: [E, F] mean size of every unit in every group.
      permanent: P, how many units all experts have in common.
      hidden: H, how many more each has; P + H is F at most.
    """
    order_ExF = np.argsort(-activity_ExF, axis=1, kind="stable")
    place_ExF = np.argsort(order_ExF, axis=1, kind="stable")
    common_P = np.sort(np.argsort(place_ExF.max(axis=0), kind="stable")[:permanent])
    own = [row[~np.isin(row, common_P)][:hidden] for row in order_ExF]
    return Units(common_P, np.sort(np.stack(own), axis=1))


def masks(units: Units, total: int) -> np.ndarray:
    """[E, F] bool: the units of every routed expert among so many, without the permanent ones."""
    mask_ExF = np.zeros((len(units.own), total), bool)
    np.put_along_axis(mask_ExF, units.own, True, axis=1)
    return mask_ExF


def part_of(value: np.ndarray, name: str, units_H: np.ndarray, kind: ExpertKind) -> np.ndarray:
    """The part of a feed-forward's parameter that belongs to some of its hidden units.

    Args:
      value: `w_in` [D, G], `b_in` [G], or `w_out` [F, D] of one network of the kind.
      name: which of them.
      units_H: the units.
      kind: whose `in_matrices` lie side by side in G.
    """
    if name == "w_out":
        return value[units_H]
    by_matrix = value.reshape(*value.shape[:-1], kind.in_matrices, -1)
    return by_matrix[..., units_H].reshape(*value.shape[:-1], -1)
