"""What the commands have in common."""

import argparse


def command_parser(prog: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts, and which takes no shortened flags.

    `--config.FIELD=VALUE` would be taken for a shortened flag otherwise.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
