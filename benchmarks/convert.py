"""Time and peak memory of converting a published size's checkpoint into a run folder.

Writes a float16 safetensors file with a peer's tensors (of random bits, in place of the real
weights), converts it in a process of its own, and compares a few tensors with the result. The
default needs 25 GB of disk, removed in the end.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def peer_shapes(preset: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a family's tensors by its own names."""
    import dit_moe
    from dit_moe.convert.peers import to_peer
    from dit_moe.models.parameters import abstract_parameters

    model = dit_moe.preset(preset).model
    zeros = {
        path: np.broadcast_to(np.float32(0), p.shape)
        for path, p in abstract_parameters(model).items()
    }
    shapes = {key: tensor.shape for key, tensor in to_peer(model, zeros).items()}
    del shapes["pos_embed"]  # random ones would be refused
    return shapes


def write_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A float16 safetensors file, tensor by tensor: its writer would want all in memory."""
    header, start = {}, 0
    for key, shape in shapes.items():
        end = start + 2 * int(np.prod(shape))
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    # Weights hardly compress; nor does this, even repeated at any offset.
    noise = (rng.standard_normal(2**24) * 0.02).astype(np.float16)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            while left:
                first = rng.integers(noise.size // 2)
                part = noise[first : first + min(left, noise.size // 2)]
                file.write(part.tobytes())
                left -= part.size


def check(checkpoint: Path, run: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Compares tensors from all over the network with what was written; returns how many."""
    import tensorstore as ts

    from dit_moe.config.files import load_json
    from dit_moe.convert.peers import Pieces
    from dit_moe.runs.tensor_files import read_safetensors

    pieces = Pieces(load_json(run / "config.json").model, read_safetensors(checkpoint))
    item = run / "checkpoints" / "0" / "ema"
    compared = 0
    for path in pieces.shapes:
        kvstore = {"driver": "ocdbt", "base": f"file://{item}/", "path": f"value.{path}/"}
        array = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()
        index = pieces.indices(path)[-1]
        written = (array[index] if index else array).read().result()
        np.testing.assert_array_equal(written, pieces.read(path, index))
        compared += 1
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="DiT-MoE-XL/2-8E2A", help="default DiT-MoE-XL/2-8E2A")
    parser.add_argument("--folder", type=Path, help="for the files (default: the temporary one)")
    args = parser.parse_args()

    family = args.preset.rpartition("-")[0] if "8E2A" not in args.preset else "DiT-MoE"
    shapes = peer_shapes(args.preset)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoint, run = Path(folder) / "checkpoint.safetensors", Path(folder) / "run"
        write_checkpoint(checkpoint, shapes)
        command = [sys.executable, "-m", "dit_moe.convert", f"--family={family.lower()}"]
        before = time.perf_counter()
        subprocess.run(
            [*command, f"--checkpoint={checkpoint}", f"--output={run}"],
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        seconds = time.perf_counter() - before
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        # Hard links count once.
        files = {path.stat().st_ino: path.stat().st_size for path in run.rglob("*")}
        compared = check(checkpoint, run, shapes)
        print(
            f"{args.preset}: {count:,} parameters, {checkpoint.stat().st_size / 1e9:.2f} GB of "
            f"float16 to {sum(files.values()) / 1e9:.2f} GB of float32"
        )
        print(f"time {seconds:.0f} s, {count * 4 / seconds / 1e6:.0f} MB of output a second")
        print(f"peak memory (resident, libraries included) {peak / 1e9:.2f} GB")
        print(f"{compared} pieces, one of every parameter, are bit-equal to the checkpoint's")


if __name__ == "__main__":
    main()
