"""Solvers: from noise to samples along z = (1 - t) x_0 + t noise."""

from collections.abc import Callable
from typing import Any

from dit_moe.config import SOLVERS, SolverConfig
from dit_moe.diffusion.solvers.adaptive import dopri5
from dit_moe.diffusion.solvers.exponential import multistep
from dit_moe.diffusion.solvers.runge_kutta import HEUN, MIDPOINT, RK4, runge_kutta
from dit_moe.diffusion.solvers.steps import Solver, step_noise
from dit_moe.diffusion.solvers.stochastic import ancestral, ddim, euler, euler_maruyama

__all__ = ["ancestral", "build_solver", "euler", "register_solver", "step_noise"]

Build = Callable[[SolverConfig, float], Solver]
"""From the resolved config and the least time that the network was trained for."""

_BUILD: dict[str, Build] = {
    "euler": lambda config, lowest: euler,
    "heun": lambda config, lowest: runge_kutta(HEUN, lowest),
    "midpoint": lambda config, lowest: runge_kutta(MIDPOINT, lowest),
    "rk4": lambda config, lowest: runge_kutta(RK4, lowest),
    "dopri5": lambda config, lowest: dopri5(config.option("tolerance"), lowest),
    "ddim": lambda config, lowest: ddim(config.option("eta"), config.repeats or 1),
    "euler_maruyama": lambda config, lowest: euler_maruyama,
    "dpmpp_2m": lambda config, lowest: multistep(2, corrector=False),
    "dpmpp_3m": lambda config, lowest: multistep(3, corrector=False),
    "unipc": lambda config, lowest: multistep(2, corrector=True),
}


def register_solver(name: str, build: Build, **options: Any) -> None:
    """Makes a solver known, for rectified flow and DDPM alike.

    Args:
      name: what a config or `--solver` calls it.
      build: makes it.
      options: those of `config.SOLVER_OPTIONS` that it has, with their defaults; one without
        `time_grid` gets the two ends of the time range and finds its own way.
    """
    SOLVERS[name] = options
    _BUILD[name] = build


def build_solver(config: SolverConfig, lowest: float) -> Solver:
    """The solver that the config describes, resolved for its objective; not `ancestral`.

    Args:
      config: as of `SolverConfig.resolve`.
      lowest: the least time that the network was trained for.
    """
    return _BUILD[config.solver](config, lowest)
