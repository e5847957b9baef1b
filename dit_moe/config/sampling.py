"""Solvers and time grids, and how a run samples."""

from typing import Any

from pydantic.dataclasses import dataclass

from dit_moe.config.guidance import GUIDES_OF_RUNS, GuidanceConfig
from dit_moe.config.objective import ObjectiveConfig
from dit_moe.config.rules import RULES, require

SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {"time_grid": "uniform"},
    "heun": {"time_grid": "uniform"},
    "midpoint": {"time_grid": "uniform"},
    "rk4": {"time_grid": "uniform"},
    "dopri5": {"tolerance": 1e-3},
    "ddim": {"time_grid": "uniform", "eta": 0.0, "repeats": None},
    "euler_maruyama": {"time_grid": "uniform"},
    "ancestral": {},
    "dpmpp_2m": {"time_grid": "uniform"},
    "dpmpp_3m": {"time_grid": "uniform"},
    "unipc": {"time_grid": "uniform"},
}
"""What can sample a model, each with its options and their defaults (docs/sampling.md).

`ancestral` is for DDPM alone, all others are for both objectives."""

TIME_GRIDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "quadratic": {},
    "karras": {},
    "shifted": {"shift": 3.0},
}
"""How the steps of a solver may lie in time, with their options."""

MAX_STEPS = 50_000
"""Beyond, an image takes hours, and float32 times come close to each other."""

MAX_REPEATS = 1_000

SOLVER_OPTIONS = ("time_grid", "eta", "repeats", "tolerance", "shift")
"""All of both."""


@dataclass(frozen=True, config=RULES)
class SolverConfig:
    """How a sample is integrated from noise to data. Fields that hold None have the solver's
    default; an option that the solver does not have is an error."""

    solver: str = "auto"
    """One of `SOLVERS`. `auto`: euler for rectified flow, ancestral for DDPM."""
    steps: int = 250
    """For dopri5 the largest number of steps that an image may try."""
    time_grid: str | None = None
    """One of `TIME_GRIDS`."""
    eta: float | None = None
    """The noise that ddim adds: 0 none, 1 as much as DDPM's chain."""
    repeats: int | None = None
    """How often ddim does each step: noised again in between, which gives steering more turns. None
    is once."""
    tolerance: float | None = None
    """The error that dopri5 allows a step, relative where values are above 1."""
    shift: float | None = None
    """s of the shifted time grid, in place of the objective's: t -> s t / (1 + (s - 1) t)."""

    def resolve(self, objective: ObjectiveConfig) -> "SolverConfig":
        """The same with nothing left open; options that the solver does not have are None.

        Raises:
          ConfigError: naming the field, its value and what is allowed.
        """
        chain = objective.sampled_timesteps
        solver = self._chosen(objective)
        allowed = [name for name in SOLVERS if chain is not None or name != "ancestral"]
        require(
            solver in allowed,
            f"solver is {solver!r} with objective {objective.name!r}; "
            f"allowed: {', '.join(allowed)}",
        )
        most = MAX_STEPS if chain is None else chain
        require(1 <= self.steps <= most, f"steps is {self.steps}; allowed: 1 to {most}")
        require(
            self.time_grid in (None, *TIME_GRIDS),
            f"time_grid is {self.time_grid!r}; allowed: {', '.join(TIME_GRIDS)}",
        )
        options = _solver_options(solver, self.time_grid)
        chosen = {"solver": solver, "time_grid": options.get("time_grid")}
        for kind, table in (("solver", SOLVERS), ("time_grid", TIME_GRIDS)):
            for name in SOLVER_OPTIONS:
                value = getattr(self, name)
                having = [key for key, entry in table.items() if name in entry]
                if value is None or not having:
                    continue
                require(
                    name in options,
                    f"{name} is {value!r} with {kind} {chosen[kind]!r}; "
                    f"allowed: only with {kind} {', '.join(having)}",
                )
                options[name] = value
        eta, tolerance, shift = (options.get(name) for name in ("eta", "tolerance", "shift"))
        require(eta is None or 0 <= eta <= 1, f"eta is {eta}; allowed: 0 to 1")
        require(
            tolerance is None or 1e-6 <= tolerance < 1,
            f"tolerance is {tolerance}; allowed: 1e-6 (float32 has little more) to below 1",
        )
        repeats = options.get("repeats")
        require(
            repeats is None or 1 <= repeats <= MAX_REPEATS,
            f"repeats is {repeats}; allowed: 1 to {MAX_REPEATS}",
        )
        require(
            shift is None or 1e-3 <= shift <= 1e3,
            f"shift is {shift}; allowed: 0.001 to 1000 (1 is no shift; beyond, times coincide)",
        )
        return SolverConfig(solver, self.steps, **options)

    def updated(self, objective: ObjectiveConfig, **given: Any) -> "SolverConfig":
        """With fields that are given and not None, resolved.

        Options of the old solver or time grid that the new one does not have are left out.
        """
        given = {name: value for name, value in given.items() if value is not None}
        fields = {name: getattr(self, name) for name in SolverConfig.__dataclass_fields__} | given
        known = _solver_options(SolverConfig(**fields)._chosen(objective), fields["time_grid"])
        kept = {"solver", "steps", *known, *given}
        fields = {name: value for name, value in fields.items() if name in kept}
        return SolverConfig(**fields).resolve(objective)

    def option(self, name: str) -> float:
        """A number that the solver has as an option; of a resolved config."""
        value = getattr(self, name)
        assert value is not None, name
        return value

    def _chosen(self, objective: ObjectiveConfig) -> str:
        auto = "euler" if objective.sampled_timesteps is None else "ancestral"
        return auto if self.solver == "auto" else self.solver


def _solver_options(solver: str, time_grid: str | None) -> dict[str, Any]:
    """The options that a solver and its time grid have, with their defaults."""
    options = dict(SOLVERS.get(solver, {}))
    if "time_grid" in options:
        options["time_grid"] = time_grid or options["time_grid"]
        options |= TIME_GRIDS.get(options["time_grid"], {})
    return options


@dataclass(frozen=True, config=RULES)
class SampleConfig(SolverConfig):
    """How this model is best sampled: the defaults of `sample.py` and of the grids in training."""

    guidance: GuidanceConfig = GuidanceConfig()

    def __post_init__(self) -> None:
        require(
            self.guidance.guide in GUIDES_OF_RUNS,
            f"guidance.guide is {self.guidance.guide!r}; allowed: {', '.join(GUIDES_OF_RUNS)} "
            "(the command that samples names another network: --guidance auto --guide RUN)",
        )
