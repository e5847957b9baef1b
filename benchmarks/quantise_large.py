"""Quantises a published model with random weights block by block, and writes its open folder.

Only one block's weights are ever whole. Shown are the bytes by the closed form and in the folder,
the time and the peak of resident memory; with --sample, an image is drawn from what was written.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine, peak_rss
from dit_moe.commands import sample
from dit_moe.config.files import to_json
from dit_moe.config.presets import preset
from dit_moe.models.parameters import abstract_parameters
from dit_moe.models.unpacking import packed_kinds, packed_parameters, whole_model
from dit_moe.nn.packed import packed_bytes
from dit_moe.runs.open_folder import write_tensors
from dit_moe.surgery.compress.bits import bits_of, kinds_of, spread
from dit_moe.surgery.compress.quantise import QuantiseSettings
from dit_moe.surgery.compress.rounding import half_quadratic, nearest

METHODS = {"nearest": nearest, "hqq": half_quadratic}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="DiT-MoE-XL/2-8E2A", help="a preset's name")
    parser.add_argument("--method", choices=METHODS, default="nearest")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--sample", action="store_true", help="draw an image from the folder")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    config, start = preset(arguments.model), time.perf_counter()
    settings = QuantiseSettings(bits=arguments.bits, group=arguments.group)
    bits = spread(config.model, bits_of(config.model, settings))
    packed = kinds_of(bits, arguments.group)
    model = dataclasses.replace(config.model, packed=packed)
    parameters = {
        path: np.empty(p.shape, p.dtype) for path, p in abstract_parameters(model).items()
    }
    kinds, rng = packed_kinds(model), np.random.default_rng(0)
    for path, like in abstract_parameters(whole_model(model)).items():
        for unit in np.ndindex(like.shape[:-2]):  # one matrix of one expert of one block
            w = rng.standard_normal(like.shape[len(unit) :], np.float32) * 0.02
            if path not in kinds:
                parameters[path][unit] = w
                continue
            kind, _ = kinds[path]
            found = METHODS[arguments.method](jnp.asarray(w), kind.bits, kind.group)
            for name, part in packed_parameters(path, found).items():
                parameters[name][unit] = np.asarray(part)
    seconds, whole = time.perf_counter() - start, abstract_parameters(whole_model(model))
    number, of_packed = (
        sum(p.size for p in whole.values()),
        sum(packed_bytes(shape, kind.bits, kind.group) for kind, shape in kinds.values()),
    )
    predicted = of_packed + sum(4 * p.size for path, p in whole.items() if path not in kinds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        write_tensors(folder, parameters, model, ema=True)
        (folder / "config.json").write_text(to_json(dataclasses.replace(config, model=model)))
        del parameters
        written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(
            f"{arguments.model}, {number:,} parameters, {arguments.method} to {arguments.bits} "
            f"bits, groups of {arguments.group}; {machine()}"
        )
        print(f"  bytes predicted {predicted:,}, written {written:,} with headers")
        print(f"  {written / (2 * number):.3f} of float16's; {seconds:.0f} s")
        print(f"  peak of resident memory {peak_rss():,} bytes")
        if arguments.sample:
            begun = time.perf_counter()
            output = [f"--output={name}/drawn", "--num_samples=1", "--steps=1"]
            assert sample.main([f"--workdir={folder}", "--autoencoder=none", *output]) == 0
            print(f"  an image in one step: {time.perf_counter() - begun:.0f} s with compiling")
            print(f"  peak of resident memory {peak_rss():,} bytes")


if __name__ == "__main__":
    main()
