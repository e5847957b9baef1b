"""The peers' fixtures as checkpoints of any form, and what their networks answer."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from dit_moe.commands import convert as command
from dit_moe.convert.formats import PEERS
from dit_moe.models.dit import DiT

FIXTURES = Path(__file__).parent.parent / "fixtures"
FAMILIES = {
    "dit_tiny": "dit",
    "dit_moe_tiny": "dit-moe",
    "promoe_tiny": "promoe",
    "promoe_ec_tiny": "promoe-ec",
    "tcdit_tiny": "tc-dit",
    "ecdit_tiny": "ec-dit",
    "diffmoe_tiny": "diffmoe",
    "dsmoe_tiny": "ds-moe",
}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """The fixture's state_dict."""
    return load_file(FIXTURES / f"{name}.safetensors")


def arguments_of(name: str) -> Path:
    """The JSON of its constructor's arguments."""
    return FIXTURES / f"{name}.json"


def convert(checkpoint: Path, output: Path, name: str, *flags: str) -> int:
    """Imports a checkpoint of the fixture's family by the command; returns the exit code."""
    needed = [f"--family={FAMILIES[name]}", f"--checkpoint={checkpoint}", f"--output={output}"]
    return command.main([*needed, f"--model_json={arguments_of(name)}", *flags])


def imported(folder: Path, name: str) -> Path:
    """A run folder made from the fixture."""
    output = folder / name
    assert convert(FIXTURES / f"{name}.safetensors", output, name) == 0
    return output


def store(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, path)
    return path


def inputs(name: str) -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """x [N, H, W, C], t [N] on this package's clock, y [N] of the fixture; the last label is
    null."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        x_NxHxWxC = jnp.asarray(arrays["x"].transpose(0, 2, 3, 1))
        t_N = 1 - arrays["t"] if PEERS[FAMILIES[name]].other_clock else arrays["t"]
        return x_NxHxWxC, jnp.asarray(t_N), jnp.asarray(arrays["y"], jnp.int32)


def expected(name: str) -> np.ndarray:
    """[N, H, W, C'] of the peer's own code, on this package's clock."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        out = arrays["out"].transpose(0, 2, 3, 1)
        return -out if PEERS[FAMILIES[name]].other_clock else out


def answer(model: DiT, *inputs: jnp.ndarray) -> np.ndarray:
    """[N, H, W, C'] of a network."""
    return np.asarray(nnx.jit(lambda model, *args: model(*args).value)(model, *inputs))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def arguments(name: str) -> dict:
    return json.loads(arguments_of(name).read_text())
