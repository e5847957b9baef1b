"""The small autoencoder of the fixture, as files."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
WEIGHTS = FIXTURES / "autoencoder_tiny.safetensors"


def description() -> dict:
    return json.loads((FIXTURES / "autoencoder_tiny.json").read_text())


def arrays() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "autoencoder_tiny.npz") as file:
        return dict(file)


def tensors() -> dict[str, np.ndarray]:
    return load_file(WEIGHTS)


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description()["config"]))
    shutil.copy(WEIGHTS, folder / "diffusion_pytorch_model.safetensors")
    return folder
