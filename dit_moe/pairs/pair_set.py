"""A set of pairs on disk."""

import json
from pathlib import Path

import numpy as np

from dit_moe.pairs.draw import PairsSampler
from dit_moe.sampling.sample_set import class_arrays, grid_choice
from dit_moe.storage import images
from dit_moe.storage.files import atomic


def write_pairs(sampler: PairsSampler, output: Path) -> list[Path]:
    """Draws a set, and writes it when it is whole: first.npz and second.npz (arr_0: uint8
    [N, H, W, C], arr_1: labels [N]), second_2.npz and so on where models are combined, grid.png
    with the images of a pair side by side, and pairs.json, what they are made of. Returns the
    paths.

    Raises:
      ConfigError: the images are not finite.
      OSError: the output cannot be written.
    """
    labels = sampler.request.labels()
    pairs = np.concatenate([*sampler.batches()])
    output.mkdir(parents=True, exist_ok=True)
    beside, written = class_arrays(sampler.classes), []
    for side, image in zip(sampler.sides, pairs.swapaxes(0, 1), strict=True):
        written.append(output / f"{side}.npz")
        with atomic(written[-1]) as temporary, temporary.open("wb") as file:
            np.savez(file, **{"arr_0": image, "arr_1": labels, **beside})
    shown = grid_choice(labels)
    picture = pairs[shown].reshape(-1, *pairs.shape[2:])
    titles = sampler.classes.titles(np.repeat(labels[shown], pairs.shape[1]))
    written.append(output / "grid.png")
    with atomic(written[-1]) as temporary:
        images.grid(picture, titles).save(temporary)
    written.append(output / "pairs.json")
    with atomic(written[-1]) as temporary:
        temporary.write_text(json.dumps(sampler.description, indent=2) + "\n")
    return written
