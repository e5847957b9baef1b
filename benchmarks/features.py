"""Times Inception-v3 features on CPU beside pytorch-fid and torch-fidelity, and compares FID.

All run the same random weights on the same 32x32 crops of photographs, batch by batch in turns in
one process. Of every batch, the fastest round counts, so that a busy machine disturbs little. Peak
memory is that of a process of its own, libraries included.
Needs the `peers` extra.
"""

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

Features = Callable[[np.ndarray], np.ndarray]


def crops(num: int, side: int = 32) -> np.ndarray:
    """uint8 [num, side, side, 3] from scikit-image's photographs."""
    import skimage.data

    photographs = [skimage.data.astronaut(), skimage.data.coffee()]
    rng = np.random.default_rng(0)
    images = []
    for i in range(num):
        photograph = photographs[i % len(photographs)]
        top, left = (rng.integers(0, size - side) for size in photograph.shape[:2])
        images.append(photograph[top : top + side, left : left + side])
    return np.stack(images)


def ours(batch_size: int) -> Features:
    from eval.features import inception
    from eval.features.extractor import Extractor
    from eval.features.random_weights import random_tensors

    extractor = Extractor("inception", random_tensors(inception.layout()), batch_size)
    return lambda image_NxHxWx3: extractor(image_NxHxWx3)["pool"]


def peer(name: str, batch_size: int) -> Features:
    import torch

    from eval.features import inception
    from eval.features.random_weights import random_tensors

    tensors = random_tensors(inception.layout())
    state = {key: torch.from_numpy(x) for key, x in tensors.items()}
    if name == "pytorch-fid":
        from pytorch_fid import inception as package

        with mock.patch.object(package, "load_state_dict_from_url", return_value=state):
            network = package.InceptionV3([3]).eval()

        def run(x: torch.Tensor) -> torch.Tensor:
            return network(x.float() / 255)[0][:, :, 0, 0]
    else:
        from torch_fidelity import feature_extractor_inceptionv3 as package

        with mock.patch.object(package, "load_state_dict_from_url", return_value=state):
            network = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])

        def run(x: torch.Tensor) -> torch.Tensor:
            return network(x)[0]

    def features(image_NxHxWx3: np.ndarray) -> np.ndarray:
        x_Nx3xHxW = torch.from_numpy(image_NxHxWx3).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            return torch.cat([run(x) for x in x_Nx3xHxW.split(batch_size)]).numpy()

    return features


CONTESTANTS: dict[str, Callable[[int], Features]] = {
    "ours": ours,
    "pytorch-fid": lambda batch_size: peer("pytorch-fid", batch_size),
    "torch-fidelity": lambda batch_size: peer("torch-fidelity", batch_size),
}


def fid_of_halves(f_NxD: np.ndarray) -> float:
    from eval.metrics import frechet_distance
    from eval.statistics import fit_gaussian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too few images for a covariance of full rank
        a, b = (fit_gaussian(half) for half in np.array_split(f_NxD, 2))
    return frechet_distance(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="default 256")
    parser.add_argument("--batch_size", type=int, default=16, help="default 16")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--peak_of", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()

    images = crops(args.images)
    if args.peak_of:
        CONTESTANTS[args.peak_of](args.batch_size)(images[: 2 * args.batch_size])
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 2**10)
        return

    runs = {name: build(args.batch_size) for name, build in CONTESTANTS.items()}
    for run in runs.values():
        run(images[: args.batch_size])
    batches = np.array_split(images, max(args.images // args.batch_size, 1))
    wall, cpu = ({name: np.full(len(batches), np.inf) for name in runs} for _ in range(2))
    parts = {name: [np.empty(0)] * len(batches) for name in runs}
    for _ in range(args.rounds):
        for i, batch in enumerate(batches):
            for name, run in runs.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                parts[name][i] = run(batch)
                wall[name][i] = min(wall[name][i], time.perf_counter() - start)
                cpu[name][i] = min(cpu[name][i], time.process_time() - start_cpu)
    features = {name: np.concatenate(part) for name, part in parts.items()}
    fastest = min(seconds.sum() for name, seconds in wall.items() if name != "ours")
    thriftiest = min(seconds.sum() for name, seconds in cpu.items() if name != "ours")
    fid = {name: fid_of_halves(f_NxD) for name, f_NxD in features.items()}
    print(f"{args.images} images of 32x32, batches of {args.batch_size}, best of {args.rounds}")
    print("                images/s  time/fastest peer  CPU time/least of peers  peak MiB     FID")
    for name in runs:
        command = [sys.executable, "-m", "benchmarks.features", "--peak_of", name]
        command += ["--images", str(args.images), "--batch_size", str(args.batch_size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak = float(done.stdout)
        time_ratio, cpu_ratio = wall[name].sum() / fastest, cpu[name].sum() / thriftiest
        print(
            f"{name:15s} {args.images / wall[name].sum():8.2f}  {time_ratio:17.2f}  "
            f"{cpu_ratio:23.2f}  {peak:8.0f}  {fid[name]:6.3g}"
        )
    error = abs(fid["ours"] / fid["torch-fidelity"] - 1)
    print(f"FID of the two halves, ours over torch-fidelity's: 1 {error:+.1e}.")
    print("pytorch-fid resizes and scales otherwise, so its FID differs.")


if __name__ == "__main__":
    main()
