"""Judges samples against a reference: FID and its relatives."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dit_moe.config.command_line import command_parser, end, numbers, run_command, words
from dit_moe.config.run_flags import (
    GUIDANCE_FLAGS,
    GUIDE_FLAGS,
    SOLVER_FLAGS,
    add_checkpoint_flag,
    add_guidance_flags,
    add_memory_flag,
    add_parameters_flag,
    add_solver_flags,
    drawing_settings,
)

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
            --save_reference writes such statistics, with what they were made of; pytorch-fid and
            ADM's evaluator read them, too.
resize      A rule for images of other sizes, since numbers depend on it: lanczos:256, or
            bicubic:256x192 (height first). adm is the crop of data.prepare (halved by averaging,
            then bicubic); the others are Pillow's filters, antialiased. Centred parts are taken.
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
  python -m eval.fid --reference data/train/ --resize adm:256 --save_reference out/reference.npz \\
      --features inception --weights pt_inception-2015-12-05-6726825d.pth

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
    "checkpoint",
    "memory",
    "follow",
    "autoencoder",
    "save",
)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m eval.fid", _HELP, _EXAMPLES)
    add = parser.add_argument
    judged = parser.add_mutually_exclusive_group()
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
    add("--output", type=Path, metavar="JSON", help="where all numbers are written; needed")
    add(
        "--save_reference",
        type=Path,
        metavar="NPZ",
        help="write the statistics of the reference's images, too, or alone without a set to judge",
    )
    add(
        "--resize",
        metavar="RULE:SIZE",
        help="bring all images to one size by adm, box, bilinear, bicubic or lanczos (default: "
        "other sizes are refused)",
    )
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
        help="classes in turn, by number or by name as in cat,dog (default: the data's)",
    )
    add("--seed", type=int, default=0, help="of all images together (default: 0)")
    add_parameters_flag(drawn)
    add_checkpoint_flag(drawn)
    add_memory_flag(drawn)
    add(
        "--follow",
        action="store_true",
        help="judge all checkpoints, those to come too, until that of the run's last step",
    )
    add("--autoencoder", help="decodes latents (default: the one of the training data)")
    add("--save", type=Path, metavar="FOLDER", help="keep the images of each scale here")
    add_solver_flags(parser)
    add_guidance_flags(parser, scales=True)
    return parser


def _run(options: argparse.Namespace) -> str:
    """Asks for what the options say, and returns the table.

    Raises:
        ConfigError: for the user to mend.
        OSError: a file cannot be written.
    """
    # After the arguments are parsed: JAX takes seconds to import.
    from .collect import default_cache
    from .judge import Request, RunSamples, judge

    names = None if options.metrics is None else options.metrics.split(",")
    request = Request(
        reference=options.reference,
        output=options.output,
        features=options.features,
        weights=options.weights,
        metrics=names and [name.strip() for name in names if name.strip()],
        batch_size=options.batch_size,
        split=options.split,
        pairwise_reference=options.pairwise_reference,
        cache=options.cache or default_cache(),
        save_reference=options.save_reference,
        resize=options.resize,
    )
    if options.samples is None and options.workdir is None:
        return judge(request, None)
    if options.samples is not None:
        return judge(request, options.samples)
    settings = {
        "num_samples": options.num_samples,
        "classes": words(options.classes),
        "seed": options.seed,
        "memory": options.memory,
        "autoencoder": options.autoencoder,
        **drawing_settings(options, scale=None),
    }
    scales = numbers("guidance_scale", options.guidance_scale, float)
    run = RunSamples(options.workdir, scales, options.save, settings, options.follow)
    return judge(request, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    judges = options.samples is not None or options.workdir is not None
    if not judges and options.save_reference is None:
        parser.error("one of the arguments --samples --workdir --save_reference is required")
    if judges != (options.output is not None):
        which = "needed with" if judges else "given without"
        parser.error(f"--output is {which} --samples or --workdir")
    if options.workdir is None:
        instead = "not to --samples" if judges else "which is not given"
        for name in _OF_RUNS:
            if getattr(options, name) != parser.get_default(name):
                parser.error(f"--{name} belongs to --workdir, {instead}")
    if options.follow:
        for name in ("checkpoint", "save"):
            if getattr(options, name) != parser.get_default(name):
                parser.error(f"--{name} does not go with --follow, which judges all checkpoints")
        if "," in options.guidance_scale:
            parser.error("--guidance_scale is several, but --follow judges at one")
    return run_command(lambda: print(_run(options)), resumes=True)


if __name__ == "__main__":
    end(main)
