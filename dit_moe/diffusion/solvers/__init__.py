"""Solvers: from noise to samples along z = (1 - t) x_0 + t noise."""

from dit_moe.config import SolverConfig
from dit_moe.diffusion.solvers.adaptive import dopri5
from dit_moe.diffusion.solvers.exponential import multistep
from dit_moe.diffusion.solvers.runge_kutta import HEUN, MIDPOINT, RK4, runge_kutta
from dit_moe.diffusion.solvers.steps import Solver, step_noise
from dit_moe.diffusion.solvers.stochastic import ancestral, ddim, euler, euler_maruyama

__all__ = ["ancestral", "build_solver", "euler", "step_noise"]


def build_solver(config: SolverConfig, lowest: float) -> Solver:
    """The solver that the config describes, resolved for its objective; not `ancestral`.

    Args:
      config: as of `SolverConfig.resolve`.
      lowest: the least time that the network was trained for.
    """
    match config.solver:
        case "euler":
            return euler
        case "heun":
            return runge_kutta(HEUN, lowest)
        case "midpoint":
            return runge_kutta(MIDPOINT, lowest)
        case "rk4":
            return runge_kutta(RK4, lowest)
        case "dopri5":
            assert config.tolerance is not None
            return dopri5(config.tolerance, lowest)
        case "ddim":
            assert config.eta is not None
            return ddim(config.eta)
        case "euler_maruyama":
            return euler_maruyama
        case "dpmpp_2m":
            return multistep(2, corrector=False)
        case "dpmpp_3m":
            return multistep(3, corrector=False)
        case "unipc":
            return multistep(2, corrector=True)
    raise AssertionError(config.solver)
