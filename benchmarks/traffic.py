"""Prints the bytes that a device sends in a training step, by closed form, as a Markdown table."""

import argparse

from dit_moe.config import TrainConfig
from dit_moe.config.files import override
from dit_moe.config.presets import preset
from dit_moe.plan.memory import abstract_mesh
from dit_moe.plan.traffic import flat, hierarchical, journeys, row_bytes, traffic

HEAD = """\
| | devices | mesh | weights, GB | gradients, GB | tokens, GB | to slices, GB | \
between hosts, GB | messages: flat, in two steps | sent inside: flat, in two steps, GB |
|---|---|---|---|---|---|---|---|---|---|"""


def row(
    name: str,
    devices: int,
    expert: int,
    tensor: int,
    images: int,
    domain: int,
    overrides: list[str],
) -> str:
    """One model on one mesh, with so many images a device; of its neighbours, those along tensor
    are the nearest."""
    config = override(preset(name), overrides)
    train = TrainConfig(batch_size=images * devices)
    sizes = {"data": devices // expert // tensor, "expert": expert, "tensor": tensor}
    mesh, domain = abstract_mesh(sizes), domain // tensor
    found = traffic(config.model, train, mesh)
    size = journeys(config.model) * row_bytes(config.model, train, mesh)
    one, two = flat(size, expert, domain), hierarchical(size, expert, domain)
    shape = " x ".join(str(size) for size in mesh.shape.values())
    return (
        f"| {name} | {devices} | {shape} | {found.gathered / 1e9:.3g} | "
        f"{found.reduced / 1e9:.3g} | {found.tokens / 1e9:.3g} | "
        f"{found.slices / 1e9:.3g} | {one.between / 1e9:.3g} | "
        f"{one.messages}, {two.messages} | {one.inside / 1e9:.3g}, {two.inside / 1e9:.3g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["DiT-MoE-XL/2-8E2A", "DiT-MoE-G/2-16E2A"])
    parser.add_argument("--devices", nargs="+", type=int, default=[8, 64, 256])
    parser.add_argument("--tensor", nargs="+", type=int, default=[1, 2], help="(default 1 2)")
    parser.add_argument("--images", type=int, default=32, help="of a device (default 32)")
    parser.add_argument("--domain", type=int, default=8, help="devices of a host (default 8)")
    args, overrides = parser.parse_known_args()
    print(HEAD)
    for name in args.presets:
        (experts,) = {moe.num_experts for moe in preset(name).model.mixtures}
        for devices in args.devices:
            for tensor in args.tensor:
                here, most = args.domain // tensor, min(experts, devices // tensor)
                for expert in sorted({min(here, most), most}):
                    print(row(name, devices, expert, tensor, args.images, args.domain, overrides))


if __name__ == "__main__":
    main()
