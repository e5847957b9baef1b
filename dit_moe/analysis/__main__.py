"""The command; see command.py."""

import sys

from dit_moe.analysis.command import main

if __name__ == "__main__":
    sys.exit(main())
