"""Weights & Biases, where it is asked for: it costs no training."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from PIL.Image import Image

from dit_moe.config import ConfigError
from dit_moe.devices import hosts
from dit_moe.storage.files import atomic
from dit_moe.storage.records import read_json


class WandbRun:
    """A run of W&B; it raises an OSError where W&B raises anything, like the other logs."""

    def __init__(self, run: Any, to_picture: Callable[[Image], Any]):
        self._run, self._to_picture = run, to_picture

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step.

        Raises:
          OSError: W&B does not take them.
        """
        with _as_os_error():
            self._run.log(dict(scalars), step=step)

    def show(self, step: int, grid: Image) -> None:
        """Records a grid of samples.

        Raises:
          OSError: W&B does not take it.
        """
        with _as_os_error():
            self._run.log({"samples": self._to_picture(grid)}, step=step)

    def finish(self) -> None:
        """Ends the run; that it cannot be ended is printed."""
        try:
            self._run.finish()
        except Exception as error:
            hosts.say(f"W&B could not end its run: {error}")


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OSError(f"W&B: {error}") from error


def start_wandb(workdir: epath.Path, project: str) -> WandbRun:
    """Begins or resumes the run of a workdir, which has its config.json already.

    Raises:
      ConfigError: wandb is not installed, or does not start.
      OSError: the run's identity cannot be kept in the workdir.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise _unusable(project, error) from error
        raise ConfigError(
            f"--wandb is {project!r}, but wandb is not installed: pip install wandb"
        ) from None
    except Exception as error:  # such as a protobuf that it was not built for
        raise _unusable(project, error) from error
    path = workdir / "wandb_id.txt"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
    try:
        run = wandb.init(
            project=project,
            id=path.read_text().strip(),
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=read_json(workdir / "config.json"),
        )
        return WandbRun(run, lambda grid: wandb.Image(grid))
    except Exception as error:
        raise _unusable(project, error) from error


def _unusable(project: str, error: Exception) -> ConfigError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(
        f"--wandb is {project!r}, but wandb does not start ({reason}); allowed: no --wandb, or "
        "wandb made to work first (`wandb login`, or WANDB_MODE=offline where there is no network)"
    )
