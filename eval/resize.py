"""Images brought to one size, by a rule that is named because the metrics depend on it."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dit_moe.data.prepare.decode import center_crop
from dit_moe.storage.pictures import ImageError

from .image_set import ImageSet, ImageSetError

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RULES = ("adm", *_FILTERS)
"""adm: as `python -m dit_moe.data.prepare` cuts (halved by averaging, then bicubic). The others are
Pillow's filters in one step, antialiased: their support grows with the factor."""
_FORM = re.compile(r"([a-z]+):(\d{1,5})(?:x(\d{1,5}))?")


@dataclasses.dataclass(frozen=True)
class Resize:
    """The largest centred part of the target's shape, at the target's size."""

    rule: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.rule}:{self.height}x{self.width}"

    def __call__(self, image_HxWxC: np.ndarray) -> np.ndarray:
        """uint8 [height, width, C] of uint8 [H, W, C]; the same where it has the size already.

        Raises:
            ImageSetError: it is too long and thin.
        """
        if image_HxWxC.shape[:2] == (self.height, self.width):
            return image_HxWxC
        grey = image_HxWxC.shape[2] == 1
        image = Image.fromarray(image_HxWxC[..., 0] if grey else image_HxWxC)
        try:
            resized = np.asarray(self._resized(image))
        except ImageError as error:
            raise ImageSetError(f"an image of {image.height}x{image.width} is {error}.") from None
        return resized[..., None] if grey else resized

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.rule == "adm":
            return center_crop(image, (self.height, self.width))
        scale = min(image.width / self.width, image.height / self.height)
        width, height = round(scale * self.width), round(scale * self.height)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # Cropped before: `box` of `resize` would look beyond the edges.
        part = image.crop((left, top, left + width, top + height))
        return part.resize((self.width, self.height), _FILTERS[self.rule])


def parse(text: str) -> Resize:
    """From RULE:SIZE or RULE:HEIGHTxWIDTH.

    Raises:
        ImageSetError: it is none.
    """
    found = _FORM.fullmatch(text)
    if found is None or found[1] not in RULES or not all(int(n) for n in found.groups()[1:] if n):
        raise ImageSetError(
            f"--resize is {text!r}; allowed: RULE:SIZE or RULE:HEIGHTxWIDTH, with a rule of "
            f"{', '.join(RULES)}, such as lanczos:256."
        )
    height = int(found[2])
    return Resize(found[1], height, int(found[3] or height))


def resized(images: ImageSet, resize: Resize | None) -> ImageSet:
    """The set with all images at the size; as it is where nothing is asked for."""
    if resize is None:
        return images

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        for image_NxHxWxC in images.batches(size, start):
            yield np.stack([resize(image_HxWxC) for image_HxWxC in image_NxHxWxC])

    return dataclasses.replace(
        resized_content(images, resize),
        shape=(resize.height, resize.width, images.shape[2]),
        make_batches=batches,
    )


def resized_content(images: ImageSet, resize: Resize | None) -> ImageSet:
    """A set whose images were resized as they were read: they depend on that, too."""
    if resize is None:
        return images
    return dataclasses.replace(
        images,
        make_sha256=lambda: hashlib.sha256(f"{images.sha256} {resize}".encode()).hexdigest(),
    )
