"""Where examples come from: random access to images or latents with labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dit_moe.config import Config, ConfigError, DataConfig
from dit_moe.data import digits


class Source:
    """Arrays of examples; `x` may be memory-mapped. A grain random-access data source."""

    def __init__(self, x_NxHxWxC: np.ndarray, label_N: np.ndarray):
        self.x = x_NxHxWxC
        self.label = label_N

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One example: x [H, W, C] float32, uint8 mapped to [-1, 1], and its int32 label."""
        x = np.asarray(self.x[index])
        x = x / np.float32(127.5) - 1 if x.dtype == np.uint8 else x.astype(np.float32)
        return {"x": x.astype(np.float32), "label": np.asarray(self.label[index], np.int32)}


def build_source(config: Config) -> Source:
    """The training examples that the config names.

    Raises:
      ConfigError: if the files are missing or disagree with the config.
    """
    source = _SOURCES[config.data.source](config.data)
    model = config.model
    expected = (model.image_size, model.image_size, model.channels)
    if source.x.shape[1:] != expected:
        raise ConfigError(
            f"config.model image_size and channels give examples of shape {expected}; "
            f"allowed with data source {config.data.source!r}: {source.x.shape[1:]}"
        )
    if not len(source):
        raise ConfigError(f"config.data.path is {config.data.path!r}, which holds no examples")
    low, high = int(np.min(source.label)), int(np.max(source.label))
    if low < 0 or high >= model.num_classes:
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes} but the labels of data source "
            f"{config.data.source!r} span {low} to {high}; allowed: at least {high + 1}"
        )
    return source


def _digits(config: DataConfig) -> Source:
    del config
    return Source(*digits.load("train"))


def _arrays(config: DataConfig) -> Source:
    arrays = []
    for name in ("x.npy", "label.npy"):
        path = Path(config.path) / name
        if not path.is_file():
            raise ConfigError(
                f"config.data.path is {config.path!r}, which has no {name}; allowed: a folder "
                "with x.npy [N, H, W, C] and label.npy [N]"
            )
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ConfigError(f"{path} is not a plain .npy array: {error}") from None
    x, label = arrays
    if x.ndim != 4 or label.shape != x.shape[:1] or not np.issubdtype(label.dtype, np.integer):
        raise ConfigError(
            f"config.data.path is {config.path!r} with x {x.shape} and label {label.shape} "
            f"{label.dtype}; allowed: x [N, H, W, C] and integer label [N]"
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ConfigError(f"{config.path}/x.npy is {x.dtype}; allowed: uint8 or a float type")
    return Source(x, label)


_SOURCES: dict[str, Callable[[DataConfig], Source]] = {"digits": _digits, "arrays": _arrays}
