"""Makes moving averages of any length from the EMA snapshots of a run, after training."""

import argparse
from pathlib import Path

from dit_moe.commands.endings import say_sampling
from dit_moe.config.command_line import command_parser, end, numbers, run_command

EPILOG = """\
examples:
  python -m dit_moe.training.post_hoc_ema --workdir runs/xl --sigma_rel 0.12 --output runs/xl-0.12
  python sample.py --workdir runs/xl-0.12 --output out/

  python -m dit_moe.training.post_hoc_ema --workdir runs/xl --sigma_rel 0.03,0.07,0.15 \\
      --step 200000 --output runs/xl-ema
  python -m eval.fid --workdir runs/xl-ema/sigma_0.07 ...

The run must have been trained with --config.train.post_hoc_ema=0.05,0.1 or the like. sigma_rel is
the standard deviation of an average's weights over the steps, as a share of all steps up to its
end; with 0.05, half of the weight lies on the last 4% of them. What is written is a run folder
whose parameters are the average; it can be sampled and measured but not trained further.
docs/ema.md says more.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.training.post_hoc_ema", __doc__, EPILOG)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="run folder")
    add(
        "--sigma_rel",
        required=True,
        metavar="0.03,0.07",
        help="relative widths of the averages, above 0 and below 0.2886",
    )
    add("--step", type=int, help="where the averages end (default: the newest snapshot)")
    add(
        "--output",
        required=True,
        type=Path,
        help="new run folder; with several widths, a folder of run folders sigma_WIDTH",
    )
    arguments = parser.parse_args(argv)

    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.runs.checkpoints import TrainingError

    return run_command(lambda: run(arguments), TrainingError)


def run(arguments: argparse.Namespace) -> None:
    """Rebuilds."""
    import jax
    from tqdm import tqdm

    from dit_moe.runs.post_hoc_ema import plan, rebuild, write_run
    from dit_moe.storage.files import new_folder

    # There is little to compute, and the training may be using the accelerator.
    jax.config.update("jax_platforms", "cpu")
    output: Path = arguments.output
    recipes = plan(arguments.workdir, _widths(arguments.sigma_rel), arguments.step)
    # With all their digits: no two widths are one name.
    names = [f"sigma_{recipe.sigma_rel}" for recipe in recipes] if len(recipes) > 1 else [""]
    total = sum(recipe.num_reads for recipe in recipes)
    with new_folder(output) as folder:
        for recipe in recipes:
            print(
                f"sigma_rel {recipe.sigma_rel:g} at step {recipe.step:,}: profile within "
                f"{recipe.error:.2%}"
            )
        with tqdm(total=total, unit="snapshot", dynamic_ncols=True) as bar:
            for recipe, name in zip(recipes, names, strict=True):
                write_run(recipe, rebuild(recipe, bar), folder / name)
    print(f"Wrote {output}.")
    say_sampling(output / names[0])


def _widths(text: str) -> list[float]:
    from dit_moe.config import ConfigError

    widths = numbers("sigma_rel", text, float)
    if not widths or len(set(widths)) < len(widths):
        raise ConfigError(
            f"sigma_rel is {text!r}; allowed: different numbers with commas, such as 0.03,0.07"
        )
    return widths


if __name__ == "__main__":
    end(main)
