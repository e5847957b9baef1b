"""A set of samples on disk, made in parts so that an interrupted one can go on."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe import images, sampling
from dit_moe.config import Config, ConfigError, MeshConfig
from dit_moe.data.latents import read_latent_space
from dit_moe.files import atomic
from dit_moe.loading import load_run
from dit_moe.nn.parameters import Parameters
from dit_moe.rendering import Renderer, build_renderer
from dit_moe.training.mesh import batch_sharding, build_mesh, replicated

GRID_ROWS, GRID_COLUMNS = 16, 12


def write_sample_set(
    *,
    workdir: Path,
    output: Path,
    ema: bool,
    batch_size: int,
    num_samples: int,
    classes: Sequence[int] = (),
    guidance_scale: float | None = None,
    guidance_channels: Literal["all", "first_three"] = "all",
    solver: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    autoencoder: str | None = None,
) -> tuple[Path, Path]:
    """Samples a run into `output`/samples.npz and `output`/grid.png, and returns their paths.

    Finished batches lie in `output`/samples.parts until the set is complete; the same call with
    the same weights resumes after them, another one starts anew.

    Args:
      autoencoder: what decodes a latent model's samples; None: the one that its training data
        were encoded with; "none": nothing, `samples.npz` then holds the network's latents, float32.

    Raises:
      ConfigError: the run or an argument cannot be used; the message is one sentence.
      OSError: the output cannot be written.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; allowed: 1 or more")
    run = load_run(workdir, ema)
    request = sampling.build_request(
        run.config,
        num_samples=num_samples,
        classes=classes,
        guidance_scale=guidance_scale,
        guidance_channels=guidance_channels,
        solver=solver,
        steps=steps,
        seed=seed,
    )
    mesh = build_mesh(MeshConfig())
    render = _renderer(workdir, run.config, autoencoder, mesh)
    batch_size = sampling.round_up(min(batch_size, num_samples), mesh.size)
    identity = {
        **dataclasses.asdict(request),
        "workdir": str(workdir.resolve()),
        "step": run.step,
        "ema": ema,
        "weights": _digest(run.parameters),
        "batch_size": batch_size,
        "autoencoder": autoencoder,
    }
    parts = output / "samples.parts"
    done = _open_parts(parts, identity) * batch_size
    if done:
        print(f"Resuming after {min(done, num_samples):,} images in {parts}.")

    with (
        jax.set_mesh(mesh),
        tqdm(
            total=num_samples, initial=min(done, num_samples), unit="image", dynamic_ncols=True
        ) as bar,
    ):
        parameters = jax.device_put(run.parameters, replicated(mesh))
        sampler = sampling.build_sampler(run.config, request)
        batches = sampling.generate(
            sampler, parameters, request, batch_size, start=done, sharding=batch_sharding(mesh)
        )
        for number, x_NxHxWxC in enumerate(batches, start=done // batch_size):
            x_NxHxWxC = x_NxHxWxC if render is None else render(x_NxHxWxC)
            with atomic(parts / f"{number:06d}.npy") as temporary:
                np.save(temporary, x_NxHxWxC)
            bar.update(len(x_NxHxWxC))

    files = sorted(parts.glob("[0-9]*.npy"))
    x_NxHxWxC = np.concatenate([np.load(file, allow_pickle=False) for file in files])
    labels = request.labels()
    npz, png = output / "samples.npz", output / "grid.png"
    with atomic(npz) as temporary:
        np.savez(temporary, arr_0=x_NxHxWxC, arr_1=labels)
    shown = _grid_choice(labels)
    picture = x_NxHxWxC[shown] if render else images.to_uint8(x_NxHxWxC[shown])
    with atomic(png) as temporary:
        images.grid(picture, labels[shown]).save(temporary)
    shutil.rmtree(parts)
    return npz, png


def _renderer(
    workdir: Path, config: Config, autoencoder: str | None, mesh: Mesh
) -> Renderer | None:
    """None: samples stay what the network draws."""
    space = read_latent_space(workdir)
    if autoencoder == "none" or (space is None and config.model.channels not in (1, 3)):
        return None
    if space is None and autoencoder is not None:
        raise ConfigError(
            f"autoencoder is {autoencoder!r} but {str(workdir)!r} is no model of latents; "
            "allowed: no --autoencoder"
        )
    return build_renderer(space, autoencoder, mesh)


def _open_parts(parts: Path, identity: dict[str, object]) -> int:
    """How many parts of the same request exist; parts of another request are removed.

    Raises:
      ConfigError: the folder holds something that is not ours to remove.
    """
    description = json.dumps(identity, indent=2) + "\n"
    request_file = parts / "request.json"
    if request_file.is_file() and request_file.read_text() == description:
        return len(list(parts.glob("[0-9]*.npy")))
    if parts.exists():
        if any(parts.iterdir()) and not request_file.is_file():
            raise ConfigError(f"{parts} holds no samples of ours; allowed: another --output")
        shutil.rmtree(parts)
    with atomic(request_file) as temporary:
        temporary.write_text(description)
    return 0


def _digest(parameters: Parameters) -> str:
    """SHA-256 of all weights: a run retrained in the same place is another run."""
    digest = hashlib.sha256()
    for path in sorted(parameters):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(parameters[path]).data)
    return digest.hexdigest()


def _grid_choice(labels_N: np.ndarray) -> np.ndarray:
    """The first few images of the first few classes."""
    classes = list(dict.fromkeys(labels_N.tolist()))[:GRID_ROWS]
    return np.concatenate([np.flatnonzero(labels_N == c)[:GRID_COLUMNS] for c in classes])
