"""A run made ready to be asked again and again: from what is asked for to pictures."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dit_moe.analysis.trajectory import Recorder
from dit_moe.autoencoder.latent_space import read_latent_space
from dit_moe.config import Config, ConfigError, GuidanceConfig, MeshConfig, SolverConfig
from dit_moe.config.files import load_json
from dit_moe.data.classes import model_classes, read_classes
from dit_moe.devices.mesh import build_mesh
from dit_moe.diffusion.measurements import Mask
from dit_moe.models.parameters import Parameters
from dit_moe.play.starts import Starts
from dit_moe.runs.loading import load_run, locate
from dit_moe.sampling.evaluations import function_evaluations
from dit_moe.sampling.known_images import Hold
from dit_moe.sampling.rendering import run_renderer
from dit_moe.sampling.request import Request
from dit_moe.sampling.sampler import MAX_BATCH, build_sampler, fitting
from dit_moe.training.label_rows import LABEL_TABLE

_PROGRAMS = 32  # of other settings, that are kept compiled


@flax.struct.dataclass
class Known:
    """What inpainting keeps of a picture."""

    kept: jax.Array
    """[H, W, 1] bool."""
    picture: jax.Array
    """[H, W, C] float32 in [-1, 1]."""


class Drawn(NamedTuple):
    """Pictures, and who drew them."""

    pictures: np.ndarray
    """uint8 [N, H, W, C]."""
    first: np.ndarray | None
    """int16 [V, L, N, S], as of `Recorder.first`; None for a dense model and for dopri5, whose
    steps are each picture's own."""


class Drawer:
    """A run, its parameters on the first device, and the programs that were compiled for it.

    Args:
      workdir: a run folder, an exported folder or a name on the Hugging Face hub.
      ema: its parameters' moving average rather than its parameters.
      batch_size: the most pictures of one pass.
      autoencoder: what decodes a latent model's samples; None: the one that its training data
        were encoded with.
      checkpoint: of the run, as of `RunSampler`.

    Raises:
      ConfigError: the run or an argument cannot be used.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        ema: bool,
        batch_size: int,
        autoencoder: str | None = None,
        checkpoint: str = "newest",
    ):
        if not 1 <= batch_size <= MAX_BATCH:
            raise ConfigError(f"batch_size is {batch_size}; allowed: 1 to {MAX_BATCH}")
        folder = locate(workdir)
        self.name = Path(workdir).name or folder.resolve().name
        self.config = load_json(folder / "config.json")
        model = self.config.model
        self.labels = _labels(folder, self.config)
        """By what the class is called, those that the training data have."""
        self.paints = read_latent_space(folder) is None and model.channels in (1, 3)
        """Whether it draws opaque pixels, of which some can be known."""
        renderer = run_renderer(folder, model, autoencoder, build_mesh(MeshConfig()))
        if renderer is None:
            raise ConfigError(
                f"workdir is {str(workdir)!r}, whose samples of {model.channels} channels are no "
                "pictures; allowed: a model of 1 to 4 channels, or of latents with its autoencoder"
            )
        self._render, self._batch_size = renderer.render, batch_size
        run = load_run(folder, ema, checkpoint=checkpoint)
        self.step, self._parameters = run.step, run.parameters
        self._program = functools.lru_cache(_PROGRAMS)(self._build)

    @property
    def label_table(self) -> jax.Array:
        """The embeddings of the labels, [Y + 1, D] float32."""
        return self._parameters[LABEL_TABLE]

    def draw(
        self,
        request: Request,
        starts: Starts,
        known: Known | None = None,
        tell: Callable[[int], None] = lambda done: None,
    ) -> Drawn:
        """Draws pictures, one for each of the starts.

        A program is compiled once for a solver, a guidance and a number of pictures, which is
        rounded up to a power of two.

        Args:
          request: for as many pictures.
          starts: where they begin.
          known: what is kept of each picture.
          tell: is told how many are done, before each pass.

        Raises:
          ConfigError: the pictures are not finite, or a pass does not fit into the memory.
        """
        number, parts = request.num_samples, []
        size = min(self._batch_size, 2 ** (number - 1).bit_length())
        program = self._program(request.integration, request.guidance)
        for first in range(0, number, size):
            tell(first)
            here = np.arange(first, first + size) % number
            with fitting(size):
                part = program(self._parameters, starts.of(here), known)
                x_NxHxWxC, experts = jax.device_get(part)
            parts.append((self._render(x_NxHxWxC), experts))
        pictures = np.concatenate([picture for picture, _ in parts])[:number]
        if parts[0][1] is None:
            return Drawn(pictures, None)
        return Drawn(pictures, np.concatenate([e for _, e in parts], axis=2)[:, :, :number])

    def _build(self, integration: SolverConfig, guidance: GuidanceConfig) -> Callable:
        """The jitted function from parameters, starts and what is known to samples and experts."""
        config, model = self.config, self.config.model
        request = Request(1, (0,), integration, guidance, 0)
        alone = dataclasses.replace(request, guidance=GuidanceConfig())
        calls = function_evaluations(model, config.objective, alone) if model.mixtures else None

        @jax.jit
        def program(
            parameters: Parameters, starts: Starts, known: Known | None
        ) -> tuple[jax.Array, jax.Array | None]:
            label_N = starts.label
            if starts.row is not None:  # labels behind all others, and behind the null label
                table_YxD = parameters[LABEL_TABLE]
                label_N = len(table_YxD) + jnp.arange(len(label_N))
                table_YxD = jnp.concatenate([table_YxD, starts.row])
                parameters = {**parameters, LABEL_TABLE: table_YxD}
            recorder = calls and Recorder(model, calls, len(label_N))
            sampler = build_sampler(
                config,
                request,
                steering=known and Hold(Mask(known.kept), 1.0),
                bind=recorder.bind if recorder else None,
            )
            measured = None
            if known is not None:
                measured = jnp.where(known.kept, known.picture, 0)
                measured = jnp.broadcast_to(measured, (len(label_N), *measured.shape))
            x_NxHxWxC = sampler(
                parameters, starts.key, label_N, noise=starts.noise, measured=measured
            )
            return x_NxHxWxC, recorder.first() if recorder else None

        return program


def _labels(folder: Path, config: Config) -> dict[str, int]:
    """Labels by what they are called, those that the training data have."""
    known = read_classes(folder)
    labels = known.learnt() if known else tuple(range(config.model.num_classes))
    titles = model_classes(config.data, config.model, folder).titles(np.asarray(labels))
    if len(set(titles)) < len(labels):  # a class is called as another one's number
        titles = [str(label) for label in labels]
    return dict(zip(titles, labels, strict=True))
