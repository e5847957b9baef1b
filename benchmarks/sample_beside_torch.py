"""Times sampling of published small models beside the same loop in plain PyTorch.

Both run the same network from the same parameters: Euler's method under rectified flow, each step
one evaluation of the images with and without their class, as one batch. Before timing, the two
networks are compared. They are timed in turns, and the fastest repeat counts.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Timed, fastest, machine
from benchmarks.train_step import build_config, peer, random_parameters
from dit_moe.config import Config
from dit_moe.config.own_process import hold_memory
from dit_moe.models.parameters import functional
from dit_moe.sampling.request import build_request
from dit_moe.sampling.sampler import build_sampler

MODELS = ("DiT-S/2", "DiT-MoE-S/2-8E2A")
SCALE = 1.5


def contestants(config: Config, images: int, steps: int) -> dict[str, Timed]:
    """The two loops.

    Raises:
      AssertionError: the two networks disagree.
    """
    import torch

    model = config.model
    parameters = random_parameters(model)
    net = peer(config, parameters).eval()
    request = build_request(
        config,
        num_samples=images,
        integration={"solver": "euler", "steps": steps},
        guidance={"scale": SCALE, "channels": None},
    )
    sampler = build_sampler(config, request)
    key_N = jax.random.split(jax.random.key(1), images)
    y_N = np.arange(images, dtype=np.int32)
    null_N = np.full_like(y_N, model.null_label)
    shape = (images, *model.image_shape)
    z = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    t_N = np.full(images, 500.0, np.float32)
    ours = jax.jit(functional(model)(parameters))(z, t_N, y_N).value[..., : model.channels]
    noise, label = torch.from_numpy(z).permute(0, 3, 1, 2), torch.from_numpy(y_N).long()
    labels = torch.cat([label, torch.from_numpy(null_N).long()])

    def draw() -> torch.Tensor:
        x = noise
        for i in range(steps):
            t = torch.full((2 * images,), config.objective.time_scale * (1 - i / steps))
            v, v_null = net(torch.cat([x, x]), t, labels)[:, : model.channels].chunk(2)
            x = x - (v_null + SCALE * (v - v_null)) / steps
        return x

    def run_theirs() -> torch.Tensor:
        with torch.inference_mode():
            return draw()

    with torch.inference_mode():
        theirs = net(noise, torch.from_numpy(t_N), label)[:, : model.channels]
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).numpy(), ours, rtol=1e-3, atol=1e-3)
    return {
        "ours": lambda: jax.block_until_ready(sampler(parameters, key_N, jnp.asarray(y_N))),
        "torch": run_theirs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--images", type=int, default=4, help="of a batch, default 4")
    parser.add_argument("--steps", type=int, default=4, help="default 4")
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    args = parser.parse_args()
    hold_memory()
    print(f"{args.images} images, {args.steps} steps of Euler, guided; float32; {machine()}")
    print("| model | images/s | torch/ |\n|---|---|---|", flush=True)
    for name in args.models:
        seconds = fastest(
            contestants(build_config(name, args.images, "float32"), args.images, args.steps),
            args.repeats,
        )
        speed, ratio = args.images / seconds["ours"], seconds["torch"] / seconds["ours"]
        print(f"| {name} | {speed:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
