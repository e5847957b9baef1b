"""Judges samples against a reference: FID and its relatives."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_moe.config.command_line import (
    GUIDANCE_FLAGS,
    GUIDE_FLAGS,
    SOLVER_FLAGS,
    add_guidance_flags,
    add_solver_flags,
    command_parser,
    end,
    guidance_settings,
    numbers,
    run_command,
    solver_settings,
)

if TYPE_CHECKING:
    from .image_set import ImageSet

_HELP = """\
Judges a set of images against a reference by the features of a published network.

workdir     A run: samples are drawn and judged as they come, for one or more guidance scales,
            without files of images unless --save asks for them. An image depends on its number and
            the seed alone.
samples     .npz with arr_0 uint8 [N, H, W, C] and maybe labels arr_1, as sample.py and ADM write
            it; a folder of images, nested or not; a zip of images; a prepared TFDS data set.
            Classes are matched by name where both sets have names (class folders, TFDS,
            class_names in an .npz), else by number; a folder called by a number is that class.
reference   The same, or stored statistics: an .npz with mu and sigma (pytorch-fid, EDM), or one of
            ADM's reference batches. What is made of images is cached by content, so a reference is
            run through the network again only if other features must be kept. "digits" and
            "patches" are the held-out images of these data sets.
features    inception and dinov2 need their published weights. digits and patches are small
            classifiers of these data sets, trained here in seconds; their distances are no FID.

metrics, with --features inception unless said otherwise:
  fid           Fréchet distance of pooled features. Lower is better. It is biased up for few
                samples: published numbers use 50,000. With dinov2 this is FD-DINOv2.
  sfid          The same of spatial features.
  is            Inception Score, mean over splits of 5,000. Higher is better.
  pr            Precision (do samples look real?) and recall (are all real images covered?), k = 3.
  dc            Density and coverage, k = 5: the same two questions, robust to outliers.
  kid           Kernel distance, unbiased for few samples, mean over 100 subsets of 1,000.
  fid_infinity  fid without the bias of a finite number of samples.
  per_class     fid of every class that both sets have, by name or number.
  nearest       Distance of samples to the nearest reference image: finds copies.
The default is what ADM reports, fid,sfid,is,pr, as far as features and reference allow. All but
sfid and is also work with --features dinov2, all but sfid with digits and patches.
"""

_EXAMPLES = """\
examples:
  python -m eval.fid --workdir runs/xl --num_samples 50000 --guidance_scale 1.0,1.25,1.5 \\
      --reference VIRTUAL_imagenet256_labeled.npz \\
      --weights pt_inception-2015-12-05-6726825d.pth --output out/fid.json
  python -m eval.fid --workdir runs/patches --num_samples 2000 --reference patches \\
      --features patches --output out/patches.json
  python -m eval.fid --samples out/samples.npz --reference VIRTUAL_imagenet256_labeled.npz \\
      --features inception --weights pt_inception-2015-12-05-6726825d.pth --output out/fid.json
  python -m eval.fid --samples out/samples.npz --reference data/train/ --metrics fid,pr,kid \\
      --features dinov2 --weights dinov2-large/model.safetensors --output out/dinov2.json

