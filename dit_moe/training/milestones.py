"""What a run draws and keeps beside its checkpoints: grids of samples, snapshots of EMA tracks."""

from etils import epath
from jax.sharding import Mesh
from PIL.Image import Image

from dit_moe.autoencoder.latent_space import LatentSpace
from dit_moe.config import Config
from dit_moe.data.classes import model_classes
from dit_moe.devices import hosts
from dit_moe.runs.ema_snapshots import drop_snapshots_after, save_snapshot, snapshot_steps
from dit_moe.runs.state import TrainState
from dit_moe.sampling.request import Request
from dit_moe.training.grids import GridSampler


class Milestones:
    """Grids and snapshots, each at the multiples of its own number of steps and at the end.

    Args:
      config: of the run.
      request: what the grids show; None: there are none.
      space: what its latents are; None for pictures.
      mesh: of its devices.
      workdir: the run folder.
    """

    def __init__(
        self,
        config: Config,
        request: Request | None,
        space: LatentSpace | None,
        mesh: Mesh,
        workdir: epath.Path,
    ):
        self._config, self._settings = config, config.train
        self._workdir = workdir
        self._grids = GridSampler(config, request, space, mesh) if request is not None else None

    def due(self, number: int) -> bool:
        """Whether there is anything to write after step `number`."""
        return self._grid_due(number) or self._snapshot_due(number)

    def write(self, number: int, state: TrainState) -> Image | None:
        """Writes what is due after step `number`, of which the state is; returns a grid if the
        lead process drew one."""
        if self._snapshot_due(number):
            save_snapshot(self._workdir, number, state.tracks)
        return self._draw(number, state) if self._grid_due(number) else None

    def resume(self, number: int, state: TrainState) -> Image | None:
        """Removes snapshots of later steps, which will be done again, and makes up for what was
        due at this one, as `write`: the run may have been killed after its checkpoint."""
        if self._settings.post_hoc_ema:
            drop_snapshots_after(self._workdir, number)
        if self._snapshot_due(number) and number not in snapshot_steps(self._workdir):
            save_snapshot(self._workdir, number, state.tracks)
        if self._grid_due(number) and hosts.any_process(not self._grid(number).exists()):
            return self._draw(number, state)
        return None

    def _grid_due(self, number: int) -> bool:
        return self._grids is not None and self._due(number, self._settings.sample_every)

    def _snapshot_due(self, number: int) -> bool:
        settings = self._settings
        return bool(settings.post_hoc_ema) and self._due(number, settings.post_hoc_ema_every)

    def _due(self, number: int, every: int) -> bool:
        return number > 0 and (number % every == 0 or number == self._settings.steps)

    def _grid(self, number: int) -> epath.Path:
        return self._workdir / "samples" / f"step_{number:08d}.png"

    def _draw(self, number: int, state: TrainState) -> Image | None:
        assert self._grids is not None
        with hosts.surviving("samples"):
            classes = model_classes(self._config.data, self._config.model, self._workdir)
            return self._grids.draw(state, self._grid(number), classes)
