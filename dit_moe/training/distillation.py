"""Learning from a teacher (`train.distill`): its part of the loss, and when it ends."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from dit_moe.config import Config, ModelConfig
from dit_moe.devices import hosts
from dit_moe.diffusion.objective import Network
from dit_moe.models.parameters import Parameters
from dit_moe.models.prediction import Prediction
from dit_moe.runs.teacher import Teacher, check_same_teacher, load_teacher, taught_steps

NAME = "distillation"
"""Of the loss among a prediction's, and so of its column in the metrics."""


def with_teacher(network: Network, teacher: Network, coefficient: float) -> Network:
    """A network with the distance from its teacher's prediction as one more auxiliary loss.

    The distance is the mean square over pixels, channels and images of what both predict of the
    same noisy input, time and label; learnt variances are left out. The teacher has no gradient.
    """

    def predict(x: jax.Array, t_N: jax.Array, y_N: jax.Array) -> Prediction:
        prediction, channels = network(x, t_N, y_N), x.shape[-1]
        target = jax.lax.stop_gradient(teacher(x, t_N, y_N).value[..., :channels])
        distance = jnp.square(prediction.value[..., :channels] - target).mean()
        losses = {**prediction.losses, NAME: coefficient * distance}
        return dataclasses.replace(prediction, losses=losses)

    return predict


def find_teaching(
    config: Config, model: ModelConfig | None, mesh: Mesh, workdir: epath.Path, step: int | None
) -> tuple[Teacher | None, Parameters]:
    """The teacher of the steps to come, with its parameters; none and nothing without one.

    Args:
      config: of the run.
      model: of the teacher; None where the run has none.
      mesh: of the run.
      workdir: the run folder.
      step: from which the run goes on; None for a new one.

    Raises:
      ConfigError: it cannot be read, or is another than the run had.
    """
    until = taught_steps(config.train)
    if model is None or (step or 0) >= until:
        return None, {}
    teacher, parameters = load_teacher(config, model, mesh)
    if step is not None:
        check_same_teacher(workdir, teacher)
    hosts.say(f"Learns from {teacher.teacher} at step {teacher.step:,}, up to step {until:,}.")
    return teacher, parameters


class StagedStep:
    """The step of a run that has a teacher up to some step, and the plain one from then on.

    Two programs: what follows the last step with the teacher is what a run without one does.

    Args:
      taught: from state, batch and the teacher's parameters to state and metrics.
      plain: the same without those.
      teacher: its parameters, which are let go with the last step that has it.
      left: how many steps to come have it.
    """

    def __init__(
        self,
        taught: Callable[..., tuple[Any, Any]],
        plain: Callable[..., tuple[Any, Any]],
        teacher: Parameters,
        left: int,
    ):
        self._taught, self._plain = taught, plain
        self._teacher: Parameters = teacher
        self._left = left

    def __call__(self, state: Any, *batch: jax.Array) -> tuple[Any, Any]:
        """Does one step; without a teacher, the metrics have a NaN in its place."""
        if not self._left:
            state, metrics = self._plain(state, *batch)
            return state, {**metrics, NAME: np.float32(np.nan)}
        self._left -= 1
        done = self._taught(state, *batch, self._teacher)
        if not self._left:
            self._teacher = {}
        return done
