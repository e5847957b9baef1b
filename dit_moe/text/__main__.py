"""The face of `commands/text.py`, which is above this room and not imported by it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("dit_moe.commands.text", run_name="__main__")
