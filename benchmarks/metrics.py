"""Times the metrics beside torch-fidelity's and pytorch-fid's on the same features.

Every contestant runs in a process of its own, so that the peak of its memory is its own; they take
turns, and the fastest of the repeats counts. Needs torch-fidelity and pytorch-fid.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

COLUMNS = """\
columns
  time      seconds of the fastest repeat, the features being in memory
  ratio     our time over theirs
  memory    MiB at its peak over what was there before (Linux)
rows
  statistics  mean and covariance of the features, fed in batches of 64
  frechet     the Fréchet distance of two such Gaussians
  pr          precision and recall, k = 3
  kid         kernel distance, 100 subsets of 1,000; torch-fidelity in float32, its default, and in
              float64, as ours
"""

Task = Callable[[np.ndarray, np.ndarray], Callable[[], object]]


def _ours_statistics(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    del g_NxD
    from eval.statistics import GaussianAccumulator

    def run() -> object:
        accumulator = GaussianAccumulator(f_NxD.shape[1])
        for start in range(0, len(f_NxD), 64):
            accumulator.add(f_NxD[start : start + 64])
        return accumulator.gaussian()

    return run


def _pytorch_fid_statistics(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    del g_NxD

    def run() -> object:  # its array of all activations is float64
        all_NxD = np.empty(f_NxD.shape)
        for start in range(0, len(f_NxD), 64):
            all_NxD[start : start + 64] = f_NxD[start : start + 64]
        return np.mean(all_NxD, axis=0), np.cov(all_NxD, rowvar=False)

    return run


def _torch_fidelity_statistics(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    del g_NxD
    import torch
    from torch_fidelity import metric_fid

    def run() -> object:
        batches = [torch.tensor(f_NxD[i : i + 64]) for i in range(0, len(f_NxD), 64)]
        return metric_fid.fid_features_to_statistics(torch.cat(batches))

    return run


def _gaussians(f_NxD: np.ndarray, g_NxD: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.mean(0, dtype=np.float64), np.cov(x, rowvar=False)) for x in (f_NxD, g_NxD)]


def _ours_frechet(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    from eval.metrics import frechet_distance
    from eval.statistics import Gaussian

    a, b = (Gaussian(*pair) for pair in _gaussians(f_NxD, g_NxD))
    return lambda: frechet_distance(Gaussian(a.mean, a.covariance), Gaussian(b.mean, b.covariance))


def _pytorch_fid_frechet(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    a, b = _gaussians(f_NxD, g_NxD)
    return lambda: calculate_frechet_distance(*a, *b)


def _torch_fidelity_frechet(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    from torch_fidelity import metric_fid

    a, b = ({"mu": m, "sigma": s} for m, s in _gaussians(f_NxD, g_NxD))
    return lambda: metric_fid.fid_statistics_to_metric(a, b, False)


def _ours_pr(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    from eval.metrics import precision_recall

    return lambda: precision_recall(f_NxD, g_NxD)


def _torch_fidelity_pr(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    import torch
    from torch_fidelity import metric_prc

    a, b = torch.tensor(f_NxD), torch.tensor(g_NxD)
    return lambda: metric_prc.prc_features_to_metric(a, b, verbose=False)


def _ours_kid(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    from eval.metrics import kernel_distance

    return lambda: kernel_distance(f_NxD, g_NxD)


def _torch_fidelity_kid(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    import torch
    from torch_fidelity import metric_kid

    a, b = torch.tensor(f_NxD), torch.tensor(g_NxD)
    return lambda: metric_kid.kid_features_to_metric(a, b, verbose=False)


def _torch_fidelity_kid64(f_NxD: np.ndarray, g_NxD: np.ndarray) -> Callable[[], object]:
    return _torch_fidelity_kid(f_NxD.astype(np.float64), g_NxD.astype(np.float64))


TASKS: dict[str, dict[str, Task]] = {
    "statistics": {
        "ours": _ours_statistics,
        "pytorch-fid": _pytorch_fid_statistics,
        "torch-fidelity": _torch_fidelity_statistics,
    },
    "frechet": {
        "ours": _ours_frechet,
        "pytorch-fid": _pytorch_fid_frechet,
        "torch-fidelity": _torch_fidelity_frechet,
    },
    "pr": {"ours": _ours_pr, "torch-fidelity": _torch_fidelity_pr},
    "kid": {
        "ours": _ours_kid,
        "torch-fidelity": _torch_fidelity_kid,
        "torch-fidelity, float64": _torch_fidelity_kid64,
    },
}


def measure(task: str, name: str, num: int, width: int) -> tuple[float, float]:
    """Seconds and MiB of one run in this process."""
    rng = np.random.default_rng(0)
    mixing_DxD = rng.normal(size=(width, width)).astype(np.float32) / width**0.5
    f_NxD, g_NxD = (
        np.maximum(rng.normal(size=(num, width)).astype(np.float32) @ mixing_DxD + shift, 0)
        for shift in (0.1, 0)
    )
    run = TASKS[task][name](f_NxD, g_NxD)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds, (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=COLUMNS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=10_000, help="features N (default 10000)")
    parser.add_argument("--width", type=int, default=2048, help="their width D (default 2048)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of a row (default 2)")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {','.join(TASKS)}")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what a child runs
    options = parser.parse_args()
    if options.one:
        task, name = options.one
        print(json.dumps(measure(task, name, options.num, options.width)))
        return

    print(f"N = {options.num}, D = {options.width}")
    print(f"{'':12}{'':26}{'time':>8}{'ratio':>8}{'memory':>8}")
    for task in options.tasks.split(","):
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in TASKS[task]}
        for _ in range(options.repeats):
            for name, measured in results.items():
                child = [sys.executable, "-m", "benchmarks.metrics", "--one", task, name]
                child += ["--num", str(options.num), "--width", str(options.width)]
                done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
                measured.append(tuple(json.loads(done.stdout.splitlines()[-1])))
        ours = min(seconds for seconds, _ in results["ours"])
        for name, measured in results.items():
            seconds, memory = min(measured)
            ratio = "" if name == "ours" else f"{ours / seconds:.2f}"
            print(f"{task:12}{name:26}{seconds:8.2f}{ratio:>8}{memory:8.0f}", flush=True)


if __name__ == "__main__":
    main()
