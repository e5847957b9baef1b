"""Which classes of a model the pictures have that its samples are held to."""

import numpy as np

from dit_moe.config import ConfigError
from dit_moe.config.rules import listing
from dit_moe.data.classes import ModelClasses


def own_labels(
    label_M: np.ndarray,
    theirs: ModelClasses | None,
    own: ModelClasses,
    field: str = "steer_images",
) -> tuple[int, ...]:
    """The model's labels of pictures: by the names of their classes where both have some, else by
    the numbers in the data.

    Args:
      label_M: the pictures' own labels [M].
      theirs: what these stand for; None where the file does not tell, which is enough for a model
        whose labels are the numbers in the data.
      own: what the model's labels stand for.
      field: what messages call the file of the pictures.

    Raises:
      ConfigError: the model has no such class, or nothing tells which it is.
    """
    plain = ModelClasses(tuple(range(len(own.numbers))), ())
    if theirs is None and own.numbers != plain.numbers:
        raise ConfigError(
            f"{field} has labels without class_numbers, while the model's classes are "
            f"{listing(own.numbers)} of the data; allowed: --classes, or an .npz whose "
            "class_numbers [K] are the numbers in the data of its labels 0, 1, ..."
        )
    theirs = theirs or plain
    by_name = bool(own.names and theirs.names)
    mine = own.names if by_name else own.numbers
    stored = theirs.names if by_name else theirs.numbers
    label_of = {name: label for label, name in enumerate(mine)}
    strange = [stored[label] for label in np.unique(label_M) if stored[label] not in label_of]
    if strange:
        raise ConfigError(
            f"{field} has pictures of class {strange[0]!r}, which the model does not have; "
            f"allowed: {listing(mine)}, or --classes"
        )
    return tuple(label_of[stored[label]] for label in label_M)
