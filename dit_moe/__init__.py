"""Class-conditional image generation with sparse diffusion transformers (DiT-MoE, ProMoE)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_moe.config import Config, ConfigError
    from dit_moe.config.presets import PRESET_NAMES, preset
    from dit_moe.runs.loading import create, load

__all__ = ["PRESET_NAMES", "Config", "ConfigError", "create", "load", "preset"]

_HOME = {
    "Config": "dit_moe.config",
    "ConfigError": "dit_moe.config",
    "PRESET_NAMES": "dit_moe.config.presets",
    "create": "dit_moe.runs.loading",
    "load": "dit_moe.runs.loading",
    "preset": "dit_moe.config.presets",
}


def __getattr__(name: str) -> object:
    # Imported on first use: the commands' --help and the evaluation need no JAX.
    if name not in _HOME:
        raise AttributeError(f"module 'dit_moe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
