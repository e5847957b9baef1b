"""Grids of samples during training."""

import dataclasses
from collections.abc import Sequence

import jax
from etils import epath
from jax.sharding import Mesh
from PIL.Image import Image

from dit_moe.autoencoder.latent_space import LatentSpace
from dit_moe.autoencoder.sources import is_local
from dit_moe.config import Config, ConfigError, TrainConfig
from dit_moe.data.classes import ModelClasses, evenly_spaced
from dit_moe.devices import hosts
from dit_moe.devices.mesh import batch_sharding
from dit_moe.models.parameters import Parameters
from dit_moe.runs.ema_start import start_warning
from dit_moe.runs.state import TrainState, network_average
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.rendering import build_renderer
from dit_moe.sampling.request import Request, build_request
from dit_moe.storage import images
from dit_moe.storage.colours import MODES
from dit_moe.storage.files import atomic

GRID_CLASSES, GRID_COLUMNS = 10, 8


@jax.jit
def _onto_devices(parameters: Parameters) -> Parameters:
    """From the memory of their hosts."""
    return jax.device_put(parameters, jax.memory.Space.Device)


def average_on_devices(state: TrainState, train: TrainConfig) -> Parameters:
    """The averaged parameters of the network of a state, where the sampler can use them."""
    if train.averages_on_host:
        state = dataclasses.replace(state, ema=_onto_devices(state.ema))
    return network_average(state, train)


def grid_request(config: Config, learnt: Sequence[int]) -> Request:
    """What the grids show: some of the classes that the training data have, as the config samples.

    Raises:
      ConfigError: the config's way to sample does not go with its way to train.
    """
    classes = evenly_spaced(learnt, GRID_CLASSES)
    try:
        return build_request(
            config, num_samples=len(classes) * GRID_COLUMNS, classes=classes, seed=config.seed
        )
    except ConfigError as error:
        raise ConfigError(f"config.sample.{error}") from None


class GridSampler:
    """Draws the same few images from the moving average each time.

    Latents are decoded if their autoencoder is at hand; otherwise three channels are drawn.
    """

    def __init__(self, config: Config, request: Request, space: LatentSpace | None, mesh: Mesh):
        pictures = space is None and config.model.channels in MODES
        self.render = images.to_uint8 if pictures else images.false_colours
        if space is not None and is_local(space.autoencoder.source):
            self.render = build_renderer(space, None, mesh).render
        elif space is not None:
            hosts.say(
                f"Sample grids show latents: autoencoder {space.autoencoder.source!r} is not here."
            )
        self.config = config.train
        self.sharding = batch_sharding(mesh)
        self.request = request
        self.sampler = sampling.build_sampler(config, request)

    def draw(self, state: TrainState, path: epath.Path, classes: ModelClasses) -> Image | None:
        """Writes a grid of samples from the state to `path`, with what the classes are called.

        Returns:
          The grid; None in processes other than the lead.

        Raises:
          OSError: it cannot be written.
          NotFiniteError: the samples hold no pictures.
        """
        batch_size = sampling.round_up(self.request.num_samples, self.sharding.num_devices)
        average = average_on_devices(state, self.config)
        (x_NxHxWxC,) = sampling.generate(
            self.sampler, average, self.request, batch_size, sharding=self.sharding
        )
        pictures = self.render(x_NxHxWxC)
        if not hosts.is_lead():
            return None
        if warning := start_warning(self.config, int(state.step)):
            hosts.say(f"{path.name}: {warning}")
        grid = images.grid(pictures, classes.titles(self.request.labels()))
        with atomic(path) as temporary, temporary.open("wb") as file:
            grid.save(file, "PNG")
        return grid
