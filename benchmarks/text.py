"""Compares the spiral encoder-decoder with a plain one of as many parameters: numbers in words.

Each is trained with every seed, and judged by the numbers that are held out. Runs and results are
kept in --output, so that the same command goes on where it stopped; minutes are those of the call
that finished a run, compiling, validation and checkpoints counted in, by the clock and of all cores
together. Fields of the config can be given as to `dit-moe text train`.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

from dit_moe.config.files import override
from dit_moe.storage.files import atomic
from dit_moe.text.config import TextConfig
from dit_moe.text.data import load_pairs
from dit_moe.text.metrics import judge
from dit_moe.text.start import plain
from dit_moe.text.training import train_on_texts
from dit_moe.text.writer import TextWriter

SHOWN = ("exact_match", "bleu", "rouge_l", "distinct_1")


def measure(config: TextConfig, folder: Path, steps: int, candidates: int) -> dict[str, float]:
    """Trains the run and judges it; what was found before is read."""
    path = folder / "found.json"
    if path.exists():
        return json.loads(path.read_text())
    start, busy = time.perf_counter(), time.process_time()
    if train_on_texts(config, folder) is not None:
        raise SystemExit("stopped; the same command goes on")
    minutes = (time.perf_counter() - start) / 60
    core_minutes = (time.process_time() - busy) / 60
    writer = TextWriter(folder, steps=steps, candidates=candidates)
    pairs = load_pairs(config.data, "heldout")
    start = time.perf_counter()
    answers = writer.write([pair.source for pair in pairs])
    found = judge([answer.text for answer in answers], [pair.target for pair in pairs])
    found |= {
        "minutes": minutes,
        "core_minutes": core_minutes,
        "seconds_to_write": time.perf_counter() - start,
        "parameters": sum(p.size for p in writer.run.parameters.values()),
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    return found


def row(name: str, found: list[dict[str, float]]) -> str:
    """A row of the table: figures, or their means and, of several, the least exact match."""

    def mean(field: str) -> float:
        return statistics.mean(one[field] for one in found)

    cells = [f"{mean(field):.4f}" if field != "bleu" else f"{mean(field):.2f}" for field in SHOWN]
    least = min(one["exact_match"] for one in found)
    cells.append(f"{least:.4f}")
    cells += [f"{mean(field):.1f}" for field in ("minutes", "core_minutes", "seconds_to_write")]
    return f"| {name} | {mean('parameters'):,.0f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--models", nargs="+", default=["spiral", "plain"], choices=["spiral", "plain"]
    )
    parser.add_argument("--sampling_steps", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    config = override(TextConfig(), overrides)
    configs = {"spiral": config, "plain": plain(config)}
    heads = ["model", "parameters", *SHOWN, "least exact_match", "minutes", "core minutes"]
    heads.append("seconds to write")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in arguments.models:
        found = []
        for seed in arguments.seeds:
            own = dataclasses.replace(configs[name], seed=seed)
            folder = arguments.output / f"{name}-{seed}"
            found.append(measure(own, folder, arguments.sampling_steps, arguments.candidates))
            print(row(f"{name}, seed {seed}", found[-1:]), flush=True)
        print(row(f"{name}, mean of {len(found)}", found), flush=True)


if __name__ == "__main__":
    main()
