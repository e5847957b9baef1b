"""Trains a model. Run the same command again to resume."""

import argparse
import functools
from typing import TYPE_CHECKING

from etils import epath

from dit_moe.commands.endings import train_to_the_end
from dit_moe.commands.eval_room import eval_module
from dit_moe.config.command_line import command_parser, end, run_command, words

if TYPE_CHECKING:
    from dit_moe.config import EvaluateConfig
    from dit_moe.training.judging import Judge

EPILOG = """\
examples:
  python train.py --config configs/digits.py --workdir runs/digits
  python train.py --config configs/digits.py:dit-moe --workdir runs/digits-dit-moe
  python train.py --config configs/dit_moe.py:XL/2-8E2A --workdir runs/xl \\
      --config.data.path=data/imagenet256 --config.train.batch_size=512

  python train.py --config configs/dit_moe.py:XL/2-8E2A@512 --workdir runs/xl-512 \\
      --init_from runs/xl
  python train.py --config configs/prepared.py:data/pets --workdir runs/pets \\
      --init_from runs/animals --init_classes fox=dog,puma=cat

  python train.py --config configs/digits.py --workdir runs/digits \\
      --config.train.learning_rate=3e-4 --override_resume learning_rate

  python train.py --config configs/dit_moe.py:G/2-16E2A --workdir /shared/runs/g --distributed \\
      --config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.expert=8

any field of the config can be set with --config.FIELD=VALUE; "none" empties an optional one.
The workdir receives config.json, checkpoints/, TensorBoard events, metrics.csv and samples/.
Ctrl-C saves a checkpoint and stops (exit code 130; SIGTERM: 143, a closed terminal: 129); a
second one stops at once.
Other exit codes: 0 done, 1 training cannot go on, 2 a setting cannot be used.

several processes (docs/scale.md): start the same command once per process, with --distributed
under SLURM, Open MPI or on a TPU pod, or else with --coordinator_address, --num_processes and
--process_id.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python train.py", __doc__, EPILOG)
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARGUMENT]", help="config file, see configs/"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=epath.Path,
        help="run folder, made if missing",
    )
    parser.add_argument(
        "--init_from",
        metavar="RUN",
        help="model to start from when the workdir has no checkpoint: a run folder, an exported "
        "folder or a Hugging Face name; its network must be the config's, but for the classes and "
        "the image size (docs/finetuning.md)",
    )
    parser.add_argument(
        "--init_classes",
        type=_classes,
        default={},
        metavar="NEW=OLD,...",
        help="with --init_from: classes of the config's data, each with the class of RUN that it "
        "starts from, by names or numbers (default: the class of the same name, or else the mean)",
    )
    parser.add_argument(
        "--init_layers",
        type=_layers,
        default=(),
        metavar="BLOCK,...",
        help="with --init_from: for each block of the config's network, which block of RUN it "
        "starts from, counted from 0, where it has more or fewer",
    )
    parser.add_argument(
        "--override_resume",
        default="",
        metavar="FIELD,FIELD",
        help="fields of config.train, such as learning_rate,batch_size, that may differ from those "
        "of the run in the workdir; noted in its history.jsonl",
    )
    parser.add_argument(
        "--profile_steps",
        type=_steps,
        default=range(0),
        metavar="FIRST:LAST",
        help="write a profiler trace of these steps to WORKDIR/profile",
    )
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="log to this Weights & Biases project too"
    )
    processes = parser.add_argument_group("several processes")
    processes.add_argument(
        "--distributed", action="store_true", help="find the other processes by the environment"
    )
    processes.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, reachable by all"
    )
    processes.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process_id", type=int, metavar="I", help="which one this is, from 0")
    arguments, overrides = parser.parse_known_args(argv)
    return run_command(lambda: run(arguments, overrides), resumes=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Trains; returns the exit code."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config.files import load_file
    from dit_moe.devices import hosts
    from dit_moe.training.loop import train

    explicit = (arguments.coordinator_address, arguments.num_processes, arguments.process_id)
    workdir: epath.Path = arguments.workdir
    config = load_file(arguments.config, overrides)
    if arguments.distributed or explicit != (None, None, None):
        hosts.join(*explicit)
    training = functools.partial(
        train,
        config,
        workdir,
        init_from=arguments.init_from,
        init_classes=arguments.init_classes,
        init_layers=arguments.init_layers,
        override_resume=words(arguments.override_resume),
        profile_steps=arguments.profile_steps,
        wandb=arguments.wandb,
        build_judge=_build_judge,
    )
    then = "python sample.py --workdir {workdir} --output out/"
    return train_to_the_end(training, workdir, then)


def _build_judge(settings: "EvaluateConfig") -> "Judge":
    return eval_module("training_judge").TrainingJudge(settings)


def _steps(text: str) -> range:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: FIRST:LAST, both 1 or more, such as 10:12"
        )
    return range(int(first), int(last) + 1)


def _layers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: numbers of blocks with commas, such as 0,2,4"
        )
    return tuple(map(int, parts))


def _classes(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    chosen = {new.strip(): old.strip() for new, _, old in pairs}
    if not all(new and old for new, old in chosen.items()) or len(chosen) < len(pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r}; allowed: NEW=OLD with commas, each NEW once, such as fox=dog,puma=cat"
        )
    return chosen


if __name__ == "__main__":
    end(main)