python -m eval.features.weights tells where the weights are published. Stopped by Ctrl-C or a crash,
the same command goes on where it was.
"""

_OF_RUNS = (
    "num_samples",
    *GUIDANCE_FLAGS,
    *GUIDE_FLAGS,
    "classes",
    *SOLVER_FLAGS,
    "seed",
    "parameters",
    "autoencoder",
    "save",
)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m eval.fid", _HELP, _EXAMPLES)
    add = parser.add_argument
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--samples", type=Path, metavar="SET", help="the images to judge")
    judged.add_argument(
        "--workdir",
        type=Path,
        metavar="RUN",
        help="the model whose samples to judge: a run folder, an exported folder or a hub name",
    )
    add("--reference", required=True, type=Path, metavar="SET", help="what they are compared with")
    add(
        "--features",
        choices=("inception", "dinov2", "digits", "patches"),
        default="inception",
        help="the network (default: inception)",
    )
    add("--weights", type=Path, metavar="FILE", help="weights of inception or dinov2")
    add("--output", required=True, type=Path, metavar="JSON", help="where all numbers are written")
    add("--metrics", metavar="A,B", help="from the list above (default: see there)")
    add("--batch_size", type=int, default=64, help="images per pass (default: 64)")
    add("--split", default="train", help="split of a TFDS data set (default: train)")
    add(
        "--pairwise_reference",
        type=int,
        default=10_000,
        metavar="N",
        help="reference images, evenly spaced, that pr, dc and kid compare with (default: 10000, "
        "as in ADM's reference batches)",
    )
    add(
        "--cache",
        type=Path,
        help="folder for features of references and for progress (default: dit_moe/eval in the "
        "user's cache folder)",
    )
    drawn = parser.add_argument_group("with --workdir, as of sample.py")
    add = drawn.add_argument
    add("--num_samples", type=int, default=50_000, help="images to draw (default: 50000)")
    add(
        "--classes",
        default="",
        metavar="0,1,2",
        help="classes in turn (default: the data's)",
    )
    add("--seed", type=int, default=0, help="of all images together (default: 0)")
    add(
        "--parameters",
        choices=("ema", "raw"),
        default="ema",
        help="the moving average or the parameters themselves (default: ema)",
    )
    add("--autoencoder", help="decodes latents (default: the one of the training data)")
    add("--save", type=Path, metavar="FOLDER", help="keep the images of each scale here")
    add_solver_flags(parser)
    add_guidance_flags(parser, scales=True)
    return parser


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dit_moe" / "eval"


def _run(options: argparse.Namespace) -> str:
    """Judges, writes, and returns the table. Imports here, so that help is instant.

    Raises:
        ConfigError: for the user to mend.
        OSError: a file cannot be written.
    """
    from dit_moe.config import ConfigError

    from .choose import choose
    from .evaluate import evaluate
    from .features import load_extractor
    from .image_sets import open_set
    from .output import as_json, write
    from .references import open_reference
    from .result_table import table

    for name in ("batch_size", "pairwise_reference"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}, but must be at least 1.")
    output: Path = options.output
    if output.is_dir():
        raise ConfigError(f"--output is {output}, which is a folder, but must name a file.")
    if output.suffix != ".json":
        raise ConfigError(f"--output is {output}, but must end in .json.")
    inputs = [os.path.realpath(path) for path in (options.samples, options.reference) if path]
    if os.path.realpath(output) in inputs:
        raise ConfigError(f"--output is {output}, but must not be the samples or the reference.")

    samples = open_set(options.samples, options.split) if options.samples else None
    reference = open_reference(options.reference, options.split)
    names = (
        None
        if options.metrics is None
        else [name.strip() for name in options.metrics.split(",") if name.strip()]
    )
    chosen = choose(names, options.features, reference)  # before the network is loaded
    extractor = load_extractor(options.features, options.weights, batch_size=options.batch_size)

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{output} cannot be written ({error.strerror or error}).") from error

    def judge(images: "ImageSet", batch_size: int) -> dict[str, Any]:
        return evaluate(
            images,
            reference,
            extractor,
            chosen,
            cache=options.cache or _default_cache(),
            batch_size=batch_size,
            pairwise_reference=options.pairwise_reference,
        )

    if samples is not None:
        # Four: the network prepares one while it computes another.
        result = judge(samples, 4 * options.batch_size)
        write(output, as_json(result))
        return table(result)
    identity = {
        "reference": reference.sha256,
        "features": extractor.description,
        "metrics": chosen,
        "pairwise_reference": options.pairwise_reference,
    }
    return _judge_run(options, judge, identity)


def _judge_run(
    options: argparse.Namespace,
    judge: Callable[["ImageSet", int], dict[str, Any]],
    identity: dict[str, Any],
) -> str:
    from dit_moe.config import ConfigError

    from . import sweep
    from .output import as_json, write
    from .result_table import table
    from .run_samples import open_run

    def judge_scale(images: "ImageSet", drawn: dict[str, Any]) -> dict[str, Any]:
        result = judge(images, drawn["batch_size"])
        result["samples"]["drawn"] = drawn
        return result

    scales = sorted(set(numbers("guidance_scale", options.guidance_scale, float))) or [None]
    for scale in scales:
        if scale is not None and not 0 <= scale < math.inf:
            raise ConfigError(
                f"--guidance_scale has {scale}, but must be 0 or more (1: no guidance)."
            )
    # One at a time: each holds the model's parameters.
    sets = (
        open_run(
            options.workdir,
            batch_size=options.batch_size,
            save=options.save,
            num_samples=options.num_samples,
            **guidance_settings(options, scale=scale),
            classes=numbers("classes", options.classes),
            **solver_settings(options),
            seed=options.seed,
            ema=options.parameters == "ema",
            autoencoder=options.autoencoder,
        )
        for scale in scales
    )
    parts = options.output.with_name(f"{options.output.name}.parts")
    results = sweep.judge_sets(sets, judge_scale, parts, identity)
    if len(results) == 1:
        write(options.output, as_json(results[0]))
        sweep.finish(parts)
        return table(results[0])
    write(options.output, as_json({"by_guidance_scale": results}))
    picture = options.output.with_suffix(".png")
    sweep.plot(results, picture)
    sweep.finish(parts)
    return f"{sweep.table(results)}\n\nThe plot: {picture}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.samples is not None:
        for name in _OF_RUNS:
            if getattr(options, name) != parser.get_default(name):
                parser.error(f"--{name} belongs to --workdir, not to --samples")
    return run_command(lambda: print(_run(options)), resumes=True)


if __name__ == "__main__":
    end(main)
