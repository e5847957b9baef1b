"""What the network is shown: noised training data, and the states of sampling trajectories."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dit_moe.analysis.decisions import Decisions, decisions, most_experts, watched
from dit_moe.analysis.record import Settings
from dit_moe.config import Config, ModelConfig, ObjectiveConfig
from dit_moe.data.sources import Source
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding
from dit_moe.diffusion.denoiser import Denoiser, unit_variance
from dit_moe.diffusion.guidance import inside
from dit_moe.diffusion.integrate import build_objective
from dit_moe.diffusion.objective import Network
from dit_moe.models.parameters import Parameters
from dit_moe.models.prediction import Prediction
from dit_moe.sampling import guides
from dit_moe.sampling.sampler import round_up


class Visit(NamedTuple):
    """What the layers decided about n inputs, as NumPy arrays."""

    seen: Decisions
    image: np.ndarray
    """[n] number of the image; -1 with the null label."""
    time: np.ndarray
    """[n] number of its time: of training data the part of the time range, of trajectories the
    step."""


def part_of_range(t: float | np.ndarray, bins: int) -> np.ndarray:
    """The part (b / B, (b + 1) / B] of the time range in which t lies; 0 belongs to the first."""
    return np.clip(np.ceil(np.asarray(t) * bins - 1e-6).astype(int) - 1, 0, bins - 1)


def training_visits(
    config: Config,
    parameters: Parameters,
    source: Source,
    label_N: np.ndarray,
    null_images: int,
    settings: Settings,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[Visit]:
    """Every image noised to one random time in each part of the range.

    Args:
      label_N: classes of the images to take from the source, which are drawn at random.
      null_images: how many more to show with the null label.
      settings: of the analysis.
      batch_size: inputs at a time.
      mesh: the devices, over which a batch is spread and on which the parameters are.
    """
    rng = np.random.default_rng([settings.seed, 0])
    objective, bins = build_objective(config.objective), settings.time_bins
    # Images without a label show the same classes.
    shown_N = np.concatenate([label_N, np.resize(label_N, null_images)])
    x_NxHxWxC = _draw(source, shown_N, config.data.flip, rng)
    y_N = np.concatenate([label_N, np.full(null_images, config.model.null_label, np.int32)])
    image_V = np.repeat(np.arange(len(shown_N)), bins)
    bin_V = np.tile(np.arange(bins), len(shown_N))
    t_V = ((bin_V + rng.random(len(bin_V))) / bins).astype(np.float32)

    @jax.jit
    def look(parameters: Parameters, x, t_N, y_N, number_N) -> Decisions:
        noise = _noise(settings.seed, number_N, x.shape[1:])
        network, seen = _recorder(config.model, parameters)
        network(*objective.noised(x, t_N, noise), y_N)
        return seen[0]

    size = round_up(min(batch_size, len(image_V)), mesh.size)
    with tqdm(total=len(image_V), unit="input", desc="training inputs", leave=False) as bar:
        for first in range(0, len(image_V), size):
            number_N = np.arange(first, first + size) % len(image_V)
            image_N = image_V[number_N]
            batch = (x_NxHxWxC[image_N], t_V[number_N], y_N[image_N], number_N)
            seen = hosts.fetch(look(parameters, *jax.device_put(batch, batch_sharding(mesh))))
            n = min(size, len(image_V) - first)  # the last batch is filled up
            image_N = np.where(image_N < len(label_N), image_N, -1)
            yield Visit(_first_images(seen, n), image_N[:n], bin_V[number_N[:n]])
            bar.update(n)


def sampling_visits(
    config: Config,
    parameters: Parameters,
    label_N: np.ndarray,
    settings: Settings,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[Visit]:
    """The states that images pass on the way from noise: Euler's, or DDIM's under DDPM.

    Where the network is guided by itself without a class, every state is visited twice, with its
    label and with the null label. Another guide is not looked at.
    """
    model, objective = config.model, build_objective(config.objective)
    times, guidance = objective.times(settings.steps), settings.guidance
    # Which steps it guides is known beforehand; the others have no null labels.
    is_guided = (inside(guidance, jnp.asarray(times[:-1])) & (guidance.scale != 1)).tolist()
    guidance = guidance.updated(interval=(0.0, 1.0))
    build_weak = guides.build_weak_network(config, guidance)

    @jax.jit
    def start(number_N: jax.Array) -> jax.Array:
        return _noise(settings.seed, number_N, model.image_shape) / unit_variance(times[0])

    @functools.partial(jax.jit, static_argnames="guided")
    def visit(
        parameters: Parameters, z, t, t_next, y_N, guided: bool
    ) -> tuple[jax.Array, Decisions]:
        network, seen = _recorder(model, parameters)
        denoiser = objective.denoiser(network)
        if guided:
            weak = build_weak and build_weak(parameters)
            denoiser = guides.guided(denoiser, weak, model.null_label, guidance)
        return euler_step(denoiser, z, t, t_next, y_N), seen[0]

    size = round_up(min(batch_size, len(label_N)), mesh.size)
    total = -(-len(label_N) // size) * settings.steps
    with tqdm(total=total, unit="step", desc="sampling", leave=False) as bar:
        for first in range(0, len(label_N), size):
            number_N = np.arange(first, first + size)
            y_N = label_N[number_N % len(label_N)]
            number_N, y_N = jax.device_put((number_N, y_N), batch_sharding(mesh))
            z, n = start(number_N), min(size, len(label_N) - first)
            image_N = np.arange(first, first + n)
            for step, guided in enumerate(is_guided):
                z, seen = visit(parameters, z, times[step], times[step + 1], y_N, guided)
                seen = hosts.fetch(seen)
                time_N = np.full(n, step)
                yield Visit(_first_images(seen, n), image_N, time_N)
                if guided and build_weak is None:
                    null = jax.tree.map(lambda array: array[:, size:], seen)
                    yield Visit(_first_images(null, n), np.full(n, -1), time_N)
                bar.update()


def euler_step(
    denoiser: Denoiser, z: jax.Array, t: jax.Array, t_next: jax.Array, y_N: jax.Array
) -> jax.Array:
    """One step of Euler's method, which is DDIM's without noise."""
    return z + (t_next - t) * denoiser(z, t, y_N).velocity


def sampling_bins(objective: ObjectiveConfig, settings: Settings) -> np.ndarray:
    """The part of the time range in which the network is asked at each step, from noise on."""
    places = build_objective(objective).places(settings.steps)
    return part_of_range(places, settings.time_bins)


def _recorder(model: ModelConfig, parameters: Parameters) -> tuple[Network, list[Decisions]]:
    """The network, and a list to which every call of it adds its decisions."""
    predict, seen = watched(model, parameters), []
    most = most_experts(model)

    def network(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        prediction = predict(x, t_N, y_N)
        tokens = (x.shape[1] // model.patch_size) ** 2
        seen.append(decisions(prediction.routing, most, tokens))
        return prediction

    return network, seen


def _noise(seed: int, number_N: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [N, *shape] float32 of the inputs with these numbers."""
    key = jax.random.key(seed)
    key_N = jax.vmap(lambda i: jax.random.fold_in(key, i))(number_N)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(key_N)


def _draw(source: Source, label_N: np.ndarray, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """A random example of each class, none twice before all have been: float32 [N, H, W, C]."""
    rows_N = np.zeros(len(label_N), int)
    for label in np.unique(label_N):
        of_class = np.flatnonzero(label_N == label)
        rows_N[of_class] = np.resize(
            rng.permutation(np.flatnonzero(source.label == label)), len(of_class)
        )
    drawn = [
        source.draw(source[int(row)], bool(flip and rng.random() < 0.5), rng) for row in rows_N
    ]
    return np.stack(drawn).astype(np.float32)


def _first_images(seen: Decisions, n: int) -> Decisions:
    return jax.tree.map(lambda array: array[:, :n], seen)
