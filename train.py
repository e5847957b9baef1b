"""Trains a model. Run the same command again to resume."""

import argparse
import signal
import sys
from pathlib import Path

EPILOG = """\
examples:
  python train.py --config configs/digits.py --workdir runs/digits
  python train.py --config configs/digits.py:dit-moe --workdir runs/digits-dit-moe
  python train.py --config configs/dit_moe.py:XL/2-8E2A --workdir runs/xl \\
      --config.data.path=data/imagenet256 --config.train.batch_size=512

any field of the config can be set with --config.FIELD=VALUE; "none" empties an optional one.
The workdir receives config.json, checkpoints/, TensorBoard events, metrics.csv and samples/.
Ctrl-C saves a checkpoint and stops (exit code 130; SIGTERM: 143).
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGUMENT]", help="config file, see configs/"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="run folder, made if missing")
    arguments, overrides = parser.parse_known_args(argv)

    try:
        return run(arguments.config, overrides, arguments.workdir)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command to go on from the newest checkpoint.")
        return 128 + signal.SIGINT


def run(config_spec: str, overrides: list[str], workdir: Path) -> int:
    """Trains; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import ConfigError
    from dit_moe.config_io import load_file
    from dit_moe.training.loop import TrainingError, train

    try:
        config = load_file(config_spec, overrides)
        stopped_by = train(config, workdir)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if stopped_by is not None:
        print(f"Saved. Run the same command to go on, in {workdir}.")
        return 128 + stopped_by
    print(f"Done. Next: python sample.py --workdir {workdir} --output out/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
