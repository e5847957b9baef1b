"""What the command of this package prints, and how it chooses a mesh."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from dit_moe.config import Config, ConfigError, MeshConfig, TrainConfig, divisors
from dit_moe.config.files import load_file, override
from dit_moe.config.presets import preset
from dit_moe.config.rules import MAX_SIZE
from dit_moe.devices.accelerators import DEVICES, Device
from dit_moe.devices.mesh import fill_sizes, in_words
from dit_moe.plan.estimate import Estimate, estimate, span
from dit_moe.plan.rounds import Costs
from dit_moe.storage.records import read_record

TABLE_PRESETS = (
    "DiT-XL/2",
    "ProMoE-XL/2",
    "DiT-MoE-S/2-8E2A",
    "DiT-MoE-B/2-8E2A",
    "DiT-MoE-L/2-8E2A",
    "DiT-MoE-XL/2-8E2A",
    "DiT-MoE-XL/2-16E2A",
    "DiT-MoE-G/2-16E2A",
)
TABLE_DEVICES = (
    ("h100", 1),
    ("a100-80", 8),
    ("h100", 8),
    ("h100", 32),
    ("v5e", 64),
    ("v5p", 64),
    ("v5p", 256),
)


def plan(
    preset_name: str | None,
    config_spec: str | None,
    overrides: Sequence[str],
    *,
    device: str,
    num_devices: int,
    mesh: Mapping[str, int],
    costs: Path | None = None,
) -> str:
    """The sentence about one experiment, from a preset or a config file.

    `costs` is a file of `rounds.Costs` that were measured (`python -m benchmarks.schedule`).

    Raises:
      ConfigError: something asked for does not exist or does not divide.
    """
    if device not in DEVICES:
        raise ConfigError(f"device is {device!r}; allowed: {', '.join(DEVICES)}")
    if not 1 <= num_devices <= MAX_SIZE:
        raise ConfigError(f"devices is {num_devices}; allowed: 1 or more, up to {MAX_SIZE}")
    measured = None if costs is None else read_record(costs, Costs)
    config = chosen_config(preset_name, config_spec, overrides)
    if not mesh and config.mesh != MeshConfig():
        mesh = dataclasses.asdict(config.mesh)
    if mesh:
        sizes = _sizes(mesh, num_devices)
        return estimate(config, sizes, DEVICES[device], measured).sentence()
    return choose(config, DEVICES[device], num_devices, measured).sentence()


def chosen_config(
    preset_name: str | None, config_spec: str | None, overrides: Sequence[str]
) -> Config:
    """The experiment of a preset or a config file.

    Raises:
      ConfigError: there is none, or an override is wrong.
    """
    if config_spec is not None:
        return load_file(config_spec, overrides)
    return override(preset(preset_name or ""), overrides)


def _sizes(mesh: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Sizes whose product is the number of devices; -1, and data if not given, takes the rest."""
    sizes = fill_sizes({"data": -1, **mesh}, num_devices)
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != num_devices:
        raise ConfigError(
            f"the mesh is {in_words(mesh)} on {num_devices} devices; allowed: positive sizes whose "
            f"product is {num_devices}, or divides it where data is not given"
        )
    return sizes


def choose(
    config: Config, device: Device, num_devices: int, costs: Costs | None = None
) -> Estimate:
    """The plainest mesh that fits: fewest parts of a batch, then the smallest fsdp x expert.

    Of the ways to split that product, the one with the shortest predicted step. If nothing fits,
    the estimate that needs the least memory.

    Raises:
      ConfigError: no mesh of so many devices divides the model and the batch.
    """
    found, problem = [], None
    for shape, accumulation in _candidates(config.train, num_devices):
        train = dataclasses.replace(config.train, accumulation=accumulation)
        try:
            found.append(estimate(dataclasses.replace(config, train=train), shape, device, costs))
        except ConfigError as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    fitting = [e for e in found if e.fits]
    if not fitting:
        return min(found, key=lambda e: e.bytes_per_device)
    return min(fitting, key=_preference)


def _preference(e: Estimate) -> tuple[int, int, float]:
    assert e.seconds is not None
    return e.config.train.accumulation, e.mesh["fsdp"] * e.mesh["expert"], e.seconds[1]


def _candidates(train: TrainConfig, num_devices: int) -> Iterator[tuple[dict[str, int], int]]:
    batch_size, parts = train.batch_size, [train.accumulation]
    if batch_size % num_devices == 0:
        parts = [p for p in divisors(batch_size // num_devices) if p >= parts[0]] or parts
    for data in reversed(divisors(num_devices)):
        for fsdp in divisors(num_devices // data):
            shape = {"data": data, "fsdp": fsdp, "expert": num_devices // data // fsdp}
            for accumulation in parts:
                yield shape, accumulation


def table(overrides: Sequence[str]) -> str:
    """Presets by devices in Markdown: mesh, parts, memory, step.

    Raises:
      ConfigError: an override is wrong.
    """
    configs = [override(preset(name), overrides) for name in TABLE_PRESETS]
    heads = [f"{count} x {DEVICES[name].title}" for name, count in TABLE_DEVICES]
    lines = [f"| | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    with tqdm(total=len(configs) * len(heads), unit="estimate", leave=False) as bar:
        for config in configs:
            cells = []
            for name, count in TABLE_DEVICES:
                cells.append(_cell(config, DEVICES[name], count))
                bar.update()
            lines.append(f"| {config.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(config: Config, device: Device, num_devices: int) -> str:
    e = choose(config, device, num_devices)
    if not e.fits or e.seconds is None:
        return "does not fit"
    mesh = " x ".join(str(e.mesh[axis]) for axis in ("data", "fsdp", "expert"))
    parts = e.config.train.accumulation
    return (
        f"{mesh}{f', {parts} parts' if parts > 1 else ''}: {e.bytes_per_device / 1e9:.2g} GB, "
        f"{span(*e.seconds)} s"
    )
