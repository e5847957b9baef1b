"""Writes a target text for each source text, by a run on texts."""

import argparse
import json
from pathlib import Path

from dit_moe.commands.text_flags import add_writer_flags, described, open_writer
from dit_moe.config.command_line import command_parser, run_command

EPILOG = """\
examples:
  python -m dit_moe.text sample --workdir runs/numbers --source "forty-two" --output out/
  python -m dit_moe.text sample --workdir runs/questions --sources passages.txt --candidates 10 \\
      --output out/

writes texts.tsv (source and text) and texts.json (with all candidates) into out/.
"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_parser("python -m dit_moe.text sample", __doc__, EPILOG)
    add = parser.add_argument
    add("--output", required=True, type=Path, help="folder, made anew")
    add("--source", action="append", default=[], metavar="TEXT", help="may be given repeatedly")
    add("--sources", type=Path, metavar="TXT", help="a file of sources in UTF-8, one a line")
    add_writer_flags(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Writes."""
    # After the arguments are parsed: JAX takes seconds to import.
    from dit_moe.config import require
    from dit_moe.storage.files import check_new, new_folder
    from dit_moe.text.pairs_of_text import TextPair, check_source, read_lines, to_text

    check_new(arguments.output)
    require(
        bool(arguments.source) != bool(arguments.sources),
        f"source is {arguments.source} and sources {str(arguments.sources)!r}; allowed: one of "
        "them",
    )
    sources = arguments.source or read_lines(arguments.sources)
    for number, source in enumerate(sources, start=1):
        check_source(source, number)
    writer = open_writer(arguments)
    answers = writer.write(sources)
    texts = [answer.text.replace("\t", " ").replace("\n", " ") for answer in answers]
    pairs = [TextPair(*pair) for pair in zip(sources, texts, strict=True)]
    description = {
        **described(arguments, writer),
        "texts": [
            {"source": source, "text": answer.text, "candidates": answer.candidates}
            for source, answer in zip(sources, answers, strict=True)
        ],
    }
    with new_folder(arguments.output) as folder:
        (folder / "texts.tsv").write_text(to_text(pairs), encoding="utf-8")
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (folder / "texts.json").write_text(text, encoding="utf-8")
    for source, text in pairs[:5]:
        print(f"{source}  ->  {text}")
    print(f"Wrote {arguments.output / 'texts.tsv'} and {arguments.output / 'texts.json'}.")
