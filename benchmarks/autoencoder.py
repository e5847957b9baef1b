"""Times the autoencoder against diffusers in PyTorch on random weights of the published shape.

Both run on the same threads, in turns in the same process, and the fastest of their repeats counts,
so that a busy machine disturbs both alike. Needs torch and diffusers.
"""

import argparse
import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dit_moe.autoencoder.loading import load
from dit_moe.autoencoder.network import Autoencoder
from dit_moe.autoencoder.tiling import decode_tiled

COLUMNS = """\
columns
  ours            seconds per image
  /nchw           our time over that of diffusers as it is loaded (1 = equal, less is faster)
  /nhwc           our time over that of diffusers with channels_last
  error           largest difference from diffusers, over the largest value
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=256, help="pixels (default 256)")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1, 4], help="images at once (default 1 4)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a row (default 3)")
    args = parser.parse_args()
    if args.image_size % 8:
        parser.error(f"--image_size is {args.image_size}; allowed: a multiple of 8")
    return args


def build() -> tuple[Autoencoder, Any]:
    """The same random weights for both."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    peer = AutoencoderKL(**shape).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return load(folder).model, peer


def fastest(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each contestant's fastest repeat, all timed in turns after a first call."""
    for run in contestants.values():
        run()
    best = dict.fromkeys(contestants, math.inf)
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    args = parse()
    import diffusers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, peer = build()
    peer_nhwc = copy.deepcopy(peer).to(memory_format=torch.channels_last)
    encode = jax.jit(lambda model, x: model.encode(x).mean)
    decode = jax.jit(lambda model, z: model.decode(z))
    sliced = jax.jit(decode_tiled)

    def tensor(array: np.ndarray) -> "torch.Tensor":
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())

    print(
        f"{args.image_size} pixels, float32, {torch.get_num_threads()} threads; "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    print("                batch     ours   /nchw   /nhwc     error")
    rng = np.random.default_rng(0)
    size = args.image_size
    for batch in args.batch_sizes:
        x = rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
        latent = 5 * rng.standard_normal((batch, size // 8, size // 8, 4), np.float32)
        for name, function, array in [
            ("encode", encode, x),
            ("decode", decode, latent),
            ("decode_tiled", sliced, latent),
        ]:

            def theirs(peer: Any, x: "torch.Tensor", name: str = name) -> "torch.Tensor":
                with torch.inference_mode():
                    return (
                        peer.encode(x).latent_dist.mean if name == "encode" else peer.decode(x)[0]
                    )

            nchw = tensor(array)
            nhwc = nchw.to(memory_format=torch.channels_last)
            expected = theirs(peer, nchw).numpy().transpose(0, 2, 3, 1)
            error = np.abs(function(model, array) - expected).max() / np.abs(expected).max()
            seconds = fastest(
                {
                    "ours": lambda f=function, x=array: jax.block_until_ready(f(model, x)),
                    "nchw": lambda f=theirs, x=nchw: f(peer, x),
                    "nhwc": lambda f=theirs, x=nhwc: f(peer_nhwc, x),
                },
                args.repeats,
            )
            ours = seconds["ours"]
            print(
                f"{name:14s} {batch:6d} {ours / batch:8.2f} {ours / seconds['nchw']:7.2f} "
                f"{ours / seconds['nhwc']:7.2f} {error:9.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
