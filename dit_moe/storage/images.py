"""From the network's numbers to pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit_moe.storage.colours import on_white
from dit_moe.storage.errors import ConfigError


class NotFiniteError(ConfigError):
    """Samples with values that are NaN or infinite, which would look like black pictures."""


def check_finite(x_NxHxWxC: np.ndarray, what: str = "images") -> None:
    """Checks that all values are numbers.

    Raises:
      NotFiniteError: some are not.
    """
    wrong = np.flatnonzero(~np.isfinite(x_NxHxWxC).reshape(len(x_NxHxWxC), -1).all(axis=1))
    if len(wrong):
        raise NotFiniteError(
            f"{len(wrong):,} of {len(x_NxHxWxC):,} {what} have values that are not finite (NaN or "
            "infinite): the weights are damaged or training diverged, or guidance is too strong; "
            "allowed: an earlier checkpoint, --parameters raw or ema, or a lower guidance_scale"
        )


def to_uint8(x_NxHxWxC: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to 0..255: round(127.5 (x + 1)), clipped.

    Raises:
      NotFiniteError: not all of them are numbers.
    """
    check_finite(x_NxHxWxC)
    return np.clip(np.rint((np.asarray(x_NxHxWxC, np.float32) + 1) * 127.5), 0, 255).astype(
        np.uint8
    )


def false_colours(x_NxHxWxC: np.ndarray) -> np.ndarray:
    """Arrays that are no pictures, to look at: the first channels as red, green and blue.

    Returns:
      uint8 [N, H, W, 3]; with less than three channels the first as grey, [N, H, W, 1].
    """
    return to_uint8(x_NxHxWxC)[..., : 3 if x_NxHxWxC.shape[-1] >= 3 else 1]


_LONGEST = 24  # letters of a label


def grid(
    images_NxHxWxC: np.ndarray, labels_N: Sequence[int] | Sequence[str] | np.ndarray, cell: int = 64
) -> Image.Image:
    """Draws one row per label, in order of first appearance, with the label at its left.

    Args:
      images_NxHxWxC: [N, H, W, C] uint8, C of 1 to 4; the second and the fourth are alpha, and
        white shines through.
      labels_N: [N] labels, numbers or names.
      cell: the longer side of an image as it is drawn, at least; small images are enlarged without
        smoothing.
    """
    labels, pictures_NxHxWxC = np.asarray(labels_N), on_white(images_NxHxWxC)
    rows = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]
    sides = images_NxHxWxC.shape[1:3]
    height, width = (side * max(1, -(-cell // max(sides))) for side in sides)
    gap = max(2, max(height, width) // 12)
    font = ImageFont.load_default(size=18)
    texts = [" ".join(str(labels[row[0]]).split())[:_LONGEST] for row in rows]
    margin = 16 + max(32, *(int(font.getlength(text)) for text in texts))
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB", (margin + columns * (width + gap), len(rows) * (height + gap)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        top = r * (height + gap)
        draw.text(
            (margin - 8, top + height // 2),
            texts[r],
            fill=(0, 0, 0),
            font=font,
            anchor="rm",
        )
        for c, index in enumerate(row):
            image = pictures_NxHxWxC[index]
            picture = (
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                .convert("RGB")
                .resize((width, height), Image.Resampling.NEAREST)
            )
            canvas.paste(picture, (margin + c * (width + gap), top))
    return canvas
