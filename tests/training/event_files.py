"""What a run wrote for TensorBoard."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event


def _values(workdir: Path) -> Iterator[tuple[int, object]]:
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        with path.open("rb") as file:
            # Length, its checksum, the event, its checksum.
            while head := file.read(12):
                (length,) = struct.unpack("<Q4x", head)
                event = Event.FromString(file.read(length))
                file.read(4)
                yield from ((event.step, value) for value in event.summary.value)


def scalars(workdir: Path, name: str) -> dict[int, float]:
    """A curve by step."""
    return {step: value.simple_value for step, value in _values(workdir) if value.tag == name}


def pictures(workdir: Path) -> dict[int, np.ndarray]:
    """The grids of samples by step, uint8 [H, W, 3]."""
    found = ((step, value.image) for step, value in _values(workdir) if value.HasField("image"))
    return {
        step: np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        for step, image in found
    }
