"""Draws from a model larger than memory: time and peak of resident memory.

    python -m benchmarks.sample_large --memory 4GB --folder /tmp/bench

Its parameters are random numbers, of which a store is made part by part; sample.py then draws from
it in a process of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.streaming import write_random
from benchmarks.timing import machine, peak_rss, watched
from dit_moe.config.presets import preset
from dit_moe.streaming.opening import is_store


def main() -> None:
    """Prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="DiT-MoE-XL/2-8E2A")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, required=True, help="for the store; kept")
    parser.add_argument("--dtype", default="float16")
    arguments = parser.parse_args()
    print(f"{arguments.preset}, {arguments.dtype}, {arguments.memory}; {machine()}")
    if not is_store(arguments.folder):
        write_random(preset(arguments.preset), arguments.folder, arguments.dtype)
        print(f"  store written with a peak of {peak_rss() / 1e9:.2f} GB")
    size = sum(path.stat().st_size for path in arguments.folder.iterdir())
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "sample.py", f"--workdir={arguments.folder}"]
        command += ["--parameters=raw", "--autoencoder=none", f"--memory={arguments.memory}"]
        command += [f"--num_samples={arguments.images}", f"--steps={arguments.steps}"]
        command += [f"--guidance_scale={arguments.guidance_scale}", f"--output={output}/drawn"]
        found = watched(command)
    if found.code:
        sys.exit(found.said)
    print("  " + "\n  ".join(line for line in found.said.splitlines() if "memory" in line))
    print(
        f"  {arguments.images} images in {arguments.steps} steps: {found.seconds:.0f} s with "
        f"compiling; store {size / 1e9:.2f} GB; peak of resident memory {found.peak / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
